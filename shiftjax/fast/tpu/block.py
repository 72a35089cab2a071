"""The ShiftResNet block on a TPU: `shiftjax.fast.fused_block` with these kernels.

A strided shift is computed on the phases of the image, row and column modulo the
stride: each channel is expanded on the one phase that it reads, and shifted there with
stride 1.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from shiftjax.fast import fused_block
from shiftjax.fast.batchnorm import Pair, differentiable
from shiftjax.fast.dispatch import BlockOptions
from shiftjax.fast.phases import phases
from shiftjax.fast.tpu.kernel import tpu_shift_project
from shiftjax.fast.tpu.plan import tpu_kernel_supports

# With more channels, products are the limit, not memory: `python -m benchmarks.tpu`.
MEMORY_BOUND = 255


def tpu_supports(shape: Sequence[int], block: BlockOptions) -> bool:
    """Returns True for a block that `shift_block` computes faster than the reference.

    Args:
      shape: shape of the input on one device, `[batch, height, width, channels]`.
      block: options of the block.

    Returns:
      True for strides, which are computed by phases, and for sizes that the kernel
      supports; False for 256 channels or more, for which the products hide the memory
      traffic of the reference.

    Example:
      >>> block = BlockOptions(wide=48, features=16, dtype=jnp.bfloat16)
      >>> tpu_supports((256, 32, 32, 16), block)
      True
    """
    if block.strides > 1:
        return True
    if shape[-1] > MEMORY_BOUND:
        return False
    return tpu_kernel_supports(shape, block)


def _moments(x: jax.Array) -> Pair:
    """Returns mean and variance `[C]` of x `[batch, height, width, C]`."""
    mean = fused_block.mean_of(x)
    return mean, fused_block.mean_of((x - fused_block.per_channel(mean)) ** 2)


def _covariance_backward(x: jax.Array, mean: jax.Array, g: Pair) -> jax.Array:
    share = x.shape[-1] / x.size
    slope = ((g[1] + g[1].T) * share).astype(x.dtype)
    centered = (x - fused_block.per_channel(mean)).astype(x.dtype)
    dx = jnp.dot(centered, slope, preferred_element_type=mean.dtype)
    return (dx + fused_block.per_channel(g[0] * share)).astype(x.dtype)


moments = differentiable(_moments, fused_block.moments_backward)
covariance = differentiable(fused_block.two_passes, _covariance_backward)


def strided_shift_project(
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
    """Computes expand, ReLU, shift and project, by the kernel or by phases."""
    if strides == 1:
        return tpu_shift_project(
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
        y += fused_block.definition(phase, *weights, table, size=size)
    return y.astype(x.dtype)


shift_block = functools.partial(
    fused_block.fused_shift_block,
    middle=strided_shift_project,
    moments=moments,
    covariance=covariance,
)
