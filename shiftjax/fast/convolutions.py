"""Convolutions of large windows, computed on a coarser grid of pixels.

The first and the last layers of a stylizer take most of its time: their windows of 7x7
and 9x9 are applied at full resolution, to or from three channels or after a repetition
of each pixel. Both functions compute the same products on blocks of 2x2 or 4x4 pixels,
with the kernel summed or moved into the channels.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv_nhwc(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves without padding, with stride 1.

    Args:
      x: `[batch, height, width, channels]`.
      kernel: `[size, size, channels, features]`.

    Returns:
      `[batch, height - size + 1, width - size + 1, features]`.
    """
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", None, None, DIMENSIONS)


def block_side(shape: tuple[int, ...]) -> int:
    """Returns the side of the blocks at which `convolve_blocks` is fastest.

    It was measured with windows of 9x9 on images of 128x128, on one core of an Intel
    Xeon with AVX-512: from 32 channels to 3 features, blocks of 4x4 take 0.26 of the
    time of `conv_nhwc`, and from 3 channels to 32 features blocks of 2x2 take 0.21.

    Args:
      shape: `[size, size, channels, features]` of the kernel.

    Returns:
      The side in pixels; 1 for wide layers, which gain nothing.
    """
    size, _, channels, features = shape
    if size < 7:
        return 1
    return 4 if features < 8 else 2 if channels < 8 else 1


def convolve_blocks(x: jax.Array, kernel: jax.Array, side: int) -> jax.Array:
    """Convolves as `conv_nhwc`, with blocks of pixels as channels (space to depth).

    The products run over `side**2` times as many channels and features, and fill vector
    registers that three channels leave empty. A window has as many zeros as it needs to
    cover whole blocks.

    Args:
      x: `[batch, height, width, channels]`.
      kernel: `[size, size, channels, features]`.
      side: side of a block, in pixels.

    Returns:
      The result of `conv_nhwc`, up to rounding.
    """
    size, _, channels, features = kernel.shape
    batch, *extent, _ = x.shape
    height, width = (n - size + 1 for n in extent)
    taps = math.ceil((size - 1) / side) + 1  # blocks along a side of the window
    rows, columns = (math.ceil(n / side) for n in (height, width))
    # place[p, a, t] = 1 if tap t is row a of the blocks, seen from row p of its own.
    place = np.zeros((side, taps * side, size), kernel.dtype)
    for phase in range(side):
        place[phase, phase + np.arange(size), np.arange(size)] = 1
    blocks = jnp.einsum("pat,qbu,tuio->abipqo", place, place, kernel)
    blocks = _to_depth(blocks.reshape(1, taps * side, taps * side, -1), side)
    blocks = blocks.reshape(taps, taps, side**2 * channels, side**2 * features)
    grid = rows + taps - 1, columns + taps - 1
    missing = [(0, n * side - m) for n, m in zip(grid, extent, strict=True)]
    y = conv_nhwc(_to_depth(jnp.pad(x, [(0, 0), *missing, (0, 0)]), side), blocks)
    y = y.reshape(batch, rows, columns, side, side, features)
    y = y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * side, -1, features)
    return y[:, :height, :width]


def convolve_upsampled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves an image whose pixels are repeated, padded by reflection.

    Two neighboring taps that read the same pixel are added first. For a window of 7x7
    that leaves 16 of 49 products, in four convolutions: one for each phase of the
    output.

    Args:
      x: `[batch, height, width, channels]`; height and width are at least the size of
        the window.
      kernel: `[size, size, channels, features]`, of odd size above 1.

    Returns:
      `[batch, 2 * height, 2 * width, features]`, up to rounding the convolution of `x`
      with each pixel repeated twice, padded by reflection with `size // 2` pixels.
    """
    batch, height, width, _ = x.shape
    size, _, _, features = kernel.shape
    half = size // 2
    wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    taps = (np.arange(size)[None] + np.arange(2)[:, None] - half) // 2  # [phase, tap]
    first = taps[:, :1]
    sums = (taps - first)[:, None] == np.arange(taps[0, -1] - taps[0, 0] + 1)[:, None]
    kernels = jnp.einsum("pat,qbu,tuio->pqabio", *[sums.astype(wide.dtype)] * 2, wide)
    reach = (half + 1) // 2
    padded = jnp.pad(x, [(0, 0), (reach, reach), (reach, reach), (0, 0)], "symmetric")

    def phase(p: int, q: int) -> jax.Array:
        rows, columns = (
            slice(reach + first[n, 0], reach + taps[n, -1] + extent)
            for n, extent in ((p, height), (q, width))
        )
        return conv_nhwc(padded[:, rows, columns], kernels[p, q].astype(kernel.dtype))

    y = jnp.stack([jnp.stack([phase(p, q) for q in (0, 1)], 3) for p in (0, 1)], 2)
    y = y.reshape(batch, 2 * height, 2 * width, features)
    edge = half - 1  # the rows that read a row which is not the symmetric one
    if not edge:
        return y
    top, right, bottom, left = (
        jnp.rot90(
            _first_rows(jnp.rot90(x, n, (1, 2)), jnp.rot90(kernel, n)), -n, (1, 2)
        )
        for n in range(4)
    )
    y = jnp.concatenate([top, y[:, edge:-edge], bottom], 1)
    return jnp.concatenate([left, y[:, :, edge:-edge], right], 2)


def _first_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes the first rows of `convolve_upsampled`, from repeated pixels."""
    half = len(kernel) // 2
    y = x[:, :half].repeat(2, 1).repeat(2, 2)
    y = jnp.pad(y, [(0, 0), (half, 0), (half, half), (0, 0)], "reflect")
    return conv_nhwc(y[:, :-1], kernel)


def _to_depth(x: jax.Array, side: int) -> jax.Array:
    """Moves each block of pixels into the channels, row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(
        batch, height // side, width // side, -1
    )
