"""Flax Linen modules built on the shift operation, and the units beside them.

Each works in any Linen network (in NNX through `flax.nnx.bridge`), takes NHWC arrays,
and keeps flax's field names. What stands in a module's `__call__` is its definition;
`form` names a faster one of the same function (see `shiftjax.forms`). Within the
networks of this package, `ConvNorm` and `ShiftConv` also take `shiftjax.planes.Planes`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from shiftjax import gpu, planes, tpu
from shiftjax.errors import InputError
from shiftjax.forms import FORMS, resolve
from shiftjax.planes import Planes
from shiftjax.shift import positive, shift

Activations = jax.Array | Planes
SHARED = (
    "axis_name",
    "momentum",
    "epsilon",
    "dtype",
    "param_dtype",
    "kernel_init",
    "form",
)

he_normal = nn.initializers.he_normal()


class Shift(nn.Module):
    """The shift operation as a module: no parameters, no arithmetic.

    Attributes:
      kernel_size: side K of the window of displacements.
      strides: distance between the rows and columns kept, in pixels.
      dilation: distance between neighbouring displacements, in pixels.

    Example:
      >>> x = jnp.ones((1, 8, 8, 18))
      >>> Shift(kernel_size=3, strides=2).apply({}, x).shape
      (1, 4, 4, 18)
    """

    kernel_size: int = 3
    strides: int = 1
    dilation: int = 1

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shifts `[..., height, width, channels]`; see `shiftjax.shift`."""
        return shift(x, self.kernel_size, dilation=self.dilation, stride=self.strides)


class Unit(nn.Module, kw_only=True):
    """The fields that all units share, and the layers made from them.

    Attributes:
      axis_name: axis of the replicas over which BatchNorm's statistics are taken, or
        None for each replica's own.
      momentum: how much of BatchNorm's running statistics a training step keeps.
      epsilon: added to BatchNorm's variances.
      dtype: what is computed in, or None for the promoted dtype of input and params.
      param_dtype: what the params are stored in.
      kernel_init: initializer of the kernels.
      form: how it is computed, one of `shiftjax.forms.FORMS` or "auto"; the plain form
        where it has no other for its input, and when variables are initialised.
    """

    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = he_normal
    form: str = "plain"

    forms: ClassVar[tuple[str, ...]] = ("plain",)  # those that it has

    def form_of(self, x: Activations) -> str:
        """Returns the form in which the input is computed."""
        if isinstance(x, Planes):
            return "planes"
        form = resolve(self.form, x.shape, self.forms)
        return "plain" if self.is_initializing() else form

    def unit(self, kind: type, *args: Any, **options: Any) -> Any:
        """Makes a part of this unit, with the fields that all share."""
        shared = {name: getattr(self, name) for name in SHARED}
        return kind(*args, **(shared | options))

    def pointwise(self, features: int, name: str) -> nn.Dense:
        """A 1x1 convolution without bias, as a product: kernel `[in, out]`."""
        return nn.Dense(
            features,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            name=name,
        )

    def norm(self, name: str, train: bool) -> nn.BatchNorm:
        """BatchNorm with the batch's statistics in training, else the running ones."""
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

    def on_planes(
        self, function: Callable[..., Any], x: Activations, train: bool, **options: int
    ) -> Activations:
        """Runs the form on planes; an NHWC array enters and leaves them."""
        if isinstance(x, Planes):
            return self.run(function, x, train, **options)
        return self.run(function, Planes.from_nhwc(x), train, **options).to_nhwc()

    def run(
        self, function: Callable[..., Any], x: Any, train: bool, **options: int
    ) -> Any:
        """Runs another form of this module, with its variables."""
        stats = self.variables["batch_stats"]
        y, batch_stats = function(
            self.variables["params"],
            None if train else stats,
            x,
            dtype=self.dtype,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            **options,
        )
        for name, new in batch_stats.items():
            average = jax.tree.map(self._average, dict(stats[name]), new)
            self.put_variable("batch_stats", name, average)
        return y

    def _promoted(self, x: jax.Array) -> Any:
        return self.dtype or jnp.promote_types(x.dtype, self.param_dtype)

    def _average(self, old: jax.Array, new: jax.Array) -> jax.Array:
        return self.momentum * old + (1 - self.momentum) * new


class ConvNorm(Unit):
    """A convolution without bias, and BatchNorm.

    Attributes:
      features: number of output channels.
      kernel_size: side of the window, odd; zero padding of half of it.
      strides: distance between the rows and columns kept, in pixels.
      depthwise: whether each channel has its own kernel and sees no other.

    Example:
      >>> x = jnp.ones((2, 8, 8, 3))
      >>> variables = ConvNorm(16, kernel_size=3).init(jax.random.key(0), x)
      >>> jax.tree.map(jnp.shape, variables["params"])
      {'conv': {'kernel': (3, 3, 3, 16)}, 'norm': {'bias': (16,), 'scale': (16,)}}
      >>> variables = ConvNorm(16).init(jax.random.key(0), x)
      >>> variables["params"]["conv"]["kernel"].shape  # a 1x1 convolution is a product
      (3, 16)
    """

    features: int
    kernel_size: int = 1
    strides: int = 1
    depthwise: bool = False

    forms: ClassVar[tuple[str, ...]] = ("plain", "planes")

    @nn.compact
    def __call__(self, x: Activations, train: bool = False) -> Activations:
        """Applies convolution and BatchNorm.

        Args:
          x: `[batch, height, width, channels]`, or planes.
          train: whether to use, and average, the batch's statistics.

        Returns:
          `[batch, ceil(height / strides), ceil(width / strides), features]`.
        """
        strides = positive("strides", self.strides)
        if positive("kernel_size", self.kernel_size) % 2 == 0:
            raise InputError(f"kernel_size={self.kernel_size}: it must be odd")
        if self.depthwise and (self.kernel_size == 1 or isinstance(x, Planes)):
            raise InputError(
                f"depthwise=True: a depthwise convolution needs NHWC arrays and a "
                f"kernel_size above 1, not {self.kernel_size} on {type(x).__name__}"
            )
        if self.form_of(x) == "planes" and not self.depthwise:
            return self.on_planes(planes.conv_norm, x, train, strides=strides)
        assert not isinstance(x, Planes)  # which was refused, or has returned
        positive("features", self.features)
        if self.kernel_size == 1:
            kept = x[..., ::strides, ::strides, :]
            return self.norm("norm", train)(self.pointwise(self.features, "conv")(kept))
        half = self.kernel_size // 2
        y = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            strides,
            padding=[(half, half), (half, half)],
            feature_group_count=x.shape[-1] if self.depthwise else 1,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            name="conv",
        )(x)
        return self.norm("norm", train)(y)


class ShiftConv(Unit):
    """The block of a CIFAR ShiftResNet, in the place of two 3x3 convolutions.

    1x1 convolution, BatchNorm, ReLU, shift, 1x1 convolution (which keeps every
    strides-th row and column), BatchNorm, ReLU; then the shortcut is added, with no
    ReLU after the sum. The shortcut is the input itself, or its 1x1 convolution and
    BatchNorm where the shape changes.

    Source: the paper's authors, https://github.com/alvinwan/shiftresnet-cifar.

    Attributes:
      features: number of output channels.
      kernel_size: side K of the window of displacements.
      strides: distance between the rows and columns kept, in pixels.
      dilation: distance between neighbouring displacements, in pixels.
      expansion: E; the shift moves `int(E * features)` channels.

    Example:
      >>> x = jnp.ones((2, 8, 8, 16))
      >>> block = ShiftConv(16, expansion=3)
      >>> variables = block.init(jax.random.key(0), x)
      >>> jax.tree.map(jnp.shape, variables["params"]["expand"]["conv"])
      {'kernel': (16, 48)}
      >>> y, updates = block.apply(variables, x, train=True, mutable=["batch_stats"])
      >>> y.shape, sorted(updates["batch_stats"])
      ((2, 8, 8, 16), ['expand', 'project'])
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    dilation: int = 1
    expansion: float = 1.0

    forms: ClassVar[tuple[str, ...]] = FORMS

    @nn.compact
    def __call__(self, x: Activations, train: bool = False) -> Activations:
        """Applies the block.

        Args:
          x: `[batch, height, width, channels]`, or planes.
          train: whether to use, and average, the batch's statistics.

        Returns:
          `[batch, ceil(height / strides), ceil(width / strides), features]`.

        Raises:
          InputError: if the expansion leaves no channel to shift.
        """
        kernel_size, strides, dilation = self.kernel_size, self.strides, self.dilation
        wide = _expanded(self.expansion, self.features)
        window = {"kernel_size": kernel_size, "strides": strides, "dilation": dilation}
        form = self.form_of(x)
        if form == "planes":
            return self.on_planes(planes.shift_block, x, train, **window)
        assert not isinstance(x, Planes)  # whose form is planes
        kernels = gpu if jax.default_backend() == "gpu" else tpu
        if form == "kernel" and kernels.is_faster(
            x.shape, wide, self.features, self._promoted(x), **window
        ):
            return self.run(kernels.shift_block, x, train, **window)
        unit = functools.partial(self.unit, ConvNorm)
        y = nn.relu(unit(wide, name="expand")(x, train))
        y = Shift(kernel_size, strides, dilation, name="shift")(y)
        y = nn.relu(unit(self.features, name="project")(y, train))
        skip = x
        if x.shape != y.shape:
            skip = unit(self.features, strides=strides, name="shortcut")(x, train)
        return y + skip.astype(y.dtype)


class CSC(Unit):
    """Conv-shift-conv, the module of the ImageNet networks (paper, section 3.2).

    Before activation: BatchNorm, ReLU, 1x1 convolution, shift, BatchNorm, ReLU, 1x1
    convolution (which keeps every strides-th row and column); the input is added. A
    module with another number of features or a stride appends the input, 3x3
    average-pooled with the stride, to a branch of the channels that are missing.

    Attributes:
      features: number of output channels.
      kernel_size: side K of the window of displacements.
      strides: distance between the rows and columns kept, in pixels.
      dilation: distance between neighbouring displacements, in pixels.
      expansion: E; the shift moves `int(E * n)` channels for a branch of n.

    Example:
      >>> x = jnp.ones((1, 8, 8, 16))
      >>> variables = CSC(32, strides=2, expansion=4).init(jax.random.key(0), x)
      >>> variables["params"]["project"]["kernel"].shape  # 32 - 16 channels, E = 4
      (64, 16)
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    dilation: int = 1
    expansion: float = 1.0
    shift_first: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the module.

        Args:
          x: `[batch, height, width, channels]`.
          train: whether to use, and average, the batch's statistics.

        Returns:
          `[batch, ceil(height / strides), ceil(width / strides), features]`.

        Raises:
          InputError: if there are fewer features than input channels.
        """
        self.form_of(x)  # has one form only; refuses an unknown name
        same = x.shape[-1] == self.features and positive("strides", self.strides) == 1
        branch = self.features if same else self.features - x.shape[-1]
        if branch < 1:
            raise InputError(
                f"features={self.features}: a {type(self).__name__} that changes the "
                f"shape needs more features than its {x.shape[-1]} input channels"
            )
        kernel_size, strides, dilation = self.kernel_size, self.strides, self.dilation
        y = x
        if self.shift_first:
            y = Shift(kernel_size, 1, dilation, name="first_shift")(y)
        y = nn.relu(self.norm("expand_norm", train)(y))
        y = self.pointwise(_expanded(self.expansion, branch), "expand")(y)
        y = Shift(kernel_size, 1, dilation, name="shift")(y)
        y = nn.relu(self.norm("project_norm", train)(y))  # of the full resolution
        y = self.pointwise(branch, "project")(y[..., ::strides, ::strides, :])
        if same:
            return y + x.astype(y.dtype)
        pooled = nn.avg_pool(
            x,
            (3, 3),
            (strides, strides),
            [(1, 1), (1, 1)],  # pyright: ignore[reportArgumentType]
        )
        return jnp.concatenate([y, pooled.astype(y.dtype)], -1)


class SC2(CSC):
    """Shift-conv-shift-conv: a `CSC` module that begins with a second shift.

    A larger receptive field for no parameters and no multiply-adds.

    Example:
      >>> x = jnp.ones((1, 8, 8, 16))
      >>> module = SC2(16, expansion=2)
      >>> variables = module.init(jax.random.key(0), x)
      >>> module.apply(variables, x).shape
      (1, 8, 8, 16)
    """

    shift_first: ClassVar[bool] = True


def _expanded(expansion: float, features: int) -> int:
    """Returns the width of the shifted tensor, or raises if there is none."""
    positive("features", features)
    width = int(expansion * features) if math.isfinite(expansion) else 0
    if width < 1:
        raise InputError(
            f"expansion={expansion}: {features} features leave no channel to shift; "
            f"it must be at least 1/{features}"
        )
    return width
