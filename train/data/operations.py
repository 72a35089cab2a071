"""Operations of Pillow on one image, with fixed shapes, inside the compiled step.

Images are uint8 `[height, width, channels]`. The results are those of
`PIL.ImageEnhance`, `PIL.ImageOps` and `PIL.Image.transform`, up to one unit where
Pillow rounds in another precision.
"""

import jax
import jax.numpy as jnp

# 2**16 times the weights of red, green and blue in ITU-R 601's luma, as in Pillow.
LUMA = (19595, 38470, 7471)


def blend(base: jax.Array | int, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Computes `base + factor * (image - base)`, the formula of `PIL.ImageEnhance`.

    Args:
      base: the result for a factor of 0; integers that broadcast with the image.
      image: the result for a factor of 1; integers.
      factor: at least 0.

    Returns:
      Uint8, cut off at 0 and 255, and without the fraction.
    """
    start = jnp.asarray(base, jnp.float32)
    values = start + factor * (image.astype(jnp.float32) - start)
    return jnp.clip(values, 0, 255).astype(jnp.uint8)


def gray(image: jax.Array) -> jax.Array:
    """Returns the luma of an RGB image, uint8 `[height, width, 1]`."""
    weighted = image.astype(jnp.int32) * jnp.array(LUMA)
    return ((weighted.sum(-1, keepdims=True) + 2**15) >> 16).astype(jnp.uint8)


def mean_gray(image: jax.Array) -> jax.Array:
    """Returns the mean luma of an RGB image, rounded, as an int32 scalar."""
    luma = gray(image)
    return (2 * luma.sum(dtype=jnp.int32) + luma.size) // (2 * luma.size)


def smooth(image: jax.Array) -> jax.Array:
    """Blurs an image with the kernel of `PIL.ImageFilter.SMOOTH`, except its border.

    The kernel is 3x3 with weights of 5/13 in the middle and 1/13 around it.
    """
    height, width, _ = image.shape
    x = image.astype(jnp.int32)
    wide = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    windows = [wide[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    blurred = (2 * (sum(windows) + 4 * x) + 13) // 26  # rounded
    row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
    inside = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    return jnp.where(inside, blurred, x).astype(jnp.uint8)


def histogram(image: jax.Array) -> jax.Array:
    """Counts the pixels of each value: int32 `[256, channels]`.

    It compares each pixel with each value, which XLA fuses into one pass. A scatter
    would be slow on a TPU.
    """
    values = jnp.arange(256, dtype=jnp.uint8)
    return (image[..., None] == values).sum((0, 1), dtype=jnp.int32).T


def replace_values(table: jax.Array, image: jax.Array) -> jax.Array:
    """Replaces each value by its entry in a table `[256, channels]`.

    It compares each pixel with each value, as `histogram` does.
    """
    values = jnp.arange(256, dtype=jnp.uint8)
    chosen = jnp.where(image[..., None] == values, table.T, 0)
    return chosen.sum(-1, dtype=jnp.int32).astype(jnp.uint8)


def stretch(counts: jax.Array) -> jax.Array:
    """Returns the table that maps each channel's range of values to 0 .. 255.

    Args:
      counts: the result of `histogram`.

    Returns:
      The table of `PIL.ImageOps.autocontrast`, int32 `[256, channels]`.
    """
    values = jnp.arange(256)[:, None]
    low = (counts > 0).argmax(0)
    high = 255 - (counts[::-1] > 0).argmax(0)
    stretched = jnp.clip((values - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, stretched, values)


def equalizing_table(counts: jax.Array) -> jax.Array:
    """Returns the table that makes each channel's values about equally frequent.

    Args:
      counts: the result of `histogram`.

    Returns:
      The table of `PIL.ImageOps.equalize`, int32 `[256, channels]`.
    """
    high = 255 - (counts[::-1] > 0).argmax(0)
    last = jnp.take_along_axis(counts, high[None], 0)[0]
    step = (counts.sum(0) - last) // 255
    below = counts.cumsum(0) - counts
    levels = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, levels, jnp.arange(256)[:, None])


def warp(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Moves pixels by an affine map, to the nearest pixel; outside, the image is 0.

    The pixels are read by one gather.

    Args:
      image: uint8 `[height, width, channels]`.
      matrix: `(a, b, c, d, e, f)` as for `PIL.Image.transform`: the point (x, y) of the
        result is (a x + b y + c, d x + e y + f) of the image.

    Returns:
      An image of the same size.
    """
    height, width, _ = image.shape
    a, b, c, d, e, f = matrix
    x, y = jnp.arange(width) + 0.5, jnp.arange(height)[:, None] + 0.5
    column = jnp.floor(a * x + b * y + c).astype(jnp.int32)
    row = jnp.floor(d * x + e * y + f).astype(jnp.int32)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixels = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    return jnp.where(inside[..., None], pixels, 0)
