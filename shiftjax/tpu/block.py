"""The ShiftResNet block on a TPU: narrow statistics around the kernel.

BatchNorm after the expanding product is folded into it, with statistics from its narrow
input: they are known before the wide tensor, which therefore can stay in the kernel. A
strided shift is taken on the phases of the image, row and column modulo the stride:
each channel is expanded on the one phase that it reads, and shifted there by itself.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from shiftjax.planes.block import phases
from shiftjax.planes.statistics import Norm, Params, Stats, affine, fold, whole_batch
from shiftjax.tpu.kernel import definition, shift_project
from shiftjax.tpu.plan import is_supported

PIXELS = (0, 1, 2)  # the axes of an NHWC array that statistics reduce
# With more, the products are the limit, not the memory: `python -m benchmarks.tpu`.
MOST_CHANNELS = 255


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
    """Tells whether `shift_block` takes such a block, and is the faster form on a TPU.

    Args:
      shape: of the input on one device, `[batch, height, width, channels]`.
      expanded: channels that are shifted.
      features: channels of the output.
      dtype: what is multiplied in.
      kernel_size: side of the window of displacements.
      strides: distance between the rows and columns kept, in pixels.
      dilation: distance between neighbouring displacements, in pixels.

    Returns:
      True for strides, which go by phases, and where the kernel takes the shapes; False
      for 256 channels or more, whose products hide the traffic of the plain form.

    Example:
      >>> window = {"kernel_size": 3, "strides": 1, "dilation": 1}
      >>> is_faster((256, 32, 32, 16), 48, 16, jnp.bfloat16, **window)
      True
    """
    if strides > 1:
        return True
    if shape[-1] > MOST_CHANNELS:
        return False
    kernels = (shape[-1], expanded), features
    return is_supported(shape, *kernels, kernel_size, dilation, dtype)


def inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns `[C, D]`, the products of a and b `[..., C or D]` over all pixels."""
    return lax.dot_general(
        a,
        b,
        ((PIXELS, PIXELS), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(a.dtype, jnp.float32),
    )


def mean_of(x: jax.Array) -> jax.Array:
    """Returns the mean `[C]` of `[batch, height, width, C]`, added in float32."""
    return x.mean(PIXELS, dtype=jnp.promote_types(x.dtype, jnp.float32))


@jax.custom_vjp
def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance `[C]` of x `[batch, height, width, C]`."""
    mean = mean_of(x)
    return mean, mean_of((x - mean) ** 2)


def _moments_forward(x: jax.Array) -> tuple:
    mean, var = moments(x)
    return (mean, var), (x, mean)


def _moments_backward(residuals: tuple, g: tuple) -> tuple[jax.Array]:
    x, mean = residuals
    dx = (x - mean) * (2 * g[1]) + g[0]
    return ((dx * (x.shape[-1] / x.size)).astype(x.dtype),)


moments.defvjp(_moments_forward, _moments_backward)


@jax.custom_vjp
def covariance(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean `[C]` and covariance `[C, C]` of x `[batch, height, width, C]`."""
    mean = mean_of(x)
    centred = (x - mean).astype(x.dtype)
    return mean, inner(centred, centred) * (x.shape[-1] / x.size)


def _covariance_forward(x: jax.Array) -> tuple:
    mean, cov = covariance(x)
    return (mean, cov), (x, mean)


def _covariance_backward(residuals: tuple, g: tuple) -> tuple[jax.Array]:
    x, mean = residuals
    slope = ((g[1] + g[1].T) * (x.shape[-1] / x.size)).astype(x.dtype)
    centred = (x - mean).astype(x.dtype)
    dx = jnp.dot(centred, slope, preferred_element_type=mean.dtype)
    return ((dx + g[0] * (x.shape[-1] / x.size)).astype(x.dtype),)


covariance.defvjp(_covariance_forward, _covariance_backward)


def batch_norm(
    norm: Norm, stats: Norm | None, x: jax.Array, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, Norm]:
    """Normalises an NHWC array, with its own statistics where none are given."""
    if stats is None:
        mean, var = whole_batch(moments, [x], axis_name)
        stats = {"mean": mean, "var": var}
    gain, offset = affine(norm, stats, epsilon)
    return (x * gain + offset).astype(x.dtype), stats


def middle(
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    *,
    kernel_size: int,
    strides: int,
    dilation: int,
    interpret: bool,
) -> jax.Array:
    """Expand, ReLU, shift and project: the kernel, or the phases of a stride."""
    if strides == 1:
        return shift_project(
            x,
            expand,
            bias,
            project,
            kernel_size=kernel_size,
            dilation=dilation,
            interpret=interpret,
        )
    size = (-(-x.shape[1] // strides), -(-x.shape[2] // strides))
    y = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))
    for (row, column), members, table in phases(
        len(project), kernel_size, dilation, strides
    ):
        phase = x[:, row::strides, column::strides]
        weights = expand[:, members], bias[members], project[members]
        y += definition(phase, *weights, table, size)
    return y.astype(x.dtype)


@functools.partial(
    jax.jit,
    static_argnames=(
        "kernel_size",
        "strides",
        "dilation",
        "dtype",
        "epsilon",
        "axis_name",
        "interpret",
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
    interpret: bool = False,
) -> tuple[jax.Array, Stats]:
    """`shiftjax.layers.ShiftConv`: the block of a CIFAR ShiftResNet.

    Args:
      params: of the units "expand", "project" and, where the shape changes, "shortcut".
      stats: running statistics to use, or None to use those of the batch.
      x: `[batch, height, width, channels]`; with `strides=1` of a shape and dtype that
        `is_supported`.
      kernel_size: side of the window of displacements.
      strides: distance between the rows and columns kept, in pixels.
      dilation: distance between neighbouring displacements, in pixels.
      dtype: what to multiply in, or None for the promoted dtype of `x` and kernels.
      epsilon: added to the variances.
      axis_name: the axis of the replicas, or None.
      interpret: whether to interpret the kernel's program, slowly; see `shift_project`.

    Returns:
      `[batch, ceil(height / strides), ceil(width / strides), features]`, and the
      batch's statistics (none where `stats` is given).
    """
    kernels = {name: unit["conv"]["kernel"] for name, unit in params.items()}
    norms = {name: unit["norm"] for name, unit in params.items()}
    used: Stats = {name: stats and stats[name]["norm"] for name in params}
    inputs = x.astype(dtype or jnp.promote_types(x.dtype, kernels["expand"].dtype))
    if stats is None:
        expand, bias, used["expand"] = fold(
            kernels["expand"], norms["expand"], [inputs], epsilon, axis_name, covariance
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
        interpret=interpret,
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
