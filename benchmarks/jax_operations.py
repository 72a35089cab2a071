"""The operation by itself in JAX, forward and backward."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import shiftjax
from benchmarks.cases import Program
from benchmarks.jax_programs import Traced, make_program, random


def both(function: Any, arguments: tuple, g: Any) -> tuple[Any, Any]:
    """Returns a function's result and the gradients of all its arguments."""
    y, pull = jax.vjp(function, *arguments)
    return y, pull(g)


def copy(x: jax.Array) -> jax.Array:
    """Adds one, because the compiler would remove a plain copy."""
    return x + jnp.ones((), x.dtype)


def convolve(
    x: jax.Array, kernel: jax.Array, groups: int = 1, strides: int = 1
) -> jax.Array:
    """Convolves `[batch, height, width, channels]`, padded by half of the window."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        [(size // 2, size // 2) for size in kernel.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def traced_operation(
    kind: str,
    shape: Sequence[int],
    dtype: str,
    backward: bool,
    kernel_size: int = 3,
    lowering: str | None = None,
) -> Traced:
    """Returns an operation on one tensor, and its gradients.

    Args:
      kind: "copy", "shift", "depthwise" or "dense".
      shape: `[batch, height, width, channels]` of input and result.
      dtype: dtype of both.
      backward: if True, also compute gradients of input and kernel.
      kernel_size: side of the window.
      lowering: lowering of the shift; None for the default.

    Returns:
      The function, and a function that makes its arguments; a copy with `backward`
      copies two tensors.
    """
    channels = shape[-1]
    inputs, groups = (1, channels) if kind == "depthwise" else (channels, 1)

    def arguments() -> tuple:
        x = random(tuple(shape), dtype)
        if kind in ("copy", "shift"):
            return (x,)
        return x, random((kernel_size, kernel_size, inputs, channels), dtype)

    def with_cotangent() -> tuple:
        inputs = arguments()
        return inputs, 2 * inputs[0]

    if kind == "copy":
        function: Any = copy
    elif kind == "shift":
        table = shiftjax.displacements(channels, kernel_size)
        function = functools.partial(shiftjax.displace, table=table, lowering=lowering)
    else:
        function = functools.partial(convolve, groups=groups)
    if not backward:
        return function, arguments
    if kind == "copy":
        return (lambda x, g: (copy(*x), copy(g))), with_cotangent
    return functools.partial(both, function), with_cotangent


def jax_operation(copies: int = 1, **options: Any) -> Program:
    """Makes the program of an operation; the facts of a copy have the bytes moved.

    Args:
      copies: number of inputs of a call.
      **options: options of `traced_operation`.
    """
    facts = {}
    if options["kind"] == "copy":
        size = jnp.dtype(options["dtype"]).itemsize
        tensors = 2 * (1 + options["backward"])  # read and written
        facts["bytes"] = tensors * size * math.prod(options["shape"])
    return make_program(traced_operation(**options), copies, **facts)
