"""Matrix products and convolutions of planes.

XLA gives a plain product to YNNPACK, and one with a transposed operand to Eigen, which
is two to three times slower at these skinny shapes: the forms below stay plain.
"""

import jax
import jax.numpy as jnp
from jax import lax

from shiftjax.planes.layout import rows


def dot(a: jax.Array, b: jax.Array, b_axis: int = 0) -> jax.Array:
    """Contracts the last axis of `a` with `b_axis` of `b`, adding in float32 or better.

    Args:
      a: `[m, k]`.
      b: `[k, n]`, or `[n, k]` with `b_axis=1`.
      b_axis: the contracted axis of `b`.

    Returns:
      `[m, n]`, float32 also for bfloat16 operands.
    """
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    axes = (((1,), (b_axis,)), ((), ()))
    return lax.dot_general(a, b, axes, preferred_element_type=dtype)


@jax.custom_vjp
def pointwise(kernel: jax.Array, bias: jax.Array | None, x: jax.Array) -> jax.Array:
    """A 1x1 convolution.

    Args:
      kernel: `[in, out]`.
      bias: `[out]` or None.
      x: `[in, P]`, in the dtype to multiply in.

    Returns:
      `[out, P]`, float32 or better.
    """
    if bias is not None:  # one more input, of ones, instead of a pass over the output
        kernel = jnp.concatenate([kernel, bias[None]])
        x = jnp.concatenate([x, jnp.ones_like(x[:1])])
    # The barrier keeps the (small) transpose apart: else it is folded into the product.
    return dot(lax.optimization_barrier(kernel.T).astype(x.dtype), x)


PointwiseInputs = tuple[jax.Array, jax.Array | None, jax.Array]


def _pointwise_forward(
    kernel: jax.Array, bias: jax.Array | None, x: jax.Array
) -> tuple[jax.Array, PointwiseInputs]:
    return pointwise(kernel, bias, x), (kernel, bias, x)


def _pointwise_backward(inputs: PointwiseInputs, g: jax.Array) -> PointwiseInputs:
    kernel, bias, x = inputs
    g = g.astype(x.dtype)
    dx = dot(kernel.astype(x.dtype), g).astype(x.dtype)
    d_bias = None if bias is None else g.sum(1, dtype=bias.dtype)
    return _weight_gradient(x, g).astype(kernel.dtype), d_bias, dx


def _weight_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """From x `[in, P]` and g `[out, P]`: `[in, out]`, the longer side on the left."""
    if x.shape[0] >= g.shape[0]:
        return dot(x, g, 1)
    return lax.optimization_barrier(dot(g, x, 1)).T  # else XLA swaps the operands back


pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def conv(
    kernel: jax.Array, bias: jax.Array | None, x: jax.Array, *, strides: int = 1
) -> jax.Array:
    """A convolution with an odd window and zero padding of half the window.

    Args:
      kernel: `[K, K, in, out]`, or `[in, out]` for K = 1.
      bias: `[out]` or None.
      x: `[in, chunks, height, width, n]`, in the dtype to multiply in.
      strides: distance between the rows and columns kept, in pixels.

    Returns:
      `[out, chunks, ceil(height / strides), ceil(width / strides), n]`.
    """
    size, (height, width) = len(kernel) if kernel.ndim == 4 else 1, x.shape[2:4]
    half = size // 2
    padded = jnp.pad(x, ((0, 0), (0, 0), (half, half), (half, half), (0, 0)))
    taps = [
        padded[:, :, i : i + height : strides, j : j + width : strides]
        for i in range(size)
        for j in range(size)
    ]
    columns = rows(jnp.concatenate(taps))
    out = pointwise(kernel.reshape(len(columns), -1), bias, columns)
    return out.reshape(-1, *taps[0].shape[1:])
