"""Matrix products and convolutions of planes.

XLA compiles a product to YNNPACK, but one with a transposed operand to Eigen, which is
two to three times slower for these skinny shapes. The functions avoid transposes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from shiftjax.fast.cpu.layout import rows

IMAGE_CHANNELS = 4  # the largest number for which `windows` is faster


def dot(a: jax.Array, b: jax.Array, b_axis: int = 0) -> jax.Array:
    """Contracts the last axis of `a` with `b_axis` of `b`, adding in float32 or wider.

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
def pointwise(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """Computes a 1x1 convolution.

    Args:
      kernel: `[in, out]`.
      x: `[in, P]`, in the dtype of the products.

    Returns:
      `[out, P]`, float32 or wider.
    """
    # Without the barrier XLA folds the (small) transpose into the product.
    return dot(lax.optimization_barrier(kernel.T).astype(x.dtype), x)


def _pointwise_forward(
    kernel: jax.Array, x: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return pointwise(kernel, x), (kernel, x)


def _pointwise_backward(
    inputs: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    kernel, x = inputs
    g = g.astype(x.dtype)
    dx = dot(lax.optimization_barrier(kernel).astype(x.dtype), g).astype(x.dtype)
    return _weight_gradient(x, g).astype(kernel.dtype), dx


def _weight_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """Multiplies x `[in, P]` and g `[out, P]` to `[in, out]`, the longer one first."""
    if x.shape[0] >= g.shape[0]:
        return dot(x, g, 1)
    return lax.optimization_barrier(dot(g, x, 1)).T  # or XLA swaps the operands back


pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def conv(kernel: jax.Array, x: jax.Array, *, strides: int = 1) -> jax.Array:
    """Convolves with an odd window and zero padding of half the window.

    Args:
      kernel: `[K, K, in, out]`, or `[in, out]` for K = 1.
      x: `[in, chunks, height, width, n]`, in the dtype of the products.
      strides: distance between the rows and columns kept, in pixels.

    Returns:
      `[out, chunks, ceil(height / strides), ceil(width / strides), n]`.
    """
    if kernel.ndim == 2:
        kernel = kernel[None, None]
    size, channels = len(kernel), len(x)
    if channels <= IMAGE_CHANNELS and strides == 1:
        taps: Any = windows(x, size)
        kernel = kernel.transpose(2, 0, 1, 3)  # to the order of the taps
    else:
        taps = _slices(x, size, strides)
    out = pointwise(kernel.reshape(len(taps), -1), rows(taps))
    return out.reshape(-1, *taps.shape[1:])


def _slices(x: jax.Array, size: int, strides: int) -> jax.Array:
    """Returns the pixels of a window as channels `[K * K * in, ...]`, by slices."""
    (height, width), padded = x.shape[2:4], _pad(x, size // 2)
    taps = [
        padded[:, :, i : i + height : strides, j : j + width : strides]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(taps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def windows(x: jax.Array, size: int) -> jax.Array:
    """Returns the pixels of a window around each pixel as channels, zero outside.

    Whole rows are copied, one channel after another. For an image this takes a third of
    the time of slices, into each of which XLA would fuse the computation of the input.

    Args:
      x: `[C, chunks, height, width, n]`.
      size: side K of the window, odd.

    Returns:
      `[C * K * K, chunks, height, width, n]`.
    """
    _, chunks, height, width, n = x.shape
    row, column = np.indices((size, size)).reshape(2, -1)
    starts = jnp.asarray(np.stack([0 * row, row, column * n], 1))

    def taps(plane: jax.Array) -> jax.Array:
        padded = _pad(plane, size // 2)
        padded = padded.reshape(*padded.shape[:2], -1)  # width and n are one axis here

        def tap(start: jax.Array) -> jax.Array:
            return lax.dynamic_slice(padded, start, (chunks, height, width * n))

        return jax.vmap(tap)(starts)

    return lax.map(taps, x).reshape(-1, chunks, height, width, n)


def _windows_forward(x: jax.Array, size: int) -> tuple[jax.Array, tuple[int, ...]]:
    return windows(x, size), x.shape


def _windows_backward(size: int, shape: tuple, g: jax.Array) -> tuple[jax.Array]:
    channels, *rest = shape
    by_tap = g.reshape(channels, size * size, *rest).swapaxes(0, 1).reshape(-1, *rest)
    slices = functools.partial(_slices, size=size, strides=1)
    return tuple(jax.linear_transpose(slices, jnp.zeros(shape, g.dtype))(by_tap))


windows.defvjp(_windows_forward, _windows_backward)


def _pad(x: jax.Array, margin: int) -> jax.Array:
    """Pads the image of `[..., height, width, n]` with zeros."""
    image = (margin, margin)
    return jnp.pad(x, (*[(0, 0)] * (x.ndim - 3), image, image, (0, 0)))
