"""The state of a training run: one tree, which every step replaces."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

CLASSIFIER = "classifier"  # parameters of this name are for training alone


@struct.dataclass
class TrainState:
    """Everything that a checkpoint holds.

    Attributes:
      step: number of completed steps, int32. With the seed it determines the next
        examples and their augmentation.
      params: the parameters of the network.
      batch_stats: the running statistics of BatchNorm.
      others: other variable collections; empty for most models.
      opt_state: the state of the optimizer.
      ema: exponential moving average of the variables, or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    others: dict[str, Any]
    opt_state: optax.OptState
    ema: Any

    @property
    def collections(self) -> dict[str, Any]:
        """The variable collections of the model other than the parameters."""
        return {"batch_stats": self.batch_stats, **self.others}

    @property
    def raw_variables(self) -> dict[str, Any]:
        """The variables after the last step, which are not averaged."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def variables(self) -> dict[str, Any]:
        """The variables to evaluate: the moving average if there is one."""
        return self.raw_variables if self.ema is None else self.ema


def network_variables(variables: dict[str, Any]) -> dict[str, Any]:
    """Returns the variables of a network, without those that only training needs.

    Args:
      variables: variables of a training run, by collection.

    Returns:
      The variables without the parameters under the name "classifier".

    Example:
      >>> network_variables({"params": {"head": 1, "classifier": 2}})
      {'params': {'head': 1}}
    """
    params = {k: x for k, x in variables["params"].items() if k != CLASSIFIER}
    return variables | {"params": params}


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    image_shape: tuple[int, int, int],
    *,
    with_ema: bool = False,
) -> TrainState:
    """Creates the state before the first step, a pure function of its arguments.

    Args:
      model: maps images to logits.
      optimizer: updates the parameters.
      seed: determines the initial parameters.
      image_shape: (height, width, channels) of one image.
      with_ema: if True, the state has a moving average of the variables.

    Returns:
      The state, on the default device.
    """

    def create(key: jax.Array) -> TrainState:
        others = dict(model.init(key, jnp.zeros((1, *image_shape))))
        params, batch_stats = others.pop("params"), others.pop("batch_stats", {})
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            others=others,
            opt_state=optimizer.init(params),
            ema={"params": params, "batch_stats": batch_stats} if with_ema else None,
        )

    return jax.jit(create)(jax.random.key(seed))
