"""The forward kernel: reads the narrow input once, and writes the output once."""

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
    whole,
)
from shiftjax.fast.tpu.plan import TPUPlan
from shiftjax.fast.tpu.rows import (
    choices,
    clear,
    displaced,
    entering,
    for_positions,
    here,
    matrix,
    narrow_product,
    pack_words,
    split,
    unpack_words,
)


def _forward_kernel(
    x: Any, expand: Any, bias: Any, project: Any, y: Any, ring: Any, *, plan: TPUPlan
) -> None:
    """Expands one row and projects another; the kernels come transposed."""
    t = pl.program_id(0)
    clear(plan, ring)
    masks, slot = choices(plan), entering(plan, t)

    def leave(start: jax.Array) -> None:
        wide = unpack_words(plan, displaced(plan, masks, ring, t, start, 1))
        out = narrow_product(plan, project[...], wide).astype(y.dtype)
        y[0, pl.ds(start, plan.positions)] = split(plan, out)

    def enter(start: jax.Array) -> None:
        wide = product(expand[...], matrix(plan, x.at[0], start)) + bias[...]
        ring[slot, here(plan, start)] = pack_words(plan, jnp.maximum(wide, 0))

    for_positions(plan, leave, enter)


def forward_rows(
    plan: TPUPlan,
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
) -> jax.Array:
    """Returns y `[height, width, features, batch]`."""
    shape = (plan.height, plan.width, plan.features, x.shape[3])
    weights = (
        diagonal(plan, halves(plan, expand.T), plan.positions),
        spread_bias(plan, halves(plan, bias)),
        diagonal(plan, project.T, plan.projected),
    )
    return pl.pallas_call(
        functools.partial(_forward_kernel, plan=plan),
        out_shape=jax.ShapeDtypeStruct(shape, x.dtype),
        in_specs=[
            row_block(plan, plan.channels, 0),
            *(whole(*w.shape) for w in weights),
        ],
        out_specs=row_block(plan, plan.features, plan.lag),
        scratch_shapes=[pltpu.VMEM(plan.wide_rows, jnp.int32)],
        interpret=plan.interpret,
        name="shift_project",
        **options(plan),
    )(x, *weights)
