"""Expand, ReLU, shift and project: one Pallas kernel on a TPU, and its derivative.

The wide tensor between the two products never leaves the chip's vector memory: the
forward pass reads the narrow input once and writes the narrow output once, whatever the
expansion; the backward pass computes the wide rows again.

Inside, arrays are `[height, width, channels, batch]`, with 128 images in the lanes.
XLA stores NHWC arrays of few channels in that order on a TPU, so the transposes at both
ends move nothing.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from shiftjax.errors import InputError
from shiftjax.fast.tpu.backward import Gradients, backward
from shiftjax.fast.tpu.forward import forward
from shiftjax.fast.tpu.plan import LANES, VMEM_LIMIT, Plan, is_supported, moves
from shiftjax.shift import Size, Table, displace_p

Tree = TypeVar("Tree")


def definition(
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    table: Table,
    size: Size,
) -> jax.Array:
    """What the kernel computes, for XLA: `[batch, *size, features]`, float32."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    dot = functools.partial(jnp.dot, preferred_element_type=dtype)
    wide = dot(x, expand.astype(x.dtype)) + bias[None, None, None]
    wide = jax.nn.relu(wide).astype(x.dtype)
    wide = displace_p.bind(wide, table=table, stride=1, size=size, lowering=None)
    return dot(wide, project.astype(x.dtype))


def on_tpu(
    interpret: bool, kernel: Callable[..., Tree], other: Callable[..., Tree], *args: Any
) -> Tree:
    """Runs the kernel where the program is compiled for a TPU, else the other form.

    Known only when it is compiled: a program can be traced on a machine without a TPU.
    """
    if interpret:
        return kernel(*args)
    return lax.platform_dependent(*args, tpu=kernel, default=other)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def call(
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    table: Table,
    interpret: bool,
) -> jax.Array:
    """`shift_project` for any table of displacements, one row per wide channel."""
    size = (x.shape[1], x.shape[2])

    def kernel(x: jax.Array, *weights: jax.Array) -> jax.Array:
        x = x.transpose(1, 2, 3, 0)
        plan = Plan.make(x, project.shape[1], table, interpret)
        return forward(plan, x, *weights).transpose(3, 0, 1, 2)

    def other(x: jax.Array, *weights: Any) -> jax.Array:
        return definition(x, *weights, table=table, size=size).astype(x.dtype)

    return on_tpu(interpret, kernel, other, x, expand, bias, project)


def _call_forward(
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    table: Table,
    interpret: bool,
) -> tuple:
    y = call(x, expand, bias, project, table, interpret)
    return y, (x, expand, bias, project)


def _call_backward(
    table: Table, interpret: bool, residuals: Gradients, g: jax.Array
) -> Gradients:
    def kernel(g: jax.Array, x: jax.Array, *weights: jax.Array) -> Gradients:
        x, g = x.transpose(1, 2, 3, 0), g.transpose(1, 2, 3, 0)
        plan = Plan.make(x, g.shape[2], table, interpret)
        dx, *gradients = backward(plan, x, g, *weights)
        d_expand, d_bias, d_project = (
            gradient.astype(weight.dtype)
            for gradient, weight in zip(gradients, weights, strict=True)
        )
        return dx.transpose(3, 0, 1, 2), d_expand, d_bias, d_project

    def other(g: jax.Array, *inputs: jax.Array) -> Gradients:
        size = (g.shape[1], g.shape[2])
        function = functools.partial(definition, table=table, size=size)
        y, pull = jax.vjp(function, *inputs)
        return pull(g.astype(y.dtype))

    return on_tpu(interpret, kernel, other, g, *residuals)


call.defvjp(_call_forward, _call_backward)


def shift_project(
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    *,
    kernel_size: int = 3,
    dilation: int = 1,
    interpret: bool = False,
) -> jax.Array:
    """Expands, applies ReLU, shifts and projects, in one kernel on a TPU.

    `shift(relu(x @ expand + bias), kernel_size, dilation=dilation) @ project`, with
    the operands of products in the dtype of `x`, sums in float32, and gradients for all
    four arrays in reverse mode.

    Args:
      x: `[batch, height, width, channels]`, bfloat16 or float32.
      expand: `[channels, expanded]`, with BatchNorm folded in.
      bias: `[expanded]`.
      project: `[expanded, features]`.
      kernel_size: side K of the window of displacements.
      dilation: distance between neighbouring displacements, in pixels.
      interpret: whether to interpret the kernel's program, slowly; without it, it runs
        on a TPU, and elsewhere XLA compiles the formula above.

    Returns:
      `[batch, height, width, features]`, the dtype of `x`.

    Raises:
      InputError: if the shapes do not fit, or not `is_supported`.

    Example:
      >>> x = jnp.ones((128, 2, 2, 8))
      >>> expand, project = jnp.ones((8, 16)), jnp.ones((16, 8))
      >>> y = shift_project(x, expand, jnp.zeros(16), project, interpret=True)
      >>> y.shape, float(y[0, 0, 0, 0])  # at a corner, 5 of 16 channels read zeros
      ((128, 2, 2, 8), 88.0)
    """
    shapes = [x.shape, expand.shape, bias.shape, project.shape]
    wide = expand.shape[-1]
    if shapes[1:] != [(x.shape[-1], wide), (wide,), (wide, project.shape[-1])]:
        raise InputError(
            f"x, expand, bias and project have shapes {', '.join(map(str, shapes))}; "
            f"they need [batch, height, width, C], [C, E], [E] and [E, features]"
        )
    features = project.shape[1]
    if not is_supported(
        x.shape, expand.shape, features, kernel_size, dilation, x.dtype
    ):
        raise InputError(
            f"x {x.dtype.name} {list(x.shape)}, {wide} expanded channels and "
            f"{features} features: the kernel takes bfloat16 with channels in "
            f"multiples of 16, or float32 in multiples of 8, batches in multiples of "
            f"{LANES}, and rows that fit into {VMEM_LIMIT >> 20} MiB"
        )
    table = moves(wide, kernel_size, dilation)
    return call(x, expand, bias, project, table, interpret)
