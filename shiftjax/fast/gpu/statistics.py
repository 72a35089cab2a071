"""Mean, variance and covariance of the narrow tensors, in one pass over each.

The sums are over differences from the mean of the first pixels, so a large mean costs
no accuracy: this mean is within sqrt(pixels / first pixels) deviations of that of the
data.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from shiftjax.fast.batchnorm import Pair, differentiable
from shiftjax.fast.fused_block import (
    PIXELS,
    mean_of,
    moments_backward,
    per_channel,
    product,
    two_passes,
)
from shiftjax.fast.gpu.kernel import Pixels, address, read_pixels
from shiftjax.fast.gpu.plan import SMALLEST, power_of_two

STEP = 128  # pixels
PROGRAMS = 264  # two for each multiprocessor of an H100 or H200
FEWEST = 32  # programs, even if their sums are larger than the input
SUMMED_CHANNELS = 128  # the most whose products a program can sum in registers


def sums_kernel(
    x: Any, reference: Any, sums: Any, squares: Any, *, padded: int, steps: int
) -> None:
    """Sums differences from a reference, and their products, over some pixels."""
    program, programs = pl.program_id(0), pl.num_programs(0)
    size = (1, x.shape[0])

    def pixels(first: Any) -> tuple[jax.Array, jax.Array]:
        which = Pixels(first, STEP, size, x.shape[0])
        values = read_pixels(x, which.index, which.inside, padded).astype(jnp.float32)
        _, mask = address(x, which.index, which.inside, padded)
        return values, mask

    center = pixels(0)[0].sum(0) / min(STEP, x.shape[0])

    def step(i: Any, totals: Pair) -> Pair:
        values, mask = pixels((i * programs + program) * STEP)
        offset = jnp.where(mask, values - center[None], 0)
        rounded = offset.astype(x.dtype)
        total, square = totals
        return total + offset, square + product(rounded, rounded, 0, 0)

    zeros = jnp.zeros((STEP, padded), jnp.float32)
    square = jnp.zeros((padded, padded), jnp.float32)
    total, square = lax.fori_loop(0, steps, step, (zeros, square))
    reference[program] = center
    sums[program] = total.sum(0)
    squares[program] = square


def by_kernel(interpret: bool, x: jax.Array) -> Pair:
    """Returns mean `[C]` and covariance `[C, C]` of x `[batch, height, width, C]`."""
    channels = x.shape[-1]
    padded, pixels = power_of_two(channels, SMALLEST), x.size // channels
    room = max(FEWEST, x.nbytes // (16 * padded**2))  # sums take a quarter of the bytes
    programs = min(PROGRAMS, room, pl.cdiv(pixels, STEP))
    steps = pl.cdiv(pl.cdiv(pixels, STEP), programs)
    row = jax.ShapeDtypeStruct((programs, padded), jnp.float32)
    square = jax.ShapeDtypeStruct((programs, padded, padded), jnp.float32)
    reference, sums, squares = pl.pallas_call(
        functools.partial(sums_kernel, padded=padded, steps=steps),
        out_shape=[row, row, square],
        grid=(programs,),
        compiler_params=triton.CompilerParams(
            num_warps=4 if padded < 128 else 8, num_stages=2
        ),
        interpret=interpret,
        name="second_moments",
    )(x.reshape(pixels, channels))
    offset = (sums.sum(0) / pixels)[:channels]
    within = (squares.sum(0) / pixels)[:channels, :channels]
    return reference[0, :channels] + offset, within - offset[:, None] * offset[None]


def _covariance(x: jax.Array) -> Pair:
    """Returns mean `[C]` and covariance `[C, C]` of x `[batch, height, width, C]`."""
    if x.shape[-1] > SUMMED_CHANNELS:
        return two_passes(x)
    kernel = functools.partial(by_kernel, False)
    return lax.platform_dependent(x, cuda=kernel, default=two_passes)


def _covariance_backward(x: jax.Array, mean: jax.Array, g: Pair) -> jax.Array:
    share = x.shape[-1] / x.size
    slope = ((g[1] + g[1].T) * share).astype(x.dtype)
    offset = g[0] * share - mean @ slope.astype(mean.dtype)
    dx = jnp.dot(x, slope, preferred_element_type=mean.dtype)
    return (dx + per_channel(offset)).astype(x.dtype)


def _moments(x: jax.Array) -> Pair:
    """Returns mean and variance `[C]` of x `[batch, height, width, C]`."""
    center = mean_of(x[:1])
    offset = x - per_channel(center)
    mean, square = offset.mean(PIXELS), (offset * offset).mean(PIXELS)
    return center + mean, square - mean * mean


covariance = differentiable(_covariance, _covariance_backward)
moments = differentiable(_moments, moments_backward)
