"""BatchNorm of planes: statistics over all parts and replicas, applied or folded.

Every statistic is centred on the mean of its own part, and those of parts and replicas
are merged without loss, so that a large mean costs no accuracy.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from shiftjax.planes.layout import Planes, rows
from shiftjax.planes.products import conv, dot

Norm = Mapping[str, jax.Array]  # "scale" and "bias", or "mean" and "var", [C]
Params = Mapping[str, Any]  # those of a module, as Flax keeps them
Stats = dict[str, Any]
Statistic = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


@jax.custom_vjp
def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance `[C]` of x `[C, ...]`."""
    mean = rows(x).mean(1)
    return mean, ((rows(x) - mean[:, None]) ** 2).mean(1)


def _moments_forward(x: jax.Array) -> tuple:
    mean, var = moments(x)
    return (mean, var), (x, mean)


def _moments_backward(residuals: tuple, g: tuple) -> tuple[jax.Array]:
    x, mean = residuals
    slope = 2 * g[1][:, None]
    dx = rows(x) * slope + (g[0][:, None] - mean[:, None] * slope)  # fuses as one pass
    return ((dx * (len(x) / x.size)).reshape(x.shape),)


moments.defvjp(_moments_forward, _moments_backward)


@jax.custom_vjp
def covariance(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean `[C]` and covariance `[C, C]` of x `[C, ...]`."""
    mean = rows(x).mean(1)
    centred = rows(x) - mean[:, None]
    return mean, dot(centred, centred, 1) * (len(x) / x.size)


def _covariance_forward(x: jax.Array) -> tuple:
    mean, cov = covariance(x)
    return (mean, cov), (x, mean)


def _covariance_backward(residuals: tuple, g: tuple) -> tuple[jax.Array]:
    x, mean = residuals
    slope = g[1] + g[1].T  # one product for both of its operands
    dx = dot(slope, rows(x)) + (g[0] - slope @ mean)[:, None]
    return ((dx * (len(x) / x.size)).reshape(x.shape),)


covariance.defvjp(_covariance_forward, _covariance_backward)


def whole_batch(
    statistic: Statistic, parts: Sequence[jax.Array], axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """Merges a statistic of all parts on all replicas (Chan, Golub, LeVeque 1979).

    Args:
      statistic: `moments` or `covariance`.
      parts: arrays of one shape, as `statistic` takes them.
      axis_name: the axis of the replicas, or None for this replica alone.

    Returns:
      The mean `[C]` and the variance `[C]` or covariance `[C, C]` of them all.
    """

    def over_replicas(x: jax.Array) -> jax.Array:
        return lax.pmean(x, axis_name) if axis_name else x

    pairs = zip(*map(statistic, parts), strict=True)
    means, within = (jnp.stack(values) for values in pairs)
    mean = over_replicas(means.mean(0))
    offset = means - mean
    between = offset**2 if within.ndim == 2 else offset[:, :, None] * offset[:, None]
    return mean, over_replicas((within + between).mean(0))


def affine(norm: Norm, stats: Norm, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Returns BatchNorm as `x * gain + offset`, both `[C]`."""
    gain = norm["scale"] * lax.rsqrt(stats["var"] + epsilon)
    return gain, norm["bias"] - stats["mean"] * gain


def per_channel(v: jax.Array) -> jax.Array:
    """Turns `[C]` into `[C, 1, 1, 1, 1]`, which goes with a part."""
    return v[:, None, None, None, None]


def batch_norm(
    norm: Norm, parts: Sequence[jax.Array], epsilon: float, axis_name: str | None
) -> tuple[list[jax.Array], Norm]:
    """Normalises parts `[C, ...]` with their own statistics, and returns these too."""
    mean, var = whole_batch(moments, parts, axis_name)
    stats = {"mean": mean, "var": var}
    gain, offset = map(per_channel, affine(norm, stats, epsilon))
    return [x * gain + offset for x in parts], stats


def fold(
    kernel: jax.Array,
    norm: Norm,
    parts: Sequence[jax.Array],
    epsilon: float,
    axis_name: str | None,
    statistic: Statistic = covariance,
) -> tuple[jax.Array, jax.Array, Norm]:
    """Returns BatchNorm(x @ kernel) as a kernel and a bias, from statistics of x.

    The mean of W x is W mean(x), and its variance diag(W cov(x) W'): exact, and the
    wide tensor is written once, already normalised, with no pass over it.

    Args:
      kernel: `[in, out]`.
      norm: scale and bias `[out]`.
      parts: the narrow x, as `statistic` takes it: `[in, ...]`.
      epsilon: added to the variance.
      axis_name: the axis of the replicas, or None.
      statistic: gives mean and covariance of a part, in whatever layout it has.

    Returns:
      Kernel `[in, out]`, bias `[out]`, and the statistics of x @ kernel.
    """
    narrow_mean, cov = whole_batch(statistic, parts, axis_name)
    stats = {
        "mean": narrow_mean @ kernel,
        "var": jnp.maximum(((cov @ kernel) * kernel).sum(0), 0),  # despite rounding
    }
    gain, bias = affine(norm, stats, epsilon)
    return kernel * gain, bias, stats


@functools.partial(
    jax.jit, static_argnames=("strides", "dtype", "epsilon", "axis_name")
)
def conv_norm(
    params: Params,
    stats: Stats | None,
    x: Planes,
    *,
    strides: int,
    dtype: jnp.dtype | None,
    epsilon: float,
    axis_name: str | None,
) -> tuple[Planes, Stats]:
    """`shiftjax.layers.ConvNorm`: a convolution and BatchNorm.

    Args:
      params: of "conv" and "norm".
      stats: running statistics of "norm" to use, or None to use those of the batch.
      x: the input.
      strides: distance between the rows and columns kept, in pixels.
      dtype: what to multiply in, or None for the promoted dtype of `x` and kernel.
      epsilon: added to the variance.
      axis_name: the axis of the replicas, or None.

    Returns:
      The output, and the batch's statistics (none where `stats` is given).
    """
    kernel, offset = params["conv"]["kernel"], None
    if stats is not None:
        gain, offset = affine(params["norm"], stats["norm"], epsilon)
        kernel = kernel * gain
    dtype = dtype or jnp.promote_types(x.parts[0].dtype, kernel.dtype)
    y = [conv(kernel, part.astype(dtype), strides=strides) for part in x.parts]
    if offset is not None:
        return Planes(tuple(part + per_channel(offset) for part in y)), {}
    y, batch_stats = batch_norm(params["norm"], y, epsilon, axis_name)
    return Planes(tuple(y)), {"norm": batch_stats}
