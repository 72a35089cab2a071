"""Depthwise convolutions of planes, as sums of shifted multiples.

XLA's grouped convolution is slow on a CPU. In this implementation, one pass reads the
K * K windows of a zero-padded copy, each as a contiguous load, and adds their
multiples. The gradient of the input is the same with the kernel flipped. The gradient
of the kernel is K * K products of two tensors, each summed. XLA does not vectorize a
sum that reads windows, so groups of rows are added elementwise first, and the last sum
reads the result.
"""

import jax
import jax.numpy as jnp

ROWS = 8  # added at a time in the kernel's gradient


def depthwise_conv(kernel: jax.Array, x: jax.Array, *, strides: int = 1) -> jax.Array:
    """Convolves each channel by itself, with zero padding of half the window.

    Args:
      kernel: `[K, K, 1, features]`, K odd; features are a multiple of the channels.
      x: `[channels, chunks, height, width, n]`, in the dtype of the products.
      strides: distance between the rows and columns kept, in pixels.

    Returns:
      `[features, chunks, ceil(height / strides), ceil(width / strides), n]`, float32 or
      wider.
    """
    x = jnp.repeat(x, kernel.shape[-1] // len(x), 0)
    y = _convolve(kernel[:, :, 0].astype(x.dtype), x)
    return y[:, :, ::strides, ::strides]


@jax.custom_vjp
def _convolve(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """Convolves x `[C, chunks, H, W, n]` with a kernel `[K, K, C]`."""
    return _add(kernel, _bordered(x, len(kernel) // 2), x.shape)


def _forward(kernel: jax.Array, x: jax.Array) -> tuple:
    return _convolve(kernel, x), (kernel, x)


def _backward(residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    kernel, x = residuals
    size = len(kernel)
    bordered = _bordered(g.astype(x.dtype), size // 2)
    dx = _add(kernel[::-1, ::-1], bordered, x.shape).astype(x.dtype)
    # The window of the input at a tap is that of the gradient at the opposite one.
    sums = _sums(x, bordered, size)[::-1]
    return sums.reshape(kernel.shape).astype(kernel.dtype), dx


_convolve.defvjp(_forward, _backward)


def _bordered(x: jax.Array, margin: int) -> jax.Array:
    """Returns a zero-padded copy `[C, chunks, H', W' n]`, with H' for `_sums`."""
    *_, height, _, n = x.shape
    rest = -height % ROWS
    x = x.reshape(*x.shape[:3], -1)
    border = [(0, 0), (0, 0), (margin, margin + rest), (margin * n, margin * n)]
    return jnp.pad(x, border)


def _add(kernel: jax.Array, bordered: jax.Array, shape: tuple) -> jax.Array:
    """Adds the windows of `shape`, multiplied by the kernel `[K, K, C]`."""
    *_, height, width, n = shape
    dtype = jnp.promote_types(bordered.dtype, jnp.float32)
    total = jnp.zeros((), dtype)
    for i, row in enumerate(kernel.astype(dtype)):
        for j, tap in enumerate(row):
            window = bordered[:, :, i : i + height, j * n : (j + width) * n]
            total += window.astype(dtype) * tap[:, None, None, None]
    return total.reshape(shape)


def _sums(x: jax.Array, bordered: jax.Array, size: int) -> jax.Array:
    """Returns the sums `[K * K, C]` of x times each window of `bordered`."""
    *_, height, width, n = x.shape
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    rest = -height % ROWS
    x = jnp.pad(x.reshape(*x.shape[:3], -1), [(0, 0), (0, 0), (0, rest), (0, 0)])
    taps = []
    for i in range(size):
        for j in range(size):
            total = jnp.zeros((), dtype)
            for row in range(ROWS):
                rows = slice(i + row, i + height + rest, ROWS)
                window = bordered[:, :, rows, j * n : (j + width) * n]
                total += x[:, :, row::ROWS].astype(dtype) * window.astype(dtype)
            taps.append(total)
    return jnp.stack(taps).sum((2, 3, 4))
