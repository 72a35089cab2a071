"""The operation and the block in JAX, each alone, forward and backward."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

import shiftjax
from benchmarks.cases import Program
from benchmarks.jax_programs import compiled, is_queue, peak_bytes, random
from shiftjax.forms import FORMS
from shiftjax.layers import ConvNorm, ShiftConv
from shiftjax.planes import Planes
from shiftjax.unit import Unit


def make(function: Any, *arguments: Any) -> Program:
    """Makes a program of a function and its arguments."""
    program, memory = compiled(function, *arguments)
    return Program(
        lambda: program(*arguments),
        jax.block_until_ready,
        queued=is_queue(),
        memory_bytes=memory,
        peak_bytes=peak_bytes,
    )


def both(function: Any, arguments: tuple, g: Any) -> tuple[Any, Any]:
    """Returns a function's result and the gradients of all its arguments."""
    y, pull = jax.vjp(function, *arguments)
    return y, pull(g)


def copy(x: jax.Array) -> jax.Array:
    """Adds one: of less the compiler would make nothing."""
    return x + jnp.ones((), x.dtype)


def convolve(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """A convolution that keeps the size, `[batch, height, width, channels]`."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=numbers,
        feature_group_count=groups,
    )


def operation(
    kind: str,
    shape: Sequence[int],
    dtype: str,
    backward: bool,
    kernel_size: int = 3,
    lowering: str | None = None,
) -> Program:
    """Makes an operation on one tensor, and its gradients.

    Args:
      kind: "copy", "shift", "depthwise" or "dense".
      shape: `[batch, height, width, channels]` of input and result.
      dtype: of both.
      backward: whether gradients are taken, of input and kernel.
      kernel_size: side of the window.
      lowering: of the shift; None for the default.

    Returns:
      The program; a copy with `backward` copies two tensors.
    """
    x, channels = random(tuple(shape), dtype), shape[-1]
    if kind == "copy":
        if not backward:
            return make(copy, x)
        return make(lambda x, g: (copy(x), copy(g)), x, x * 2)
    if kind == "shift":
        table = shiftjax.displacements(channels, kernel_size)
        function: Any = functools.partial(
            shiftjax.displace, table=table, lowering=lowering
        )
        arguments: tuple = (x,)
    else:
        inputs, groups = (1, channels) if kind == "depthwise" else (channels, 1)
        kernel = random((kernel_size, kernel_size, inputs, channels), dtype)
        function = functools.partial(convolve, groups=groups)
        arguments = (x, kernel)
    if not backward:
        return make(function, *arguments)
    return make(functools.partial(both, function), arguments, x * 2)


class Block(Unit):
    """The ShiftResNet block with anything in its middle.

    1x1 convolution, BatchNorm, ReLU, the middle, 1x1 convolution, BatchNorm, ReLU; the
    input is added.

    Attributes:
      features: channels of input and output.
      expansion: E; the middle has `E * features` channels.
      kernel_size: side of its window.
      middle: "shift", "depthwise", "nothing"; or "dense", a dense convolution with
        BatchNorm and ReLU in the place of all that.
      lowering: of the shift.
    """

    features: int
    expansion: float
    kernel_size: int
    middle: str
    lowering: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the block to `[batch, height, width, features]`."""
        unit = functools.partial(self.unit, ConvNorm)
        if self.middle == "dense":
            return (
                nn.relu(unit(self.features, self.kernel_size, name="dense")(x, train))
                + x
            )
        wide = int(self.expansion * self.features)
        y = nn.relu(unit(wide, name="expand")(x, train))
        if self.middle == "shift":
            table = shiftjax.displacements(wide, self.kernel_size)
            y = shiftjax.displace(y, table, lowering=self.lowering)
        elif self.middle == "depthwise":
            kernel = self.param(
                "depthwise",
                self.kernel_init,
                (self.kernel_size, self.kernel_size, 1, wide),
                self.param_dtype,
            )
            y = convolve(y, kernel.astype(y.dtype), wide)
        return nn.relu(unit(self.features, name="project")(y, train)) + x


def block(
    middle: str,
    shape: Sequence[int],
    expansion: int,
    kernel_size: int,
    dtype: str,
    backward: bool,
    lowering: str | None = None,
) -> Program:
    """Makes a block: evaluated, or trained with all its gradients.

    Args:
      middle: of a `Block`; or "copy", of the input alone; or one of `FORMS`, for the
        library's own block in that form.
      shape: `[batch, height, width, channels]` of input and output.
      expansion: E.
      kernel_size: side of the window.
      dtype: what is computed in.
      backward: whether BatchNorm takes the batch's statistics, and gradients are taken
        of input and parameters.
      lowering: of the shift.
    """
    if middle == "copy":
        return operation("copy", shape, dtype, backward)
    x: Any = random(tuple(shape), dtype)
    common = {
        "features": shape[-1],
        "expansion": expansion,
        "kernel_size": kernel_size,
        "dtype": dtype,
    }
    module: Unit = Block(middle=middle, lowering=lowering, **common)
    if middle in FORMS:
        module = ShiftConv(form=middle, **common)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    if middle == "planes":  # as within a network: entered once, narrow ones in float32
        x = Planes.from_nhwc(x.astype("float32"), chunk=8)
    if not backward:
        return make(module.apply, variables, x)

    def apply(variables: Any, params: Any, x: Any) -> Any:
        now = variables | {"params": params}
        return module.apply(now, x, train=True, mutable=["batch_stats"])

    def train(variables: Any, x: Any, g: Any) -> Any:
        own = functools.partial(apply, variables)
        y, pull, updates = jax.vjp(own, variables["params"], x, has_aux=True)
        return y, updates, pull(g)

    y, _ = jax.eval_shape(apply, variables, variables["params"], x)
    g = jax.tree.map(lambda each: jnp.ones(each.shape, each.dtype), y)
    return make(train, variables, x, g)
