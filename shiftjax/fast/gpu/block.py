"""The ShiftResNet block on a GPU: `shiftjax.fast.fused_block` around the kernel.

Normalisation of narrow tensors is left to XLA.
"""

import functools

import jax.numpy as jnp

from shiftjax.fast import fused_block
from shiftjax.fast.gpu.call import is_supported, shift_project
from shiftjax.fast.gpu.statistics import MOST_CHANNELS, covariance, moments


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


shift_block = functools.partial(
    fused_block.shift_block,
    middle=shift_project,
    moments=moments,
    covariance=covariance,
)
