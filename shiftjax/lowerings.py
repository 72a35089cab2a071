"""The lowerings of the shift: ways to compute it, and the default of each platform.

Each maps (x, table, stride, size) to `[..., *size, channels]`, where
`out[..., h, w, c] = x[..., stride * h + dy, stride * w + dx, c]` with
`(dy, dx) = table[c]`, zero outside. All are equal bit for bit, with one exception: the
depthwise lowering computes, so it is equal on finite numbers and up to the sign of
zero.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Table = tuple[tuple[int, int], ...]
Size = tuple[int, int]


def crop(x: jax.Array, offset: int, axis: int, stride: int, length: int) -> jax.Array:
    """Returns `x[offset + stride * i]` for i < length along an axis, zero outside."""
    reach = stride * (length - 1) + 1
    extent = x.shape[axis]
    if offset >= extent or offset + reach <= 0:
        shape = list(x.shape)
        shape[axis] = length
        return jnp.zeros(shape, x.dtype)
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (-offset, offset + reach - extent, 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), padding)
    return lax.slice_in_dim(x, 0, None, stride, axis)


def window(x: jax.Array, dy: int, dx: int, stride: int, size: Size) -> jax.Array:
    """Returns all channels of `x` displaced by the same (dy, dx)."""
    rows = crop(x, dy, x.ndim - 3, stride, size[0])
    return crop(rows, dx, x.ndim - 2, stride, size[1])


def choose_channels(offsets: np.ndarray, candidates: dict[int, jax.Array]) -> jax.Array:
    """Takes each channel from the candidate of its own offset."""
    (_, x), *others = candidates.items()
    offsets = offsets.reshape((1,) * (x.ndim - 1) + (-1,))
    for offset, candidate in others:
        x = jnp.where(offsets == offset, candidate, x)
    return x


def by_select(x: jax.Array, table: Table, stride: int, size: Size) -> jax.Array:
    """Moves rows, then columns, with one masked select for each distinct offset."""
    for i, offsets in enumerate(np.asarray(table).T):
        axis = x.ndim - 3 + i
        candidates = {
            offset: crop(x, offset, axis, stride, size[i])
            for offset in np.unique(offsets).tolist()
        }
        x = choose_channels(offsets, candidates)
    return x


def by_pad(x: jax.Array, table: Table, stride: int, size: Size) -> jax.Array:
    """Moves as by_select, from a padded copy, whose slices are plain loads on a CPU."""
    dtype, extent = x.dtype, x.shape[-3:-1]
    if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize == 2:
        x = lax.bitcast_convert_type(x, jnp.uint16)  # else XLA computes in float32
    reach = [stride * (length - 1) + 1 for length in size]
    # A clipped offset lies outside in any case, and reads zero.
    offsets = np.clip(table, np.negative(reach), extent)
    low = np.maximum(-offsets.min(0), 0)
    high = np.maximum(offsets.max(0) + reach - extent, 0)
    leading = [(0, 0)] * (x.ndim - 3)
    x = jnp.pad(x, [*leading, *zip(low, high, strict=True), (0, 0)])
    for i, starts in enumerate((offsets + low).T):
        # Writes the copy once: XLA would fuse it into each candidate.
        x = lax.optimization_barrier(x)
        axis = x.ndim - 3 + i
        candidates = {
            start: lax.slice_in_dim(x, start, start + reach[i], stride, axis)
            for start in np.unique(starts).tolist()
        }
        x = choose_channels(starts, candidates)
    return lax.bitcast_convert_type(x, dtype) if x.dtype != dtype else x


def by_slice(x: jax.Array, table: Table, stride: int, size: Size) -> jax.Array:
    """Pads and slices each run of channels with one displacement, and joins them."""
    starts = [0] + [c for c in range(1, len(table)) if table[c] != table[c - 1]]
    runs = zip(starts, [*starts[1:], len(table)], strict=True)
    return jnp.concatenate(
        [window(x[..., a:b], *table[a], stride, size) for a, b in runs], -1
    )


def by_gather(x: jax.Array, table: Table, stride: int, size: Size) -> jax.Array:
    """Gathers from the flattened image; an index outside it reads zero."""
    height, width, channels = x.shape[-3:]
    dy, dx = jnp.asarray(table, int).T[:, None, None]
    rows = stride * jnp.arange(size[0])[:, None, None] + dy
    columns = stride * jnp.arange(size[1])[None, :, None] + dx
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = (rows * width + columns) * channels + jnp.arange(channels)[None, None]
    index = jnp.where(inside, index, height * width * channels)
    flat = x.reshape(*x.shape[:-3], height * width * channels)
    out = jnp.take(flat, index.reshape(-1), axis=-1, mode="fill", fill_value=0)
    return out.reshape(*x.shape[:-3], *size, channels)


def by_roll(x: jax.Array, table: Table, stride: int, size: Size) -> jax.Array:
    """Rolls the image for each distinct displacement, and masks pixels that wrap."""
    height, width = x.shape[-3:-1]
    rows, columns = (stride * np.arange(length) for length in size)
    out = jnp.zeros((*x.shape[:-3], *size, x.shape[-1]), x.dtype)
    for dy, dx in sorted(set(table)):
        rolled = jnp.roll(x, (-dy, -dx), (-3, -2))
        kept = jnp.take(rolled, rows % height, -3)  # size may exceed x's
        kept = jnp.take(kept, columns % width, -2)
        inside_rows = (rows + dy >= 0) & (rows + dy < height)
        inside_columns = (columns + dx >= 0) & (columns + dx < width)
        mine = np.equal(table, (dy, dx)).all(1)
        mask = inside_rows[:, None, None] & inside_columns[:, None] & mine
        out = jnp.where(mask, kept, out)
    return out


def by_depthwise(x: jax.Array, table: Table, stride: int, size: Size) -> jax.Array:
    """Convolves each channel with a one-hot kernel; exact for finite numbers."""
    # Products of complex numbers are not exact, those of their parts are.
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        parts = (by_depthwise(part, table, stride, size) for part in (x.real, x.imag))
        return lax.complex(*parts)
    offsets = np.asarray(table)
    low, high = offsets.min(0), offsets.max(0)
    dtype = jnp.uint8 if x.dtype == bool else x.dtype
    kernel = np.zeros((*(high - low + 1), 1, len(table)), dtype)
    kernel[(*(offsets - low).T, 0, np.arange(len(table)))] = 1
    reach = [stride * (length - 1) + 1 for length in size]
    padding = [
        (-int(low[i]), reach[i] + int(high[i]) - x.shape[i - 3]) for i in range(2)
    ]
    out = lax.conv_general_dilated(
        x.reshape(-1, *x.shape[-3:]).astype(dtype),
        jnp.asarray(kernel),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=len(table),
        precision=lax.Precision.HIGHEST,
    )
    return out.reshape(*x.shape[:-3], *size, len(table)).astype(x.dtype)


Lowering = Callable[[jax.Array, Table, int, Size], jax.Array]
LOWERINGS: dict[str, Lowering] = {
    "select": by_select,
    "pad": by_pad,
    "slice": by_slice,
    "gather": by_gather,
    "roll": by_roll,
    "depthwise": by_depthwise,
}

# Measured on CPU (`python -m benchmarks shift`); from the compiler's costs on TPU;
# elsewhere selects, which fuse with the operations around them.
DEFAULT_LOWERING = {"cpu": "pad", "tpu": "select"}
