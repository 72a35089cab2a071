"""The backward kernel: recomputes the wide rows, and computes all gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from shiftjax.fast.fused_block import product
from shiftjax.fast.tpu.calls import (
    diagonal,
    halves,
    options,
    row_block,
    spread_bias,
    unhalve,
    whole,
)
from shiftjax.fast.tpu.plan import LANES, TPUPlan
from shiftjax.fast.tpu.rows import (
    channels,
    choices,
    clear,
    displaced,
    entering,
    for_positions,
    here,
    leaving,
    matrix,
    narrow_product,
    pack_words,
    parts,
    split,
    unpack_words,
    where_positive,
)

Gradients = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _backward_kernel(
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
    plan: TPUPlan,
) -> None:
    """Expands one row of x and of g, and computes the gradients of another."""
    t = pl.program_id(0)
    clear(plan, wide_ring, wide_g_ring)

    @pl.when(t <= plan.lag)
    def _() -> None:  # no gradients were computed before
        for total in (d_expand, d_bias, d_project):
            total[...] = jnp.zeros(total.shape, total.dtype)

    masks, slot, done = choices(plan), entering(plan, t), leaving(plan, t)
    x_ring[slot], g_ring[slot] = x[0], g[0]

    def leave(start: jax.Array) -> None:
        wide = wide_ring[done, here(plan, start)]
        wide_g = displaced(plan, masks, wide_g_ring, t, start, -1)
        wide_g = where_positive(plan, wide, wide_g)
        d_bias[...] += channels(plan, wide_g).sum(0)
        wide_g = unpack_words(plan, wide_g)
        moved = unpack_words(plan, displaced(plan, masks, wide_ring, t, start, 1))
        out = narrow_product(plan, expand_back[...], wide_g).astype(dx.dtype)
        dx[0, pl.ds(start, plan.positions)] = split(plan, out)
        inputs = matrix(plan, x_ring.at[done], start)
        cotangent = matrix(plan, g_ring.at[done], start)
        for a, b, total in (
            (inputs, wide_g, d_expand),
            (cotangent, moved, d_project),
        ):
            pairs = zip(parts(plan, a), parts(plan, b), strict=True)
            total[...] += sum(product(*pair, 1, 1) for pair in pairs)

    def enter(start: jax.Array) -> None:
        own = here(plan, start)
        wide = product(expand[...], matrix(plan, x.at[0], start)) + bias[...]
        wide_ring[slot, own] = pack_words(plan, jnp.maximum(wide, 0))
        wide_g = product(project[...], matrix(plan, g.at[0], start))
        wide_g_ring[slot, own] = pack_words(plan, wide_g)

    for_positions(plan, leave, enter)


def backward_rows(
    plan: TPUPlan,
    x: jax.Array,
    g: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
) -> Gradients:
    """Returns the gradients of x, expand, bias and project, the last three float32."""
    wide = plan.projected * plan.expanded
    totals = [
        (plan.projected * plan.channels, wide),
        (plan.expanded, LANES),
        (plan.projected * plan.features, wide),
    ]
    weights = (
        diagonal(plan, halves(plan, expand.T), plan.positions),
        spread_bias(plan, halves(plan, bias)),
        diagonal(plan, halves(plan, project), plan.positions),
        diagonal(plan, expand, plan.projected),
    )
    dx, d_expand, d_bias, d_project = pl.pallas_call(
        functools.partial(_backward_kernel, plan=plan),
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in totals),
        ],
        in_specs=[
            row_block(plan, plan.channels, 0),
            row_block(plan, plan.features, 0),
            *(whole(*w.shape) for w in weights),
        ],
        out_specs=[
            row_block(plan, plan.channels, plan.lag),
            *(whole(*s) for s in totals),
        ],
        scratch_shapes=[
            pltpu.VMEM(plan.wide_rows, jnp.int32),
            pltpu.VMEM(plan.wide_rows, jnp.int32),
            pltpu.VMEM(plan.narrow_rows(plan.channels), x.dtype),
            pltpu.VMEM(plan.narrow_rows(plan.features), x.dtype),
        ],
        interpret=plan.interpret,
        name="shift_project_backward",
        **options(plan),
    )(x, g, *weights)
    d_expand, d_project = blocks(plan, d_expand), blocks(plan, d_project)
    return dx, d_expand, unhalve(plan, d_bias.sum(1)), d_project.T


def blocks(plan: TPUPlan, total: jax.Array) -> jax.Array:
    """Sums the blocks on the diagonal: the transpose of `diagonal`."""
    total = total.reshape(plan.projected, -1, plan.projected, plan.expanded)
    return jnp.einsum("pcpw->cw", total)
