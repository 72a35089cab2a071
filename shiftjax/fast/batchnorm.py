"""BatchNorm for the fast implementations: statistics, their merging and folding.

These functions do not depend on the layout. Every statistic is centered on the mean of
its own pixels, and merging the statistics of chunks and replicas is exact, so a large
mean costs no accuracy.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Norm = Mapping[str, jax.Array]  # "scale" and "bias", or "mean" and "var", [C]
Params = Mapping[str, Any]  # of a module, in the structure of Flax
Stats = dict[str, Any]
Pair = tuple[jax.Array, jax.Array]
Statistic = Callable[[jax.Array], Pair]


def differentiable(
    statistic: Statistic, backward: Callable[[jax.Array, jax.Array, Pair], jax.Array]
) -> Statistic:
    """Returns the statistic with the derivative `backward(x, mean, g)`."""

    def forward(x: jax.Array) -> tuple:
        mean, second = statistic(x)
        return (mean, second), (x, mean)

    def pull(residuals: tuple, g: Pair) -> tuple[jax.Array]:
        x, mean = residuals
        return (backward(x, mean, g),)

    function = jax.custom_vjp(statistic)
    function.defvjp(forward, pull)
    return function


def merge(groups: Pair, axis_name: str | None) -> Pair:
    """Merges statistics of equal numbers of pixels (Chan, Golub, LeVeque 1979).

    Args:
      groups: means `[n, C]`, with variances `[n, C]` or covariances `[n, C, C]`.
      axis_name: the axis of the replicas, or None for this replica alone.

    Returns:
      The mean `[C]` and the variance `[C]` or covariance `[C, C]` of all groups.
    """

    def over_replicas(x: jax.Array) -> jax.Array:
        return lax.pmean(x, axis_name) if axis_name else x

    means, within = groups
    mean = over_replicas(means.mean(0))
    offset = means - mean[None]
    between = offset**2 if within.ndim == 2 else offset[:, :, None] * offset[:, None]
    return mean, over_replicas((within + between).mean(0))


def whole_batch(statistic: Statistic, x: jax.Array, axis_name: str | None) -> Pair:
    """Computes a statistic of all replicas.

    Args:
      statistic: `moments` or `covariance`.
      x: the argument of `statistic`.
      axis_name: the axis of the replicas, or None for this replica alone.

    Returns:
      The mean `[C]` and the variance `[C]` or covariance `[C, C]` of the whole batch.
    """
    mean, second = statistic(x)
    return merge((mean[None], second[None]), axis_name)


def affine(norm: Norm, stats: Norm, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Returns BatchNorm as `x * gain + offset`, both `[C]`."""
    gain = norm["scale"] * lax.rsqrt(stats["var"] + epsilon)
    return gain, norm["bias"] - stats["mean"] * gain


def kernels_and_norms(
    params: Params,
) -> tuple[dict[str, jax.Array], dict[str, Norm]]:
    """Returns the kernel and the norm of each unit of a block, by its name."""
    kernels = {name: unit["conv"]["kernel"] for name, unit in params.items()}
    return kernels, {name: unit["norm"] for name, unit in params.items()}


def product_statistics(kernel: jax.Array, narrow: Pair) -> Norm:
    """Returns the statistics of x @ kernel, from statistics of x.

    The mean of W x is W mean(x), and its variance diag(W cov(x) W'). This is exact, and
    they are known before the wide tensor x @ kernel is.

    Args:
      kernel: `[in, out]`.
      narrow: mean `[in]` and covariance `[in, in]` of x.

    Returns:
      Mean and variance `[out]`.
    """
    mean, cov = narrow
    var = ((cov @ kernel) * kernel).sum(0)
    return {"mean": mean @ kernel, "var": jnp.maximum(var, 0)}  # despite rounding


def fold(
    kernel: jax.Array, norm: Norm, stats: Norm, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """Folds BatchNorm into the convolution before it.

    Args:
      kernel: `[..., out]`.
      norm: scale and bias `[out]`.
      stats: mean and variance `[out]` of the convolution's output.
      epsilon: added to the variance.

    Returns:
      The kernel and the bias `[out]` of the convolution with BatchNorm.
    """
    gain, bias = affine(norm, stats, epsilon)
    return kernel * gain.reshape((1,) * (kernel.ndim - 1) + (-1,)), bias
