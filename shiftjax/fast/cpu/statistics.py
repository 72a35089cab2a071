"""BatchNorm of planes: statistics of all replicas, applied to them."""

import functools

import jax
import jax.numpy as jnp

from shiftjax.fast.batchnorm import (
    Norm,
    Pair,
    Params,
    Stats,
    affine,
    differentiable,
    fold,
    product_statistics,
    whole_batch,
)
from shiftjax.fast.cpu.chunks import Moment
from shiftjax.fast.cpu.depthwise import depthwise_conv
from shiftjax.fast.cpu.layout import Planes, rows
from shiftjax.fast.cpu.products import conv, dot


def _moments(x: jax.Array) -> Pair:
    """Returns mean and variance `[C]` of x `[C, ...]`."""
    mean = rows(x).mean(1)
    return mean, ((rows(x) - mean[:, None]) ** 2).mean(1)


def _moments_backward(x: jax.Array, mean: jax.Array, g: Pair) -> jax.Array:
    slope = 2 * g[1][:, None]
    dx = rows(x) * slope + (g[0][:, None] - mean[:, None] * slope)  # fuses to one pass
    return (dx * (len(x) / x.size)).reshape(x.shape)


def _covariance(x: jax.Array) -> Pair:
    """Returns mean `[C]` and covariance `[C, C]` of x `[C, ...]`."""
    mean = rows(x).mean(1)
    centered = rows(x) - mean[:, None]
    return mean, dot(centered, centered, 1) * (len(x) / x.size)


def _covariance_backward(x: jax.Array, mean: jax.Array, g: Pair) -> jax.Array:
    slope = g[1] + g[1].T  # one product for both operands
    dx = dot(slope, rows(x)) + (g[0] - slope @ mean)[:, None]
    return (dx * (len(x) / x.size)).reshape(x.shape)


MOMENTS = Moment(_moments, _moments_backward)
COVARIANCE = Moment(_covariance, _covariance_backward)
moments = differentiable(*MOMENTS)
covariance = differentiable(*COVARIANCE)


def per_plane(v: jax.Array) -> jax.Array:
    """Reshapes `[C]` to `[C, 1, 1, 1, 1]`, to broadcast with planes."""
    return v[:, None, None, None, None]


def _batch_norm_planes(
    norm: Norm, x: jax.Array, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, Norm]:
    """Normalizes `[C, ...]` with its own statistics, and returns both."""
    mean, var = whole_batch(moments, x, axis_name)
    stats = {"mean": mean, "var": var}
    gain, offset = map(per_plane, affine(norm, stats, epsilon))
    return x * gain + offset, stats


@functools.partial(
    jax.jit, static_argnames=("strides", "depthwise", "dtype", "epsilon", "axis_name")
)
def conv_norm_planes(
    params: Params,
    stats: Stats | None,
    x: Planes,
    *,
    strides: int,
    depthwise: bool,
    dtype: jnp.dtype | None,
    epsilon: float,
    axis_name: str | None,
) -> tuple[Planes, Stats]:
    """Computes `shiftjax.layers.ConvNorm`, a convolution and BatchNorm.

    Args:
      params: params of "conv" and "norm".
      stats: running statistics of "norm" to use, or None to use those of the batch.
      x: the input.
      strides: distance between the rows and columns kept, in pixels.
      depthwise: if True, each channel is convolved with its own kernel.
      dtype: dtype of the products, or None for the promoted dtype of `x` and kernel.
      epsilon: added to the variance.
      axis_name: the axis of the replicas, or None.

    Returns:
      The output, and the statistics of the batch (empty if `stats` is given).
    """
    kernel, norm = params["conv"]["kernel"], params["norm"]
    array, offset, batch_stats = x.array, None, {}
    dtype = dtype or jnp.promote_types(array.dtype, kernel.dtype)  # before folding
    if kernel.ndim == 2:
        array = array[:, :, ::strides, ::strides]
        strides = 1
    if stats is not None:
        kernel, offset = fold(kernel, norm, stats["norm"], epsilon)
    elif kernel.ndim == 2 and kernel.shape[0] < kernel.shape[1]:
        narrow = array.astype(jnp.promote_types(array.dtype, jnp.float32))
        batch_stats["norm"] = product_statistics(
            kernel, whole_batch(covariance, narrow, axis_name)
        )
        kernel, offset = fold(kernel, norm, batch_stats["norm"], epsilon)
    convolve = depthwise_conv if depthwise else conv
    y = convolve(kernel, array.astype(dtype), strides=strides)
    if offset is not None:
        y = y + per_plane(offset)
    else:
        y, batch_stats["norm"] = _batch_norm_planes(norm, y, epsilon, axis_name)
    return Planes(y.astype(dtype)), batch_stats
