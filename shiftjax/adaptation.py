"""Adaptation of a network's variables to other classes or image channels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HEAD = "head"  # the layer that maps features to logits
Shape = tuple[int, int, int]


def with_new_head(model: Any, variables: dict[str, Any], image: Shape) -> Any:
    """Replaces the head by a new one, initialized with seed 0.

    Args:
      model: the network, with the new number of classes.
      variables: its variables, with the head of another number.
      image: shape `(height, width, channels)` of an image.

    Returns:
      The variables; only the params of the head change.
    """
    new = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *image)))
    params = variables["params"] | {HEAD: new["params"][HEAD]}
    return variables | {"params": params}


def with_channels(model: Any, variables: dict[str, Any], image: Shape) -> Any:
    """Adapts the kernel of the first layer to another number of channels, as timm does.

    Args:
      model: the network.
      variables: its variables.
      image: shape `(height, width, channels)` of an image, with the new number.

    Returns:
      The variables; only the leaves with the channels of the image change.
    """
    wanted = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image)))
    channels = image[-1]

    def adapt(value: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        if value.shape == like.shape:
            return value
        value = jnp.asarray(value)
        if channels == 1:
            return value.sum(-2, keepdims=True)
        old = value.shape[-2]
        return value[..., np.arange(channels) % old, :] * (old / channels)

    return jax.tree.map(adapt, variables, wanted)
