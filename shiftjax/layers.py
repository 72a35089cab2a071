"""Flax Linen modules built on the shift operation, and the modules they are made of.

Each works in any Linen network (in NNX through `flax.nnx.bridge`), takes NHWC arrays
and keeps Flax's field names. The `__call__` of a module is its reference
implementation; `shiftjax.fast.dispatch` chooses between it and faster implementations.
Within the networks of this package, `ConvNorm` and `ShiftConv` also take
`shiftjax.fast.cpu.Planes`.
"""

import functools
import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from shiftjax.errors import InputError, unknown_name
from shiftjax.fast.cpu import Planes
from shiftjax.fast.dispatch import REFERENCE, BlockOptions
from shiftjax.fast.pixels import average_pool
from shiftjax.module import Activations, Unit
from shiftjax.shift import positive, shift

SHORTCUTS = ("concat", "add")


class Shift(nn.Module):
    """The shift operation as a module: no parameters, no arithmetic.

    Attributes:
      kernel_size: side K of the window of displacements.
      strides: distance between the rows and columns kept, in pixels.
      dilation: distance between neighboring displacements, in pixels.

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


class ConvNorm(Unit):
    """A convolution without bias, followed by BatchNorm.

    Attributes:
      features: number of output channels.
      kernel_size: side of the window, odd; zero padding of half of it.
      strides: distance between the rows and columns kept, in pixels.
      depthwise: if True, each channel is convolved with its own kernel.

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

    kind: ClassVar[str] = "conv_norm"

    @nn.compact
    def __call__(self, x: Activations, train: bool = False) -> Activations:
        """Applies convolution and BatchNorm.

        Args:
          x: `[batch, height, width, channels]`, or planes.
          train: if True, BatchNorm uses, and averages, the statistics of the batch.

        Returns:
          `[batch, ceil(height / strides), ceil(width / strides), features]`.
        """
        strides = positive("strides", self.strides)
        if positive("kernel_size", self.kernel_size) % 2 == 0:
            raise InputError(f"kernel_size={self.kernel_size}: it must be odd")
        if self.depthwise and self.kernel_size == 1:
            raise InputError(
                "kernel_size=1: a depthwise convolution needs a kernel_size above 1"
            )
        groups = x.shape[-1] if self.depthwise else 1
        if positive("features", self.features) % groups:
            raise InputError(
                f"features={self.features}: a depthwise convolution of {groups} "
                f"channels needs a multiple of {groups}"
            )
        if (name := self.choose(x, train).name) != REFERENCE:
            shape = x.shape[-1] // groups, self.features
            if self.kernel_size > 1:
                shape = self.kernel_size, self.kernel_size, *shape
            options = {"strides": strides, "depthwise": self.depthwise}
            return self.run(name, x, train, {"conv": shape}, **options)
        assert not isinstance(x, Planes)
        if self.kernel_size == 1:
            kept = x[..., ::strides, ::strides, :]
            return self.norm("norm", train)(self.pointwise(self.features, "conv")(kept))
        y = self.conv(self.features, self.kernel_size, strides, "conv", groups)(x)
        return self.norm("norm", train)(y)


class ShiftConv(Unit):
    """The block of a CIFAR ShiftResNet, which replaces two 3x3 convolutions.

    The block is a 1x1 convolution, BatchNorm, ReLU, the shift, a 1x1 convolution (which
    keeps every strides-th row and column), BatchNorm and ReLU. Then the shortcut is
    added, without a ReLU after the sum. The shortcut is the input itself, or its 1x1
    convolution and BatchNorm if the number of features changes or there is a stride.

    Source: the paper's authors, https://github.com/alvinwan/shiftresnet-cifar.

    Attributes:
      features: number of output channels.
      kernel_size: side K of the window of displacements.
      strides: distance between the rows and columns kept, in pixels.
      dilation: distance between neighboring displacements, in pixels.
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

    kind: ClassVar[str] = "shift_block"

    @nn.compact
    def __call__(self, x: Activations, train: bool = False) -> Activations:
        """Applies the block.

        Args:
          x: `[batch, height, width, channels]`, or planes.
          train: if True, BatchNorm uses, and averages, the statistics of the batch.

        Returns:
          `[batch, ceil(height / strides), ceil(width / strides), features]`.

        Raises:
          InputError: if the expansion leaves no channel to shift.
        """
        wide = expanded(self.expansion, self.features)
        strides, channels = positive("strides", self.strides), x.shape[-1]
        # Not by the sizes: an image of one pixel keeps its size, whatever the stride.
        changes = strides > 1 or channels != self.features
        kernel_size, dilation = self.kernel_size, self.dilation
        window = {"kernel_size": kernel_size, "strides": strides, "dilation": dilation}
        block = BlockOptions(wide, self.features, self.promoted_dtype(x), **window)
        if (name := self.choose(x, train, block).name) != REFERENCE:
            kernels = {"expand/conv": (channels, wide)}
            kernels["project/conv"] = wide, self.features
            if changes:
                kernels["shortcut/conv"] = channels, self.features
            return self.run(name, x, train, kernels, **window)
        assert not isinstance(x, Planes)
        unit = functools.partial(self.unit, ConvNorm)
        y = nn.relu(unit(wide, name="expand")(x, train))
        y = Shift(kernel_size, strides, dilation, name="shift")(y)
        y = nn.relu(unit(self.features, name="project")(y, train))
        skip = x
        if changes:
            skip = unit(self.features, strides=strides, name="shortcut")(x, train)
        return y + skip.astype(y.dtype)


class CSC(Unit):
    """Conv-shift-conv, the module of the ImageNet networks (paper, section 3.2).

    The module is BatchNorm, ReLU, a 1x1 convolution, the shift, BatchNorm, ReLU and a
    1x1 convolution (which keeps every strides-th row and column); then the input is
    added. If the number of features changes or there is a stride, the shortcut is the
    input, 3x3 average-pooled with the stride. It is either concatenated to a branch of
    the missing channels, or padded with zeros and added to a branch of all channels.

    Attributes:
      features: number of output channels.
      kernel_size: side K of the window of displacements.
      strides: distance between the rows and columns kept, in pixels.
      dilation: distance between neighboring displacements, in pixels.
      expansion: E; the shift moves `int(E * n)` channels for a branch of n.
      shortcut: the shortcut of a module that changes the shape, "concat" or "add".

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
    shortcut: str = "concat"

    shift_first: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the module.

        Args:
          x: `[batch, height, width, channels]`.
          train: if True, BatchNorm uses, and averages, the statistics of the batch.

        Returns:
          `[batch, ceil(height / strides), ceil(width / strides), features]`.

        Raises:
          InputError: if there are fewer features than input channels, or an option is
            not a positive integer.
          UnknownNameError: if there is no such shortcut.
        """
        self.choose(x, train)  # raises for an unknown name
        strides = positive("strides", self.strides)
        same = x.shape[-1] == self.features and strides == 1
        missing = self.features - x.shape[-1]
        if self.shortcut not in SHORTCUTS:
            raise unknown_name("shortcut", self.shortcut, SHORTCUTS)
        branch = missing if self.shortcut == "concat" and not same else self.features
        if branch < 1 or missing < 0:
            raise InputError(
                f"features={self.features}: a {type(self).__name__} that changes the "
                f"shape needs more features than its {x.shape[-1]} input channels"
            )
        kernel_size, dilation = self.kernel_size, self.dilation
        y = x
        if self.shift_first:
            y = Shift(kernel_size, 1, dilation, name="first_shift")(y)
        y = nn.relu(self.norm("expand_norm", train)(y))
        y = self.pointwise(expanded(self.expansion, branch), "expand")(y)
        y = Shift(kernel_size, 1, dilation, name="shift")(y)
        y = nn.relu(self.norm("project_norm", train)(y))  # at full resolution
        y = self.pointwise(branch, "project")(y[..., ::strides, ::strides, :])
        if same:
            return y + x.astype(y.dtype)
        pooled = average_pool(x, strides).astype(y.dtype)
        if self.shortcut == "concat":
            return jnp.concatenate([y, pooled], -1)
        return y + jnp.pad(pooled, [(0, 0)] * 3 + [(0, missing)])


class SC2(CSC):
    """Shift-conv-shift-conv: a `CSC` module that begins with a second shift.

    The receptive field is larger, for no parameters and no multiply-adds.

    Example:
      >>> x = jnp.ones((1, 8, 8, 16))
      >>> module = SC2(16, expansion=2)
      >>> variables = module.init(jax.random.key(0), x)
      >>> module.apply(variables, x).shape
      (1, 8, 8, 16)
    """

    shift_first: ClassVar[bool] = True


def expanded(expansion: float, features: int) -> int:
    """Returns the number of shifted channels, or raises if it is zero."""
    positive("features", features)
    try:
        width = int(expansion * features) if math.isfinite(expansion) else 0
    except TypeError as error:
        raise InputError(f"expansion={expansion!r}: it must be a number") from error
    if width < 1:
        raise InputError(
            f"expansion={expansion}: {features} features leave no channel to shift; "
            f"it must be at least 1/{features}"
        )
    return width
