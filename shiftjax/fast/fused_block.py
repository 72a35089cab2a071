"""The shift block on NHWC arrays, its wide tensor left to a kernel.

BatchNorm after the expanding product is folded into it, with statistics from its narrow
input: they are known before the wide tensor, which therefore need not exist. What lies
between the two norms, expand, ReLU, shift and project, is an argument, `middle`:
`shiftjax.fast.tpu` and `shiftjax.fast.gpu` have one each.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from shiftjax.fast.batchnorm import (
    Norm,
    Pair,
    Params,
    Statistic,
    Stats,
    affine,
    fold,
    whole_batch,
)

PIXELS = (0, 1, 2)  # the axes of an NHWC array that statistics reduce
Middle = Callable[..., jax.Array]


def inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns `[C, D]`, the products of a and b `[..., C or D]` over all pixels."""
    return lax.dot_general(
        a,
        b,
        ((PIXELS, PIXELS), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(a.dtype, jnp.float32),
    )


def per_channel(v: jax.Array) -> jax.Array:
    """Turns `[C]` into `[1, 1, 1, C]`, which goes with an NHWC array."""
    return v[None, None, None]


def mean_of(x: jax.Array) -> jax.Array:
    """Returns the mean `[C]` of `[batch, height, width, C]`, added in float32."""
    return x.mean(PIXELS, dtype=jnp.promote_types(x.dtype, jnp.float32))


def moments_backward(x: jax.Array, mean: jax.Array, g: Pair) -> jax.Array:
    """The derivative of a mean and a variance."""
    slope = 2 * g[1]
    dx = (x - per_channel(mean)) * per_channel(slope) + per_channel(g[0])
    return (dx * (x.shape[-1] / x.size)).astype(x.dtype)


def two_passes(x: jax.Array) -> Pair:
    """Returns mean `[C]` and covariance `[C, C]` of x `[batch, height, width, C]`."""
    mean = mean_of(x)
    centred = (x - per_channel(mean)).astype(x.dtype)
    return mean, inner(centred, centred) * (x.shape[-1] / x.size)


def batch_norm(
    moments: Statistic,
    norm: Norm,
    stats: Norm | None,
    x: jax.Array,
    epsilon: float,
    axis_name: str | None,
) -> tuple[jax.Array, Norm]:
    """Normalises an NHWC array, with its own statistics where none are given."""
    if stats is None:
        mean, var = whole_batch(moments, x, axis_name)
        stats = {"mean": mean, "var": var}
    gain, offset = map(per_channel, affine(norm, stats, epsilon))
    return (x * gain + offset).astype(x.dtype), stats


@functools.partial(
    jax.jit,
    static_argnames=(
        "kernel_size",
        "strides",
        "dilation",
        "dtype",
        "epsilon",
        "axis_name",
        "middle",
        "moments",
        "covariance",
    ),
)
def shift_block(
    params: Params,
    stats: Stats | None,
    x: jax.Array,
    *,
    kernel_size: int,
    strides: int,
    dilation: int,
    dtype: jnp.dtype | None,
    epsilon: float,
    axis_name: str | None,
    middle: Middle,
    moments: Statistic,
    covariance: Statistic,
) -> tuple[jax.Array, Stats]:
    """`shiftjax.layers.ShiftConv`: the block of a CIFAR ShiftResNet.

    Args:
      params: of the units "expand", "project" and, where the shape changes, "shortcut".
      stats: running statistics to use, or None to use those of the batch.
      x: `[batch, height, width, channels]`, of a shape and dtype that `middle` takes.
      kernel_size: side of the window of displacements.
      strides: distance between the rows and columns kept, in pixels.
      dilation: distance between neighbouring displacements, in pixels.
      dtype: what to multiply in, or None for the promoted dtype of `x` and kernels.
      epsilon: added to the variances.
      axis_name: the axis of the replicas, or None.
      middle: maps x, the expanding kernel, its bias and the projecting kernel to the
        output of the latter; takes the window as `kernel_size`, `strides`, `dilation`.
      moments: gives mean and variance of an NHWC array.
      covariance: gives mean and covariance of an NHWC array.

    Returns:
      `[batch, ceil(height / strides), ceil(width / strides), features]`, and the
      batch's statistics (none where `stats` is given).
    """
    kernels = {name: unit["conv"]["kernel"] for name, unit in params.items()}
    norms = {name: unit["norm"] for name, unit in params.items()}
    used: Stats = {name: stats and stats[name]["norm"] for name in params}
    inputs = x.astype(dtype or jnp.promote_types(x.dtype, kernels["expand"].dtype))

    def norm(name: str, y: jax.Array) -> jax.Array:
        y, used[name] = batch_norm(
            moments, norms[name], used[name], y, epsilon, axis_name
        )
        return y

    if stats is None:
        expand, bias, used["expand"] = fold(
            kernels["expand"],
            norms["expand"],
            whole_batch(covariance, inputs, axis_name),
            epsilon,
        )
    else:
        gain, bias = affine(norms["expand"], used["expand"], epsilon)
        expand = kernels["expand"] * gain[None]
    y = middle(
        inputs,
        expand,
        bias,
        kernels["project"],
        kernel_size=kernel_size,
        strides=strides,
        dilation=dilation,
    )
    y, skip = norm("project", y), x
    if "shortcut" in params:
        kept = inputs[:, ::strides, ::strides]
        kernel = kernels["shortcut"].astype(inputs.dtype)
        skip = norm("shortcut", jnp.dot(kept, kernel))
    batch = {} if stats is not None else {name: {"norm": used[name]} for name in used}
    return jax.nn.relu(y) + skip.astype(y.dtype), batch
