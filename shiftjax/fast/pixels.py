"""Operations on channels-last arrays whose gradients XLA is slow to compute on a CPU.

Each has the same program everywhere but for its derivative, which is computed in
another way on a CPU. On other platforms that way would be slower: it needs more memory
traffic, or moves an array whose height or width is spread over devices.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def product_of_pixels(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None
) -> jax.Array:
    """Multiplies the last axis by a matrix, as `jax.lax.dot_general`.

    The gradient of the matrix is a product that sums over all pixels. XLA for CPUs
    first transposes an input that has several axes of pixels, one element at a time,
    which takes several times as long as the product. It does not if they are one axis.

    Args:
      x: `[..., in]`.
      kernel: `[in, out]`.
      dimension_numbers: those of this product.
      precision: see `jax.lax.dot_general`.

    Returns:
      `[..., out]`.
    """
    return lax.dot_general(x, kernel, dimension_numbers, precision=precision)


@functools.partial(product_of_pixels.defjvp, symbolic_zeros=True)
def _derivative(
    dimension_numbers: Any, precision: Any, inputs: tuple, tangents: tuple
) -> tuple[jax.Array, Any]:
    (x, kernel), (dx, d_kernel) = inputs, tangents
    product = functools.partial(
        product_of_pixels, dimension_numbers=dimension_numbers, precision=precision
    )
    # Not `product`: policies of `jax.checkpoint` know a product by its primitive.
    y = lax.dot_general(x, kernel, dimension_numbers, precision=precision)
    terms = []
    if not isinstance(dx, SymbolicZero):
        terms.append(product(dx, kernel))
    if not isinstance(d_kernel, SymbolicZero):
        flat = functools.partial(_flat_product, precision=precision)
        split = any(axis is not None for axis in jax.typeof(x).sharding.spec[1:])
        own = product if split else flat
        terms.append(lax.platform_dependent(x, d_kernel, cpu=own, default=product))
    return y, functools.reduce(jax.numpy.add, terms)


def _flat_product(x: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    """Multiplies all pixels, as the rows of one matrix, by a matrix."""
    rows = x.reshape(-1, x.shape[-1])
    y = lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), precision)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def average_pool(x: jax.Array, strides: int) -> jax.Array:
    """Averages windows of 3x3 pixels, with zeros beyond the border.

    On a CPU the derivative averages the columns and then the rows, which takes a tenth
    of the time in the backward pass.

    Args:
      x: `[batch, height, width, channels]`.
      strides: distance between the rows and columns kept, in pixels.

    Returns:
      `[batch, ceil(height / strides), ceil(width / strides), channels]`.
    """
    return _average(x, (3, 3), strides)


@average_pool.defjvp
def _average_derivative(strides: int, inputs: tuple, tangents: tuple) -> tuple:
    def in_turns(x: jax.Array) -> jax.Array:
        return _average(_average(x, (3, 1), strides), (1, 3), strides)

    def at_once(x: jax.Array) -> jax.Array:
        return _average(x, (3, 3), strides)

    derivative = lax.platform_dependent(*tangents, cpu=in_turns, default=at_once)
    return average_pool(*inputs, strides), derivative


def _average(x: jax.Array, window: tuple[int, int], strides: int) -> jax.Array:
    steps = tuple(strides if n > 1 else 1 for n in window)
    padding: Any = [(n // 2, n // 2) for n in window]
    return nn.avg_pool(x, window, steps, padding)
