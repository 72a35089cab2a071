"""The base class of all modules with parameters."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from shiftjax.fast.cpu.layout import Activations, Planes
from shiftjax.fast.dispatch import REFERENCE, BlockOptions, Choice, choose, function
from shiftjax.fast.pixels import product_of_pixels

SHARED = (
    "axis_name",
    "momentum",
    "epsilon",
    "dtype",
    "param_dtype",
    "kernel_init",
    "implementation",
)

he_normal = nn.initializers.he_normal()


class Unit(nn.Module, kw_only=True):
    """A module with the fields that all units share, and layers made from them.

    Attributes:
      axis_name: axis of the replicas over which BatchNorm averages its statistics, or
        None for separate statistics of each replica.
      momentum: share of BatchNorm's running statistics that a training step keeps.
      epsilon: added to BatchNorm's variances.
      dtype: dtype of the computation, or None for that of input and params, promoted.
      param_dtype: dtype of the params.
      kernel_init: initializer of the kernels.
      implementation: one of `shiftjax.fast.dispatch.NAMES`, or None to let
        `shiftjax.fast.dispatch.choose` decide. The reference initializes variables.
    """

    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = he_normal
    implementation: str | None = None

    kind: ClassVar[str] = "unit"  # the module's name in `shiftjax.fast.dispatch`

    def choose(
        self, x: Activations, train: bool = False, block: BlockOptions | None = None
    ) -> Choice:
        """Chooses the implementation for an input; see `shiftjax.fast.dispatch`."""
        if isinstance(x, Planes):
            return Choice("cpu", "the input has its layout")
        asked, kind = self.implementation, self.kind
        split = any(axis is not None for axis in jax.typeof(x).sharding.spec)
        choice = choose(asked, kind, x.shape, train=train, block=block, split=split)
        if self.has_variables():
            return choice
        return Choice(REFERENCE, "it initializes the variables")

    def has_variables(self) -> bool:
        """Returns True if the variables are given, and are not being initialized."""
        given = {"params", "batch_stats"} <= set(self.variables)
        return given and not self.is_initializing()

    @nn.nowrap  # so that it can also be called outside of `__call__`
    def unit(self, kind: type, *args: Any, **options: Any) -> Any:
        """Makes a part of this unit, with the shared fields."""
        shared = {name: getattr(self, name) for name in SHARED}
        return kind(*args, **(shared | options))

    def pointwise(self, features: int, name: str) -> nn.Dense:
        """Makes a 1x1 convolution without bias, as a product: kernel `[in, out]`."""
        return nn.Dense(
            features,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            dot_general=product_of_pixels,
            name=name,
        )

    def conv(
        self, features: int, kernel_size: int, strides: int, name: str, groups: int = 1
    ) -> nn.Conv:
        """Makes a convolution without bias, padded by half of its kernel size."""
        half = kernel_size // 2
        return nn.Conv(
            features,
            (kernel_size, kernel_size),
            strides,
            padding=[(half, half), (half, half)],
            feature_group_count=groups,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            name=name,
        )

    def norm(self, name: str, train: bool) -> nn.BatchNorm:
        """Makes BatchNorm, with the statistics of the batch in training."""
        return nn.BatchNorm(
            use_running_average=not train,
            axis_name=self.axis_name,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            use_fast_variance=False,
            name=name,
        )

    def run(self, name: str, x: Any, train: bool, **options: Any) -> Any:
        """Computes this module in an implementation, with its own variables."""
        stats = self.variables["batch_stats"]
        y, batch_stats = function(name, self.kind)(
            self.variables["params"],
            None if train else stats,
            x,
            dtype=self.dtype,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            **options,
        )
        for key, new in batch_stats.items():
            average = jax.tree.map(self._average, dict(stats[key]), new)
            self.put_variable("batch_stats", key, average)
        return y

    def promoted_dtype(self, x: Activations) -> Any:
        """Returns the dtype of products with an input."""
        return self.dtype or jnp.promote_types(x.dtype, self.param_dtype)

    def _average(self, old: jax.Array, new: jax.Array) -> jax.Array:
        return self.momentum * old + (1 - self.momentum) * new
