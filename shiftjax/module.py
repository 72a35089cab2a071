"""The base class of all modules with parameters."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from flax.typing import Dtype, Initializer

from shiftjax.errors import InputError, listed
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
      kernel_init: initializer of the kernels of convolutions. The dense head of a
        network keeps that of `flax.linen.Dense`.
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

    def run(
        self,
        name: str,
        x: Any,
        train: bool,
        kernels: Mapping[str, tuple[int, ...]],
        **options: Any,
    ) -> Any:
        """Computes this module in an implementation, with its own variables.

        Args:
          name: name of the implementation.
          x: the input.
          train: if True, BatchNorm uses the statistics of the batch.
          kernels: shapes of the kernels, by the paths of their layers.
          **options: further options of the function.

        Returns:
          The output.

        Raises:
          InputError: if the params have other kernels. The implementations would take
            the sizes of the module from them.
        """
        params = nn.meta.unbox(self.variables["params"])
        stats = self.variables["batch_stats"]
        self._check_kernels(params, kernels)
        y, batch_stats = function(name, self.kind)(
            params,
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

    def _check_kernels(
        self, params: Mapping[str, Any], kernels: Mapping[str, tuple[int, ...]]
    ) -> None:
        """Raises InputError unless the params have the kernels of this module."""
        leaves: dict[str, Any] = flatten_dict(dict(params), sep="/")
        found = {
            path.removesuffix("/kernel"): value.shape
            for path, value in leaves.items()
            if path.endswith("/kernel")
        }
        wrong = [f"{path} is missing" for path in sorted(kernels.keys() - found.keys())]
        wrong += [
            f"{path} is unknown" for path in sorted(found.keys() - kernels.keys())
        ]
        wrong += [
            f"the kernel of {path} is {list(found[path])}, not {list(shape)}"
            for path, shape in kernels.items()
            if found.get(path, shape) != shape
        ]
        if wrong:
            where = "/".join(self.path) or f"the {type(self).__name__}"
            raise InputError(f"the params do not fit {where}: {listed(wrong)}")

    def _average(self, old: jax.Array, new: jax.Array) -> jax.Array:
        return self.momentum * old + (1 - self.momentum) * new
