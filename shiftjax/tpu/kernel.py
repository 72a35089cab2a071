"""Expand, ReLU, shift and project as one Pallas kernel for TPUs.

The wide tensor between the two products never leaves the chip's vector memory: the
forward pass reads the narrow input once and writes the narrow output once, whatever the
expansion; the backward pass computes the wide rows again.

Inside, arrays are `[height, width, channels, batch]`, with 128 images in the lanes.
XLA stores NHWC arrays of few channels in that order on a TPU, so the transposes at both
ends move nothing. A step of the grid takes one row of 128 images, expands it into a
ring of rows, and projects the row for which all that it reads is now in the ring. There
a shift is an address, and a select where channels of one tile move apart. Neighbouring
positions share a product, with a block-diagonal kernel, so that few channels fill the
matrix unit.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from shiftjax.errors import InputError
from shiftjax.shift import Size, Table, displace_p, displacements

LANES = 128  # images in a step of the grid, and the depth of the matrix unit
UNROLL = 8  # products in flight, at most
VMEM_LIMIT = 100 * 2**20  # of the 128 MiB of a v5e or v6e
TILE = {jnp.dtype(jnp.bfloat16): 16, jnp.dtype(jnp.float32): 8}  # rows of a register
TRANSPOSED = ((1,), (1,))  # contracts the last axes

Tree = TypeVar("Tree")
Gradients = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known about a kernel when it is traced.

    Attributes:
      height: rows of an image.
      width: columns of an image.
      channels: of the input.
      expanded: channels that are shifted.
      features: channels of the output.
      dtype: of the input, the rings and the products' operands.
      runs: neighbouring channels that move alike, as (start, stop, dy, dx).
    """

    height: int
    width: int
    channels: int
    expanded: int
    features: int
    dtype: jnp.dtype
    runs: tuple[tuple[int, int, int, int], ...]

    @classmethod
    def make(cls, x: Any, features: int, table: Table) -> "Plan":
        """Plans for x `[height, width, channels, batch]` and a row per wide channel."""
        height, width, channels, _ = x.shape
        moves = np.clip(
            np.asarray(table), (-height, -width), (height, width)
        )  # farther reads zero
        changes = np.flatnonzero((moves[1:] != moves[:-1]).any(1)) + 1
        starts = [0, *changes.tolist()]
        stops = [*changes.tolist(), len(moves)]
        runs = tuple(
            (start, stop, *moves[start].tolist())
            for start, stop in zip(starts, stops, strict=True)
        )
        dtype = jnp.dtype(x.dtype)
        return cls(height, width, channels, len(moves), features, dtype, runs)

    @property
    def reach(self) -> int:
        """How many rows up or down a channel reads at most."""
        return max(abs(dy) for _, _, dy, _ in self.runs)

    @property
    def margin(self) -> int:
        """How many columns left or right a channel reads at most."""
        return max(abs(dx) for *_, dx in self.runs)

    @property
    def slots(self) -> int:
        """Rows in a ring."""
        return 2 * self.reach + 1

    @property
    def positions(self) -> int:
        """Neighbouring positions that share a product."""
        most = max(1, LANES // max(self.channels, self.features))
        return next(p for p in range(most, 0, -1) if self.width % p == 0)

    @property
    def projected(self) -> int:
        """How many of these share a projecting product, whose depth is wide."""
        most = max(1, LANES // self.expanded)
        return next(p for p in range(most, 0, -1) if self.positions % p == 0)

    @property
    def wide_ring(self) -> tuple[int, int, int, int]:
        """Shape of a ring of wide rows, with zeros left and right of each."""
        return self.slots, self.width + 2 * self.margin, self.expanded, LANES

    def narrow_ring(self, channels: int) -> tuple[int, int, int, int]:
        """Shape of a ring of narrow rows."""
        return self.slots, self.width, channels, LANES

    def memory(self) -> int:
        """Estimates the bytes of vector memory that the backward kernel takes."""
        narrow, wide = self.channels + self.features, self.positions * self.expanded
        rings = 2 * np.prod(self.wide_ring) + np.prod(self.narrow_ring(narrow))
        blocks = 2 * self.width * (narrow + self.channels) * LANES  # two of each
        depth = -(-self.positions * max(self.channels, self.features) // LANES) * LANES
        weights = 2 * wide * (3 * depth * self.dtype.itemsize + 8 * depth + 8 * LANES)
        temporaries = 4 * UNROLL * wide * LANES * 4
        return int((rings + blocks) * self.dtype.itemsize + weights + temporaries)


# The kernels. Grid: (blocks of 128 images, rows); `row` is the row that leaves.


def product(
    a: jax.Array, b: jax.Array, axes: tuple = ((1,), (0,)), dtype: Any = jnp.float32
) -> jax.Array:
    """Multiplies two matrices and adds in float32."""
    return lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=dtype)


def narrow(plan: Plan, kernel: jax.Array, wide: jax.Array) -> jax.Array:
    """Takes `[positions * expanded, LANES]` to few channels, `projected` at a time."""
    depth = plan.projected * plan.expanded
    parts = [wide[i : i + depth] for i in range(0, len(wide), depth)]
    return jnp.concatenate([product(kernel, part) for part in parts])


def for_positions(plan: Plan, body: Any) -> None:
    """Runs `body(start)` for each group of positions of a row."""
    steps = plan.width // plan.positions
    unroll = next(u for u in range(UNROLL, 0, -1) if steps % u == 0)

    @pl.loop(0, steps, unroll=unroll)
    def _(step: jax.Array) -> None:
        body(step * plan.positions)


def clear_outside(plan: Plan, t: jax.Array, *rings: Any) -> None:
    """Puts zeros into the rows above the first row and below the last."""
    count = jnp.where(t == 0, plan.slots, jnp.where(t >= plan.height, 1, 0))

    @pl.loop(0, count)
    def _(i: jax.Array) -> None:
        for ring in rings:
            ring[lax.rem(t + i, plan.slots)] = jnp.zeros(ring.shape[1:], ring.dtype)


def matrix(plan: Plan, block: Any, start: jax.Array) -> jax.Array:
    """Reads a group of positions as `[positions * channels, LANES]`."""
    return block[pl.ds(start, plan.positions)].reshape(-1, LANES)


def split(plan: Plan, y: jax.Array, dtype: Any) -> jax.Array:
    """Turns `[positions * channels, LANES]` into one matrix a position."""
    return y.reshape(plan.positions, -1, LANES).astype(dtype)


def displaced(
    plan: Plan, ring: Any, row: jax.Array, start: jax.Array, sign: int, dtype: Any
) -> jax.Array:
    """Reads each channel of a group of positions where its displacement says.

    Args:
      plan: of the kernel.
      ring: of wide rows.
      row: of the image.
      start: first position of the group.
      sign: 1, or -1 for the opposite displacements.
      dtype: of the result.

    Returns:
      `[positions * expanded, LANES]`.
    """
    tiles, height = [], TILE[plan.dtype]
    for first in range(0, plan.expanded, height):
        last = min(first + height, plan.expanded)
        tile = None
        for run_start, run_stop, dy, dx in plan.runs:
            if run_start >= last or run_stop <= first:
                continue
            slot = lax.rem(row + sign * dy + plan.slots, plan.slots)
            columns = pl.ds(start + plan.margin + sign * dx, plan.positions)
            part = ring[slot, columns, first:last]
            if tile is not None:
                channel = first + lax.broadcasted_iota(jnp.int32, part.shape, 1)
                part = jnp.where(channel >= run_start, part, tile)
            tile = part
        assert tile is not None  # the runs cover all channels
        tiles.append(tile.astype(dtype))
    return jnp.concatenate(tiles, 1).reshape(-1, LANES)


def forward_kernel(
    x: Any, expand: Any, bias: Any, project: Any, y: Any, ring: Any, *, plan: Plan
) -> None:
    """One row in, one row out; the kernels come transposed."""
    t = pl.program_id(1)
    row = t - plan.reach
    clear_outside(plan, t, ring)

    @pl.when(t < plan.height)
    def _() -> None:
        def expand_positions(start: jax.Array) -> None:
            wide = product(expand[...], matrix(plan, x.at[0], start)) + bias[...]
            wide = split(plan, jnp.maximum(wide, 0), ring.dtype)
            here = pl.ds(start + plan.margin, plan.positions)
            ring[lax.rem(t, plan.slots), here] = wide

        for_positions(plan, expand_positions)

    @pl.when(row >= 0)
    def _() -> None:
        def project_positions(start: jax.Array) -> None:
            wide = displaced(plan, ring, row, start, 1, x.dtype)
            out = split(plan, narrow(plan, project[...], wide), y.dtype)
            y[0, pl.ds(start, plan.positions)] = out

        for_positions(plan, project_positions)


def backward_kernel(
    x: Any,
    g: Any,
    expand: Any,
    bias: Any,
    project: Any,
    expand_back: Any,
    dx: Any,
    d_expand: Any,
    d_bias: Any,
    d_project: Any,
    wide_ring: Any,
    wide_g_ring: Any,
    x_ring: Any,
    g_ring: Any,
    *,
    plan: Plan,
) -> None:
    """As forward_kernel, and the gradients of a row once its neighbours are there."""
    t = pl.program_id(1)
    row, slot = t - plan.reach, lax.rem(t, plan.slots)

    @pl.when((t == 0) & (pl.program_id(0) == 0))
    def _() -> None:
        for total in (d_expand, d_bias, d_project):
            total[...] = jnp.zeros(total.shape, total.dtype)

    clear_outside(plan, t, wide_ring, wide_g_ring)

    @pl.when(t < plan.height)
    def _() -> None:
        x_ring[slot], g_ring[slot] = x[0], g[0]

        def expand_positions(start: jax.Array) -> None:
            here = pl.ds(start + plan.margin, plan.positions)
            wide = product(expand[...], matrix(plan, x.at[0], start)) + bias[...]
            wide_ring[slot, here] = split(plan, jnp.maximum(wide, 0), x.dtype)
            wide_g = product(project[...], matrix(plan, g.at[0], start))
            wide_g_ring[slot, here] = split(plan, wide_g, x.dtype)

        for_positions(plan, expand_positions)

    @pl.when(row >= 0)
    def _() -> None:
        done = lax.rem(row, plan.slots)

        def differentiate_positions(start: jax.Array) -> None:
            here = pl.ds(start + plan.margin, plan.positions)
            wide = wide_ring[done, here].reshape(-1, LANES)
            wide_g = displaced(plan, wide_g_ring, row, start, -1, jnp.float32)
            wide_g = jnp.where(wide.astype(jnp.float32) > 0, wide_g, 0)
            d_bias[...] += wide_g
            wide_g = wide_g.astype(x.dtype)
            out = split(plan, narrow(plan, expand_back[...], wide_g), dx.dtype)
            dx[0, pl.ds(start, plan.positions)] = out
            inputs = matrix(plan, x_ring.at[done], start)
            d_expand[...] += product(wide_g, inputs, TRANSPOSED)
            wide = displaced(plan, wide_ring, row, start, 1, x.dtype)
            cotangent = matrix(plan, g_ring.at[done], start)
            d_project[...] += product(wide, cotangent, TRANSPOSED)

        for_positions(plan, differentiate_positions)


# Their calls, with arrays [height, width, channels, batch].


def whole(*shape: int) -> pl.BlockSpec:
    """A small array that every step of the grid sees."""
    return pl.BlockSpec(shape, lambda block, t: (0,) * len(shape))


def entering(plan: Plan, channels: int) -> pl.BlockSpec:
    """Row t of an input; the last row stays while the last rows leave."""
    return pl.BlockSpec(
        (1, plan.width, channels, LANES),
        lambda block, t: (jnp.minimum(t, plan.height - 1), 0, 0, block),
    )


def leaving(plan: Plan, channels: int) -> pl.BlockSpec:
    """The row of an output that `reach` more rows decide."""
    return pl.BlockSpec(
        (1, plan.width, channels, LANES),
        lambda block, t: (jnp.maximum(t - plan.reach, 0), 0, 0, block),
    )


def diagonal(plan: Plan, kernel: jax.Array, positions: int) -> jax.Array:
    """Repeats a kernel for each of some positions, along the diagonal."""
    identity = jnp.eye(positions, dtype=kernel.dtype)
    return jnp.kron(identity, kernel).astype(plan.dtype)


def column(plan: Plan, bias: jax.Array) -> jax.Array:
    """Repeats the bias for each position of a group."""
    return jnp.tile(bias.astype(jnp.float32), plan.positions)[:, None]


def options(
    plan: Plan, batch: int, images: Literal["parallel", "arbitrary"]
) -> dict[str, Any]:
    """What both calls share; `images` says if blocks of images are independent."""
    return {
        "grid": (batch // LANES, plan.height + plan.reach),
        "compiler_params": pltpu.CompilerParams(
            dimension_semantics=(images, "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
    }


def forward(
    plan: Plan,
    interpret: bool,
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
) -> jax.Array:
    """Returns y `[height, width, features, batch]`."""
    wide, batch = plan.positions * plan.expanded, x.shape[3]
    shape = (plan.height, plan.width, plan.features, batch)
    return pl.pallas_call(
        functools.partial(forward_kernel, plan=plan),
        out_shape=jax.ShapeDtypeStruct(shape, x.dtype),
        in_specs=[
            entering(plan, plan.channels),
            whole(wide, plan.positions * plan.channels),
            whole(wide, 1),
            whole(plan.projected * plan.features, plan.projected * plan.expanded),
        ],
        out_specs=leaving(plan, plan.features),
        scratch_shapes=[pltpu.VMEM(plan.wide_ring, x.dtype)],
        interpret=interpret,
        name="shift_project",
        **options(plan, batch, "parallel"),
    )(
        x,
        diagonal(plan, expand.T, plan.positions),
        column(plan, bias),
        diagonal(plan, project.T, plan.projected),
    )


def backward(
    plan: Plan,
    interpret: bool,
    x: jax.Array,
    g: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
) -> Gradients:
    """Returns the gradients of x, expand, bias and project, the last three float32."""
    channels, wide = plan.positions * plan.channels, plan.positions * plan.expanded
    features = plan.positions * plan.features
    totals = [(wide, channels), (wide, LANES), (wide, features)]
    dx, d_expand, d_bias, d_project = pl.pallas_call(
        functools.partial(backward_kernel, plan=plan),
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in totals),
        ],
        in_specs=[
            entering(plan, plan.channels),
            entering(plan, plan.features),
            whole(wide, channels),
            whole(wide, 1),
            whole(wide, features),
            whole(plan.projected * plan.channels, plan.projected * plan.expanded),
        ],
        out_specs=[leaving(plan, plan.channels), *(whole(*s) for s in totals)],
        scratch_shapes=[
            pltpu.VMEM(plan.wide_ring, x.dtype),
            pltpu.VMEM(plan.wide_ring, x.dtype),
            pltpu.VMEM(plan.narrow_ring(plan.channels), x.dtype),
            pltpu.VMEM(plan.narrow_ring(plan.features), x.dtype),
        ],
        interpret=interpret,
        name="shift_project_backward",
        **options(plan, x.shape[3], "arbitrary"),
    )(
        x,
        g,
        diagonal(plan, expand.T, plan.positions),
        column(plan, bias),
        diagonal(plan, project, plan.positions),
        diagonal(plan, expand, plan.projected),
    )
    d_bias = d_bias.reshape(plan.positions, plan.expanded, LANES).sum((0, 2))
    return dx, blocks(plan, d_expand).T, d_bias, blocks(plan, d_project)


def blocks(plan: Plan, total: jax.Array) -> jax.Array:
    """Sums the blocks on the diagonal: the transpose of `diagonal`."""
    total = total.reshape(plan.positions, plan.expanded, plan.positions, -1)
    return jnp.einsum("pwpn->wn", total)


# The differentiable function.


def definition(
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    table: Table,
    size: Size,
) -> jax.Array:
    """What the kernel computes, for XLA: `[batch, *size, features]`, float32."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    dot = functools.partial(jnp.dot, preferred_element_type=dtype)
    wide = jax.nn.relu(dot(x, expand.astype(x.dtype)) + bias).astype(x.dtype)
    wide = displace_p.bind(wide, table=table, stride=1, size=size, lowering=None)
    return dot(wide, project.astype(x.dtype))


def on_tpu(
    interpret: bool, kernel: Callable[..., Tree], other: Callable[..., Tree], *args: Any
) -> Tree:
    """Runs the kernel where the program is compiled for a TPU, else the other form.

    Known only when it is compiled: a program can be traced on a machine without a TPU.
    """
    if interpret:
        return kernel(*args)
    return lax.platform_dependent(*args, tpu=kernel, default=other)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def call(
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    table: Table,
    interpret: bool,
) -> jax.Array:
    """`shift_project` for any table of displacements, one row per wide channel."""
    size = (x.shape[1], x.shape[2])

    def kernel(x: jax.Array, *weights: jax.Array) -> jax.Array:
        x = x.transpose(1, 2, 3, 0)
        plan = Plan.make(x, project.shape[1], table)
        return forward(plan, interpret, x, *weights).transpose(3, 0, 1, 2)

    def other(x: jax.Array, *weights: Any) -> jax.Array:
        return definition(x, *weights, table=table, size=size).astype(x.dtype)

    return on_tpu(interpret, kernel, other, x, expand, bias, project)


def _call_forward(
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    table: Table,
    interpret: bool,
) -> tuple:
    y = call(x, expand, bias, project, table, interpret)
    return y, (x, expand, bias, project)


def _call_backward(
    table: Table, interpret: bool, residuals: Gradients, g: jax.Array
) -> Gradients:
    def kernel(g: jax.Array, x: jax.Array, *weights: jax.Array) -> Gradients:
        x, g = x.transpose(1, 2, 3, 0), g.transpose(1, 2, 3, 0)
        plan = Plan.make(x, g.shape[2], table)
        dx, *gradients = backward(plan, interpret, x, g, *weights)
        d_expand, d_bias, d_project = (
            gradient.astype(weight.dtype)
            for gradient, weight in zip(gradients, weights, strict=True)
        )
        return dx.transpose(3, 0, 1, 2), d_expand, d_bias, d_project

    def other(g: jax.Array, *inputs: jax.Array) -> Gradients:
        size = (g.shape[1], g.shape[2])
        function = functools.partial(definition, table=table, size=size)
        y, pull = jax.vjp(function, *inputs)
        return pull(g.astype(y.dtype))

    return on_tpu(interpret, kernel, other, g, *residuals)


call.defvjp(_call_forward, _call_backward)


def shift_project(
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    *,
    kernel_size: int = 3,
    dilation: int = 1,
    interpret: bool = False,
) -> jax.Array:
    """Expands, applies ReLU, shifts and projects, in one kernel on a TPU.

    `shift(relu(x @ expand + bias), kernel_size, dilation=dilation) @ project`, with
    the operands of products in the dtype of `x`, sums in float32, and gradients for all
    four arrays in reverse mode.

    Args:
      x: `[batch, height, width, channels]`, bfloat16 or float32.
      expand: `[channels, expanded]`, with BatchNorm folded in.
      bias: `[expanded]`.
      project: `[expanded, features]`.
      kernel_size: side K of the window of displacements.
      dilation: distance between neighbouring displacements, in pixels.
      interpret: whether to interpret the kernel's program, slowly; without it, it runs
        on a TPU, and elsewhere XLA compiles the formula above.

    Returns:
      `[batch, height, width, features]`, the dtype of `x`.

    Raises:
      InputError: if the shapes do not fit, or not `is_supported`.

    Example:
      >>> x = jnp.ones((128, 2, 2, 8))
      >>> expand, project = jnp.ones((8, 16)), jnp.ones((16, 8))
      >>> y = shift_project(x, expand, jnp.zeros(16), project, interpret=True)
      >>> y.shape, float(y[0, 0, 0, 0])  # at a corner, 5 of 16 channels read zeros
      ((128, 2, 2, 8), 88.0)
    """
    shapes = [x.shape, expand.shape, bias.shape, project.shape]
    wide = expand.shape[-1]
    if shapes[1:] != [(x.shape[-1], wide), (wide,), (wide, project.shape[-1])]:
        raise InputError(
            f"x, expand, bias and project have shapes {', '.join(map(str, shapes))}; "
            f"they need [batch, height, width, C], [C, E], [E] and [E, features]"
        )
    features = project.shape[1]
    if not is_supported(
        x.shape, expand.shape, features, kernel_size, dilation, x.dtype
    ):
        raise InputError(
            f"x {x.dtype.name} {list(x.shape)}, {wide} expanded channels and "
            f"{features} features: the kernel takes bfloat16 with channels in "
            f"multiples of 16, or float32 in multiples of 8, batches in multiples of "
            f"{LANES}, and rows that fit into {VMEM_LIMIT >> 20} MiB"
        )
    table = moves(wide, kernel_size, dilation)
    return call(x, expand, bias, project, table, interpret)


def moves(channels: int, kernel_size: int, dilation: int) -> Table:
    """Returns `shiftjax.displacements` as a key of JAX's caches."""
    table = displacements(channels, kernel_size, dilation=dilation)
    return tuple(map(tuple, table.tolist()))


def is_supported(
    shape: tuple[int, ...],
    expand_shape: tuple[int, ...],
    out_channels: int,
    kernel_size: int,
    dilation: int,
    dtype: Any,
) -> bool:
    """Tells whether `shift_project` takes such arrays.

    Args:
      shape: of x on one device, `[batch, height, width, channels]`.
      expand_shape: of the expanding kernel, `[channels, expanded]`.
      out_channels: features of the output.
      kernel_size: side K of the window of displacements.
      dilation: distance between neighbouring displacements, in pixels.
      dtype: of x.

    Returns:
      False where the batch does not fill the lanes, channels do not fill registers,
      the dtype has no kernel or the rows would not fit into the vector memory.

    Example:
      >>> is_supported((256, 32, 32, 16), (16, 48), 16, 3, 1, jnp.bfloat16)
      True
      >>> is_supported((100, 32, 32, 16), (16, 48), 16, 3, 1, jnp.bfloat16)
      False
    """
    tile = TILE.get(jnp.dtype(dtype))
    if tile is None or len(shape) != 4 or 0 in shape or shape[0] % LANES:
        return False
    if any(n < tile or n % tile for n in (*expand_shape, out_channels)):
        return False
    table = moves(expand_shape[1], kernel_size, dilation)
    x = jax.ShapeDtypeStruct((*shape[1:], shape[0]), dtype)
    return Plan.make(x, out_channels, table).memory() <= VMEM_LIMIT
