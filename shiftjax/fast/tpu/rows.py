"""Operations of both kernels on rows: products, and moves within the vector memory.

Step t of the grid reads row t of the stream of all images' rows, and finishes row
`t - lag`, whose neighbors are all there. Arrays are `[positions, channels, LANES]`.
Wide rows are stored as words of 32 bits, each with two channels of bfloat16. A shift is
an address and, where channels of one register have different displacements, a mask.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from shiftjax.fast.fused_block import product
from shiftjax.fast.tpu.plan import LANES, UNROLL, WORDS, TPUPlan

LOW, HIGH = 0xFFFF, -0x10000  # halves of a word
PARTS = {1: (-1,), 2: (LOW, HIGH)}

Masks = list[list[tuple[int, int, Any]]]


def parts(plan: TPUPlan, x: jax.Array) -> list[jax.Array]:
    """Splits a group of positions into those that share a product of wide depth."""
    size = len(x) * plan.projected // plan.positions
    return [x[i : i + size] for i in range(0, len(x), size)]


def narrow_product(plan: TPUPlan, kernel: jax.Array, wide: jax.Array) -> jax.Array:
    """Projects `[positions * expanded, LANES]` to few channels."""
    return jnp.concatenate([product(kernel, part) for part in parts(plan, wide)])


def for_positions(plan: TPUPlan, *bodies: Callable[[jax.Array], None]) -> None:
    """Runs each `body(start)` for the groups of positions of a row.

    One body runs for some groups, then the next one for the same groups. So the reads
    of earlier bodies from a ring do not wait for the writes of later ones.
    """
    steps = plan.width // plan.positions
    unroll = plan.divisor(UNROLL, steps)

    @pl.loop(0, steps // unroll)
    def _(step: jax.Array) -> None:
        for body in bodies:
            for i in range(unroll):
                body((step * unroll + i) * plan.positions)


def matrix(plan: TPUPlan, row: Any, start: jax.Array) -> jax.Array:
    """Reads a group of positions of a narrow row as `[positions * channels, LANES]`."""
    return row[pl.ds(start, plan.positions)].reshape(-1, LANES)


def split(plan: TPUPlan, y: jax.Array) -> jax.Array:
    """Reshapes `[positions * channels, LANES]` to one matrix per position."""
    return y.reshape(plan.positions, -1, LANES)


def here(plan: TPUPlan, start: jax.Array) -> Any:
    """Returns the columns of the group in a wide row."""
    return pl.ds(start + plan.margin, plan.positions)


def pack_words(plan: TPUPlan, wide: jax.Array) -> jax.Array:
    """Converts `[positions * expanded, LANES]` to the words of a wide row.

    A word of bfloat16 holds one channel of a register and one of the next, which are
    neighbors if the rows of the kernel are in the order of `calls.halves`.
    """
    if plan.packing == 1:
        return split(plan, pltpu.bitcast(wide, jnp.int32))
    registers = wide.reshape(-1, 2, WORDS, LANES)
    pair = [registers[:, 0], registers[:, 1]]
    if plan.interpret:  # the interpreter has no pack_elementwise
        low, high = (
            lax.bitcast_convert_type(half.astype(plan.dtype), jnp.uint16).astype(
                jnp.uint32
            )
            for half in pair
        )
        words = low | high << 16
    else:
        words = pltpu.pack_elementwise(pair, packed_dtype=plan.dtype)
    return split(plan, pltpu.bitcast(words, jnp.int32).reshape(-1, LANES))


def unpack_words(plan: TPUPlan, words: jax.Array) -> jax.Array:
    """Converts words to `[positions * expanded, LANES]`."""
    return pltpu.bitcast(words.reshape(-1, LANES), plan.dtype)


def where_positive(plan: TPUPlan, words: jax.Array, values: jax.Array) -> jax.Array:
    """Selects the values at which the words, which are not negative, are not zero."""
    if plan.packing == 1:
        return jnp.where(words > 0, values, 0)
    # Carry to the highest bit of each half that is not zero, then to all of its bits.
    top = (words + 0x7FFF7FFF) & -0x7FFF8000
    return values & (top | (top - lax.shift_right_logical(top, 15)))


def channels(plan: TPUPlan, words: jax.Array) -> jax.Array:
    """Converts words to float32 `[positions, expanded, LANES]`.

    The channels are in the order in which `pack_words` takes them.
    """
    if plan.packing == 1:
        return pltpu.bitcast(words, jnp.float32)
    low, high = words << 16, words & HIGH
    halves = [
        pltpu.bitcast(half, jnp.float32).reshape(-1, WORDS, LANES)
        for half in (low, high)
    ]
    return jnp.stack(halves, 1).reshape(plan.positions, -1, LANES)


def clear(plan: TPUPlan, *rings: Any) -> None:
    """Fills the rings with zeros, which stay around each row, in the first step."""
    slots, columns, *position = plan.wide_rows

    @pl.loop(0, jnp.where(pl.program_id(0) == 0, slots * columns, 0))
    def _(i: jax.Array) -> None:
        for ring in rings:
            zeros = jnp.zeros(position, ring.dtype)
            ring[lax.div(i, columns), lax.rem(i, columns)] = zeros


def choices(plan: TPUPlan) -> Masks:
    """Returns displacements and masks of channels for each register of a position."""
    size = WORDS * plan.packing
    tiles = []
    for first in range(0, plan.expanded, size):
        runs = [run for run in plan.runs if run[0] < first + size and run[1] > first]
        masks = [mask(plan, a - first, b - first) for a, b, *_ in runs]
        tiles.append([(dy, dx, m) for (*_, dy, dx), m in zip(runs, masks, strict=True)])
    return tiles


def mask(plan: TPUPlan, start: int, stop: int) -> jax.Array | None:
    """Returns the bits of channels start to stop of a register; None for all."""
    if start <= 0 and stop >= WORDS * plan.packing:
        return None
    word = lax.broadcasted_iota(jnp.int32, (WORDS, LANES), 0)
    bits = jnp.zeros((WORDS, LANES), jnp.int32)
    for i, part in enumerate(PARTS[plan.packing]):
        channel = plan.packing * word + i
        bits |= jnp.where((channel >= start) & (channel < stop), part, 0)
    return bits


def displaced(
    plan: TPUPlan, masks: Masks, ring: Any, t: jax.Array, start: jax.Array, sign: int
) -> jax.Array:
    """Reads each channel of a group of positions at its displacement.

    Args:
      plan: plan of the kernel.
      masks: `choices(plan)`.
      ring: ring of wide rows.
      t: step of the grid.
      start: first position of the group.
      sign: 1, or -1 for the opposite displacements.

    Returns:
      Words `[positions, expanded / packing, LANES]`.
    """

    def part(register: int, dy: int, dx: int, bits: jax.Array | None) -> jax.Array:
        slot = wide_slot(plan, t, sign * dy)
        columns = pl.ds(start + plan.margin + sign * dx, plan.positions)
        words = ring[slot, columns, register * WORDS : (register + 1) * WORDS]
        return words if bits is None else words & bits

    registers = (
        functools.reduce(jnp.bitwise_or, [part(i, *move) for move in moves])
        for i, moves in enumerate(masks)
    )
    return jnp.concatenate(list(registers), 1)


def entering(plan: TPUPlan, t: jax.Array) -> jax.Array:
    """Returns the slot of the row that step t reads."""
    return lax.rem(t, plan.slots)


def leaving(plan: TPUPlan, t: jax.Array) -> jax.Array:
    """Returns the slot of the row that step t finishes."""
    return lax.rem(t + plan.slots - plan.lag, plan.slots)


def wide_slot(plan: TPUPlan, t: jax.Array, dy: int) -> jax.Array:
    """Returns the slot dy rows below that of `leaving`, or the slot of zeros."""
    row = lax.rem(t + plan.height * plan.lag - plan.lag, plan.height) + dy
    slot = lax.rem(t + plan.slots - plan.lag + dy, plan.slots)
    return jnp.where((row >= 0) & (row < plan.height), slot, plan.slots)
