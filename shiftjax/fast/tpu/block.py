"""The ShiftResNet block on a TPU: `shiftjax.fast.fused_block` around the kernel.

A strided shift is taken on the phases of the image, row and column modulo the stride:
each channel is expanded on the one phase that it reads, and shifted there by itself.
"""

import functools

import jax
import jax.numpy as jnp

from shiftjax.fast import fused_block
from shiftjax.fast.batchnorm import Pair, differentiable
from shiftjax.fast.phases import phases
from shiftjax.fast.tpu.kernel import definition, shift_project
from shiftjax.fast.tpu.plan import is_supported

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


def _moments(x: jax.Array) -> Pair:
    """Returns mean and variance `[C]` of x `[batch, height, width, C]`."""
    mean = fused_block.mean_of(x)
    return mean, fused_block.mean_of((x - fused_block.per_channel(mean)) ** 2)


def _covariance_backward(x: jax.Array, mean: jax.Array, g: Pair) -> jax.Array:
    share = x.shape[-1] / x.size
    slope = ((g[1] + g[1].T) * share).astype(x.dtype)
    centred = (x - fused_block.per_channel(mean)).astype(x.dtype)
    dx = jnp.dot(centred, slope, preferred_element_type=mean.dtype)
    return (dx + fused_block.per_channel(g[0] * share)).astype(x.dtype)


moments = differentiable(_moments, fused_block.moments_backward)
covariance = differentiable(fused_block.two_passes, _covariance_backward)


def middle(
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    *,
    kernel_size: int,
    strides: int,
    dilation: int,
    interpret: bool = False,
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


shift_block = functools.partial(
    fused_block.shift_block, middle=middle, moments=moments, covariance=covariance
)
