"""The losses of style transfer: content and style.

They follow Johnson et al. 2016 (https://arxiv.org/abs/1603.08155, section 3.2) in the
scale of the shift paper's authors: a Gram matrix is divided by height, width and
channels, and an error is a mean over its elements.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from train.style.features import FeatureNet, Features

Grams = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Perceptual:
    """The loss of an image that has the content of one image and the style of another.

    Attributes:
      net: the network whose features are compared.
      content_weight: the weight of the content loss. The paper's two weights are for
        VGG-16; features of other networks have another scale.
      style_weight: the weight of the style loss.
    """

    net: FeatureNet
    content_weight: float = 1e5
    style_weight: float = 1e10

    def grams(self, params: Any, painting: jax.Array) -> Grams:
        """Computes the Gram matrices of the painting, once for all steps.

        Args:
          params: the parameters of the net.
          painting: `[1, height, width, 3]`, RGB in 0 .. 1.

        Returns:
          Gram matrices `[1, channels, channels]` by layer.
        """
        features = self.net(params, painting)
        return {name: gram(features[name]) for name in self.net.style_layers}

    def __call__(
        self, params: Any, grams: Grams, pictures: jax.Array, contents: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes the loss.

        Args:
          params: the parameters of the net.
          grams: the Gram matrices of the painting.
          pictures: the restyled images, `[batch, height, width, 3]`, RGB in 0 .. 1.
          contents: the images with the wanted content, of the same shape.

        Returns:
          The loss, a mean over the batch, and its weighted parts, "content" and
          "style".
        """
        features, wanted = self.net(params, pictures), self.net(params, contents)
        layer = self.net.content_layer
        parts = {
            "content": self.content_weight
            * mean_square(features[layer], wanted[layer]),
            "style": self.style_weight * style_loss(features, grams),
        }
        return parts["content"] + parts["style"], parts


def gram(features: jax.Array) -> jax.Array:
    """Computes the Gram matrix of the channels, over all pixels.

    Args:
      features: `[batch, height, width, channels]`.

    Returns:
      Float32 `[batch, channels, channels]`, products of two channels summed over the
      pixels, divided by height * width * channels.

    Example:
      >>> gram(jnp.array([[[[1.0, 2.0]], [[3.0, 4.0]]]]))[0].tolist()
      [[2.5, 3.5], [3.5, 5.0]]
    """
    x = features.reshape(features.shape[0], -1, features.shape[-1])
    total = jnp.einsum(
        "npi,npj->nij",
        x,
        x,
        precision="highest",  # the loss compares small differences of these
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
    return total / (x.shape[1] * x.shape[2])


def style_loss(features: Features, grams: Mapping[str, jax.Array]) -> jax.Array:
    """Sums the mean squared differences of Gram matrices over the layers.

    Args:
      features: `[batch, height, width, channels]` by layer.
      grams: `[1 or batch, channels, channels]` by layer, of the layers to compare.

    Returns:
      A scalar.
    """
    errors = [mean_square(gram(features[name]), grams[name]) for name in grams]
    return jnp.sum(jnp.stack(errors))


def mean_square(x: jax.Array, y: jax.Array) -> jax.Array:
    """Computes the mean squared difference, at least in float32."""
    dtype = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
    return ((x.astype(dtype) - y.astype(dtype)) ** 2).mean()
