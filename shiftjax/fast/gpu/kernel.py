"""Expand, ReLU, shift and project as one Pallas kernel for GPUs, through Triton.

    y[p] = sum over displacements d of relu(x[p + d] @ expand_d + bias_d) @ project_d

with the weights of the channels with displacement d, and zero where p + d is outside
the image: a shift of the wide tensor is an address in the narrow one. So the wide
tensor never exists, forward or backward, and memory only moves narrow tensors, for any
expansion; the reads of neighboring pixels share the cache. No product is repeated: a
wide number is computed once, for the one pixel that reads it.

Gradients are computed at the pixels of x. There all displacements share one x and one
product before the ReLU, and the cotangent is read at q - d. Gradients of weights are
sums over all pixels, which are kept in the registers of a program and added at the end.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from shiftjax.fast.fused_block import product
from shiftjax.fast.gpu.plan import GPUPlan
from shiftjax.lowerings import Size

Sums = tuple[jax.Array, ...]


class Pixels:
    """Pixels that are neighbors in memory, of all inputs or of all outputs."""

    def __init__(self, first: Any, count: int, size: Size, total: int) -> None:
        self.index = first + lax.iota(jnp.int32, count)
        height, width = size
        self.column = lax.rem(self.index, width)
        rows = lax.div(self.index, width)
        self.row = lax.rem(rows, height)
        self.image = lax.div(rows, height)
        self.inside = self.index < total

    def sources(
        self, plan: GPUPlan, dy: jax.Array, dx: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the inputs that these outputs read, for R displacements.

        Returns:
          The indices, and a mask of those that exist, `[count, R]`.
        """
        height, width = plan.image
        row, column = (
            plan.stride * v[:, None] + d[None]
            for v, d in ((self.row, dy), (self.column, dx))
        )
        inside = self.inside[:, None]
        inside &= (row >= 0) & (row < height) & (column >= 0) & (column < width)
        if plan.stride == 1:
            return self.index[:, None] + (dy * width + dx)[None], inside
        return (self.image[:, None] * height + row) * width + column, inside

    def readers(
        self, plan: GPUPlan, dy: jax.Array, dx: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the outputs that read these inputs; see `sources`."""
        (height, width), stride = plan.size, plan.stride
        row = self.row[:, None] - dy[None]
        column = self.column[:, None] - dx[None]
        inside = self.inside[:, None] & (row >= 0) & (column >= 0)
        if stride == 1:
            inside &= (row < height) & (column < width)
            return self.index[:, None] - (dy * width + dx)[None], inside
        inside &= (lax.rem(row, stride) == 0) & (lax.rem(column, stride) == 0)
        row, column = lax.div(row, stride), lax.div(column, stride)
        inside &= (row < height) & (column < width)
        return (self.image[:, None] * height + row) * width + column, inside


def address(
    array: Any, index: jax.Array, inside: jax.Array, padded: int
) -> tuple[Any, jax.Array]:
    """Returns addresses `[..., padded]` of pixels `[...]` in `[pixels, channels]`."""
    shape = (*index.shape, padded)
    channel = lax.broadcasted_iota(jnp.int32, shape, index.ndim)
    mask = jnp.broadcast_to(inside[..., None], shape)
    if array.shape[1] != padded:
        mask &= channel < array.shape[1]
    return array.at[jnp.broadcast_to(index[..., None], shape), channel], mask


def read_pixels(
    array: Any, index: jax.Array, inside: jax.Array, padded: int
) -> jax.Array:
    """Reads pixels `[count, R]` into `[count, R * padded]`, with zeros outside."""
    view, mask = address(array, index, inside, padded)
    values = triton.load(view, mask=mask, other=jnp.zeros((), array.dtype))
    return values.reshape(len(index), -1)


def tile_table(plan: GPUPlan, moves: Any, tile: int) -> tuple[jax.Array, jax.Array]:
    """Returns dy and dx `[R]` of the displacements in a tile."""
    reads = plan.packing.reads(tile)
    return moves[0, tile, :reads], moves[1, tile, :reads]


def write_pixels(array: Any, pixels: Pixels, values: jax.Array) -> None:
    """Writes `[count, padded]` to the pixels."""
    view, mask = address(array, pixels.index, pixels.inside, values.shape[1])
    triton.store(view, values.astype(array.dtype), mask=mask)


# The kernels. The weights of a tile are expand `[channels, width]`, bias `[width]` and
# project `[features, width]`. If a tile has R displacements, "spread" weights apply to
# R pixels at once, `[R * channels, width]`, and are zero outside of a column's own
# pixel.


def forward_kernel(
    x: Any,
    moves: Any,
    tile_moves: Any,
    spread_expand: Any,
    spread_bias: Any,
    project: Any,
    y: Any,
    *,
    plan: GPUPlan,
) -> None:
    """Computes some pixels of the output."""
    (channels, features), count = plan.padded, plan.sizes.pixels
    pixels = Pixels(pl.program_id(0) * count, count, plan.size, y.shape[0])
    there = pixels.sources(plan, moves[0], moves[1])[1].astype(x.dtype)
    total = jnp.zeros((count, features), jnp.float32)
    for tile in range(len(plan.packing.tiles)):
        reads = plan.packing.reads(tile)
        sources = pixels.sources(plan, *tile_table(plan, tile_moves, tile))
        wide = product(there, spread_bias[tile])  # the bias, zero outside the image
        wide += product(
            read_pixels(x, *sources, channels), spread_expand[tile, : reads * channels]
        )
        wide = jnp.maximum(wide, 0).astype(x.dtype)
        total += product(wide, project[tile], 1, 1)
    write_pixels(y, pixels, total)


def backward_kernel(
    x: Any,
    g: Any,
    tile_moves: Any,
    expand: Any,
    bias: Any,
    spread_project: Any,
    *outs: Any,
    plan: GPUPlan,
    chunks: list[range],
    want_dx: bool,
    want_sums: bool,
) -> None:
    """Computes gradients of some pixels, or their part of the weights' gradients."""
    dx, totals = (outs[0] if want_dx else None), outs[want_dx:]
    count, program = plan.sizes.back_pixels, pl.program_id(0)
    programs = pl.num_programs(0)
    steps = pl.cdiv(pl.cdiv(x.shape[0], count), programs)
    weights = expand, bias, spread_project

    def chunk(tiles: range) -> None:
        def step(i: Any, sums: Sums) -> Sums:
            first = (i * programs + program) * count
            pixels = Pixels(first, count, plan.image, x.shape[0])
            arrays = x, g, dx
            return backward_step(plan, tiles, pixels, tile_moves, arrays, weights, sums)

        sums = lax.fori_loop(0, steps, step, zero_sums(plan, tiles, want_sums))
        for i, tile in enumerate(tiles if want_sums else ()):
            d_expand, d_bias, d_project = sums[3 * i : 3 * i + 3]
            totals[0][program, tile] = d_expand
            totals[1][program, tile] = d_bias.sum(0)
            totals[2][program, tile, : len(d_project)] = d_project

    if len(chunks) == 1:
        chunk(chunks[0])
    else:
        branches = [functools.partial(chunk, tiles) for tiles in chunks]
        lax.switch(pl.program_id(1), branches)


def zero_sums(plan: GPUPlan, tiles: range, want_sums: bool) -> Sums:
    """Returns zero gradients of weights of some tiles, those of biases per pixel."""
    channels, features = plan.padded
    shapes: list[int] = []
    for tile in tiles if want_sums else ():
        shapes += [channels, plan.sizes.back_pixels]
        shapes += [plan.packing.reads(tile) * features]
    return tuple(jnp.zeros((n, plan.packing.width), jnp.float32) for n in shapes)


def backward_step(
    plan: GPUPlan,
    tiles: range,
    pixels: Pixels,
    tile_moves: Any,
    arrays: tuple[Any, Any, Any],
    weights: tuple[Any, Any, Any],
    sums: Sums,
) -> Sums:
    """Adds some pixels to the sums, and writes their gradients to dx, if any."""
    (x, g, dx), (expand, bias, spread_project) = arrays, weights
    channels, features = plan.padded
    inputs = read_pixels(x, pixels.index, pixels.inside, channels)
    total = jnp.zeros(inputs.shape, jnp.float32)
    after: list[jax.Array] = []
    for i, tile in enumerate(tiles):
        reads = plan.packing.reads(tile)
        readers = pixels.readers(plan, *tile_table(plan, tile_moves, tile))
        cotangent = read_pixels(g, *readers, features)
        before = product(inputs, expand[tile]) + bias[tile][None]
        wide_g = product(cotangent, spread_project[tile, : reads * features])
        wide_g = jnp.where(before > 0, wide_g, 0)
        rounded = wide_g.astype(x.dtype)
        if dx is not None:
            total += product(rounded, expand[tile], 1, 1)
        if sums:
            wide = jnp.maximum(before, 0).astype(x.dtype)
            d_expand, d_bias, d_project = sums[3 * i : 3 * i + 3]
            after += [
                d_expand + product(inputs, rounded, 0, 0),
                d_bias + wide_g,
                d_project + product(cotangent, wide, 0, 0),
            ]
    if dx is not None:
        write_pixels(dx, pixels, total)
    return tuple(after)
