"""The block in JAX: every implementation, without its shift, with convolutions."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import shiftjax
from benchmarks.cases import Program
from benchmarks.jax_operations import convolve, jax_operation
from benchmarks.jax_programs import Traced, make_program, random
from shiftjax.fast import gpu
from shiftjax.fast.cpu import Planes
from shiftjax.fast.dispatch import NAMES
from shiftjax.layers import ConvNorm, ShiftConv
from shiftjax.module import Unit


class Block(Unit):
    """The ShiftResNet block with an exchangeable middle.

    The block is a 1x1 convolution, BatchNorm, ReLU, the middle, a 1x1 convolution,
    BatchNorm and ReLU; then the input is added.

    Attributes:
      features: channels of the output.
      expansion: E; the middle has `E * features` channels.
      kernel_size: side of the window of the middle.
      middle: "shift", "depthwise", "nothing"; or "dense", which replaces the whole
        branch by a dense convolution, BatchNorm and ReLU.
      lowering: lowering of the shift.
      strides: distance between the rows and columns kept, in pixels.
    """

    features: int
    expansion: float
    kernel_size: int
    middle: str
    lowering: str | None = None
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the block to `[batch, height, width, channels]`."""
        unit, strides = functools.partial(self.unit, ConvNorm), self.strides
        skip = x
        if x.shape[-1] != self.features or strides > 1:
            skip = unit(self.features, 1, strides, name="shortcut")(x, train)
        if self.middle == "dense":
            dense = unit(self.features, self.kernel_size, strides, name="dense")
            return nn.relu(dense(x, train)) + skip
        wide = int(self.expansion * self.features)
        y = nn.relu(unit(wide, name="expand")(x, train))
        if self.middle == "shift":
            table = shiftjax.displacements(wide, self.kernel_size)
            y = shiftjax.displace(y, table, stride=strides, lowering=self.lowering)
        elif self.middle == "depthwise":
            kernel = self.param(
                "depthwise",
                self.kernel_init,
                (self.kernel_size, self.kernel_size, 1, wide),
                self.param_dtype,
            )
            y = convolve(y, kernel.astype(y.dtype), wide, strides)
        else:
            y = y[:, ::strides, ::strides]
        return nn.relu(unit(self.features, name="project")(y, train)) + skip


def fold_shift(project: jax.Array, kernel_size: int) -> jax.Array:
    """Folds shift and projection into a kernel `[K, K, expanded, features]`."""
    moves = shiftjax.displacements(len(project), kernel_size) + kernel_size // 2
    taps = np.zeros((kernel_size, kernel_size, len(project)), np.float32)
    taps[moves[:, 0], moves[:, 1], np.arange(len(project))] = 1
    return jnp.asarray(taps)[..., None] * project


def _shift_project_without_kernel(
    lowering: str,
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    *,
    kernel_size: int,
    strides: int,
    dilation: int,
) -> jax.Array:
    """Computes the same as `shiftjax.fast.gpu.shift_project`, without a kernel.

    Args:
      lowering: lowering of the shift; or "folded", one convolution for shift and
        projection.
      x: `[batch, height, width, channels]`.
      expand: `[channels, expanded]`.
      bias: `[expanded]`.
      project: `[expanded, features]`.
      kernel_size: side of the window of displacements.
      strides: distance between the rows and columns kept, in pixels.
      dilation: dilation of the displacements; 1.
    """
    wide = jax.nn.relu(x @ expand.astype(x.dtype) + bias.astype(x.dtype))
    if lowering == "folded":
        kernel = fold_shift(project, kernel_size).astype(x.dtype)
        return convolve(wide, kernel, strides=strides)
    table = shiftjax.displacements(len(project), kernel_size, dilation=dilation)
    wide = shiftjax.displace(wide, table, stride=strides, lowering=lowering)
    return wide @ project.astype(x.dtype)


def module_of(
    middle: str,
    features: int,
    lowering: str | None,
    sizes: Mapping[str, Any],
    **options: Any,
) -> tuple[Unit, Callable[[Any, Any, bool], Any]]:
    """Returns the module, and its function of variables, x and train."""
    if middle not in ("narrow", "gpu"):
        module: Unit = (
            ShiftConv(features, implementation=middle, **options)
            if middle in NAMES
            else Block(features, middle=middle, lowering=lowering, **options)
        )
        return module, applied(module)

    block = ShiftConv(features, implementation="reference", **options)
    between: Any = functools.partial(
        _shift_project_without_kernel, lowering or "select"
    )
    if middle == "gpu":
        own = gpu.Sizes(**sizes) if sizes else None
        between = functools.partial(gpu.shift_project, sizes=own)

    def apply_narrow(variables: Any, x: Any, train: bool) -> Any:
        y, stats = gpu.shift_block(
            variables["params"],
            None if train else variables["batch_stats"],
            x,
            kernel_size=block.kernel_size,
            strides=block.strides,
            dilation=1,
            dtype=block.dtype,
            epsilon=block.epsilon,
            axis_name=None,
            middle=between,
        )
        return (y, stats) if train else y

    return block, apply_narrow


def trained(apply: Callable[[Any, Any, bool], Any]) -> Callable[..., Any]:
    """Returns a function for output, statistics and gradients of params and x."""

    def both(variables: Any, x: Any, g: Any) -> Any:
        def of_params(params: Any, x: Any) -> Any:
            return apply(variables | {"params": params}, x, True)

        y, pull, stats = jax.vjp(of_params, variables["params"], x, has_aux=True)
        return y, stats, pull(g)

    return both


def applied(module: nn.Module) -> Callable[[Any, Any, bool], Any]:
    """Returns the application of a module, a function of variables, x and train."""

    def apply(variables: Any, x: Any, train: bool) -> Any:
        if not train:
            return module.apply(variables, x)
        return module.apply(variables, x, train=True, mutable=["batch_stats"])

    return apply


def traced_block(
    middle: str,
    shape: Sequence[int],
    expansion: int,
    kernel_size: int,
    dtype: str,
    backward: bool,
    strides: int = 1,
    lowering: str | None = None,
    sizes: Mapping[str, Any] | None = None,
    train: bool = False,
) -> Traced:
    """Returns a block in evaluation, or in training with all gradients.

    Args:
      middle: middle of a `Block`; or one of `NAMES`, an implementation of the library;
        or for the block for GPUs, "narrow" without a kernel, or "gpu" for the kernel.
      shape: `[batch, height, width, channels]` of the input.
      expansion: E.
      kernel_size: side of the window.
      dtype: dtype of the computation.
      backward: if True, also compute gradients of input and parameters.
      strides: strides of the shift; the output has `strides * channels` features.
      lowering: lowering of the shift.
      sizes: fields of `shiftjax.fast.gpu.Sizes`, other than its defaults.
      train: if True, BatchNorm uses the batch's statistics, also without `backward`.

    Returns:
      The function, and a function that makes its arguments.
    """
    module, apply = module_of(
        middle,
        shape[-1] * strides,
        lowering,
        sizes or {},
        expansion=expansion,
        kernel_size=kernel_size,
        strides=strides,
        dtype=dtype,
    )

    def arguments() -> tuple:
        x: Any = random(tuple(shape), dtype)
        variables = module.init(jax.random.key(0), x)
        if middle == "cpu":  # as within a network: converted once, narrow in float32
            x = Planes.from_nhwc(x.astype("float32"), chunk=8)
        return variables, x

    def forward(variables: Any, x: Any) -> Any:
        return apply(variables, x, train)

    def with_cotangent() -> tuple:
        variables, x = arguments()
        y, _ = jax.eval_shape(lambda *each: apply(each[0], each[1], True), variables, x)
        g = jax.tree.map(lambda each: jnp.ones(each.shape, each.dtype), y)
        return variables, x, g

    return (trained(apply), with_cotangent) if backward else (forward, arguments)


def jax_block(copies: int = 1, **options: Any) -> Program:
    """Makes the program of a block.

    Args:
      copies: number of inputs of a call.
      **options: options of `traced_block`; the middle "copy" only copies the input.
    """
    if options["middle"] == "copy":
        names = ("shape", "dtype", "backward")
        own = {name: options[name] for name in names}
        return jax_operation(copies, kind="copy", **own)
    return make_program(traced_block(**options), copies)
