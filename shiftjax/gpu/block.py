"""The ShiftResNet block on a GPU: narrow statistics around the kernel.

BatchNorm after the expanding product is folded into it, with statistics from its narrow
input: they are known before the wide tensor, which therefore need not exist. Statistics
and normalisation of narrow tensors are left to XLA.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from shiftjax.gpu.call import is_supported, shift_project
from shiftjax.gpu.statistics import MOST_CHANNELS, covariance, moments
from shiftjax.planes.statistics import Norm, Params, Stats, affine, fold, whole_batch


def is_faster(
    shape: tuple[int, ...],
    expanded: int,
    features: int,
    dtype: jnp.dtype,
    *,
    kernel_size: int,
    strides: int,
    dilation: int,
) -> bool:
    """Tells whether `shift_block` takes such a block, and should be the faster form.

    By the bytes that it moves (`python -m benchmarks.gpu_costs`): its time has not been
    measured, so on a GPU it runs only if asked for by name.

    Args:
      shape: of the input on one device, `[batch, height, width, channels]`.
      expanded: channels that are shifted.
      features: channels of the output.
      dtype: what is multiplied in.
      kernel_size: side of the window of displacements.
      strides: distance between the rows and columns kept, in pixels.
      dilation: distance between neighbouring displacements, in pixels.

    Returns:
      True where the kernels take the shapes, up to 128 channels and features: with
      more, products are the limit, not the memory.

    Example:
      >>> window = {"kernel_size": 3, "strides": 2, "dilation": 1}
      >>> is_faster((100, 32, 32, 16), 96, 32, jnp.bfloat16, **window)
      True
    """
    del strides  # any
    if max(shape[-1], features) > MOST_CHANNELS:
        return False
    kernels = (shape[-1], expanded), features
    return is_supported(shape, *kernels, kernel_size, dilation, dtype)


def batch_norm(
    norm: Norm, stats: Norm | None, x: jax.Array, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, Norm]:
    """Normalises an NHWC array, with its own statistics where none are given."""
    if stats is None:
        mean, var = whole_batch(moments, [x], axis_name)
        stats = {"mean": mean, "var": var}
    gain, offset = affine(norm, stats, epsilon)
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
    middle: Callable[..., jax.Array] = shift_project,
) -> tuple[jax.Array, Stats]:
    """`shiftjax.layers.ShiftConv`: the block of a CIFAR ShiftResNet.

    Args:
      params: of the units "expand", "project" and, where the shape changes, "shortcut".
      stats: running statistics to use, or None to use those of the batch.
      x: `[batch, height, width, channels]`, of a shape and dtype that `is_supported`.
      kernel_size: side of the window of displacements.
      strides: distance between the rows and columns kept, in pixels.
      dilation: distance between neighbouring displacements, in pixels.
      dtype: what to multiply in, or None for the promoted dtype of `x` and kernels.
      epsilon: added to the variances.
      axis_name: the axis of the replicas, or None.
      middle: `shift_project`, or another function of the same arguments and meaning.

    Returns:
      `[batch, ceil(height / strides), ceil(width / strides), features]`, and the
      batch's statistics (none where `stats` is given).
    """
    kernels = {name: unit["conv"]["kernel"] for name, unit in params.items()}
    norms = {name: unit["norm"] for name, unit in params.items()}
    used: Stats = {name: stats and stats[name]["norm"] for name in params}
    inputs = x.astype(dtype or jnp.promote_types(x.dtype, kernels["expand"].dtype))
    if stats is None:
        statistic: Any = covariance
        expand, bias, used["expand"] = fold(
            kernels["expand"], norms["expand"], [inputs], epsilon, axis_name, statistic
        )
    else:
        gain, bias = affine(norms["expand"], used["expand"], epsilon)
        expand = kernels["expand"] * gain
    y = middle(
        inputs,
        expand,
        bias,
        kernels["project"],
        kernel_size=kernel_size,
        strides=strides,
        dilation=dilation,
    )
    y, used["project"] = batch_norm(
        norms["project"], used["project"], y, epsilon, axis_name
    )
    skip = x
    if "shortcut" in params:
        kept = inputs[:, ::strides, ::strides]
        skip = jnp.dot(kept, kernels["shortcut"].astype(inputs.dtype))
        skip, used["shortcut"] = batch_norm(
            norms["shortcut"], used["shortcut"], skip, epsilon, axis_name
        )
    batch = {} if stats is not None else {name: {"norm": used[name]} for name in used}
    return jax.nn.relu(y) + skip.astype(y.dtype), batch
