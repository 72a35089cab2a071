"""Helpers of both kernel calls, for arrays `[height, width, channels, batch]`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from shiftjax.fast.tpu.plan import LANES, VMEM_LIMIT, WORDS, TPUPlan


def whole(*shape: int) -> pl.BlockSpec:
    """Returns the block of a small array that every step of the grid reads."""
    return pl.BlockSpec(shape, lambda t: (0,) * len(shape))


def row_block(plan: TPUPlan, channels: int, delay: int) -> pl.BlockSpec:
    """Returns the block of row `t - delay`, clipped to the first and last row."""

    def place(t: jax.Array) -> tuple:
        row = jnp.clip(t - delay, 0, plan.rows - 1)
        return lax.rem(row, plan.height), 0, 0, lax.div(row, plan.height)

    return pl.BlockSpec((1, plan.width, channels, LANES), place)


def diagonal(plan: TPUPlan, kernel: jax.Array, positions: int) -> jax.Array:
    """Repeats a kernel along the diagonal, once for each position."""
    identity = jnp.eye(positions, dtype=kernel.dtype)
    return jnp.kron(identity, kernel).astype(plan.dtype)


def halves(plan: TPUPlan, kernel: jax.Array) -> jax.Array:
    """Orders the wide rows of a kernel for `pack_words`, register by register."""
    shape = (-1, WORDS, plan.packing, *kernel.shape[1:])
    return kernel.reshape(shape).swapaxes(1, 2).reshape(kernel.shape)


def unhalve(plan: TPUPlan, total: jax.Array) -> jax.Array:
    """Inverts `halves`."""
    shape = (-1, plan.packing, WORDS, *total.shape[1:])
    return total.reshape(shape).swapaxes(1, 2).reshape(total.shape)


def spread_bias(plan: TPUPlan, bias: jax.Array) -> jax.Array:
    """Repeats the bias for each position of a group, and for all lanes."""
    column = jnp.tile(bias.astype(jnp.float32), plan.positions)
    return jnp.broadcast_to(column[:, None], (len(column), LANES))


def options(plan: TPUPlan) -> dict[str, Any]:
    """Returns grid and compiler options: sequential steps until the last row leaves."""
    return {
        "grid": (plan.rows + plan.lag,),
        "compiler_params": pltpu.CompilerParams(
            dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM_LIMIT
        ),
    }
