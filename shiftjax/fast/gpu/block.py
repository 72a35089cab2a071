"""The ShiftResNet block on a GPU: `shiftjax.fast.fused_block` with these kernels.

XLA normalizes the narrow tensors.
"""

import functools
from collections.abc import Sequence

from shiftjax.fast import fused_block
from shiftjax.fast.dispatch import BlockOptions
from shiftjax.fast.gpu.call import gpu_kernel_supports, gpu_shift_project
from shiftjax.fast.gpu.statistics import SUMMED_CHANNELS, covariance, moments


def gpu_supports(shape: Sequence[int], block: BlockOptions) -> bool:
    """Returns True for a block that `shift_block` should compute faster.

    This is an estimate from the bytes moved (`python -m benchmarks.gpu_costs`). No time
    has been measured, so `shiftjax.fast.dispatch` chooses it only if asked for.

    Args:
      shape: shape of the input on one device, `[batch, height, width, channels]`.
      block: options of the block, with any strides.

    Returns:
      True for sizes that the kernels support, up to 128 channels and features. With
      more channels, products are the limit, not memory.

    Example:
      >>> import jax.numpy as jnp
      >>> options = {"features": 32, "dtype": jnp.bfloat16, "strides": 2}
      >>> gpu_supports((100, 32, 32, 16), BlockOptions(wide=96, **options))
      True
    """
    if max(shape[-1], block.features) > SUMMED_CHANNELS:
        return False
    return gpu_kernel_supports(shape, block)


shift_block = functools.partial(
    fused_block.fused_shift_block,
    middle=gpu_shift_project,
    moments=moments,
    covariance=covariance,
)
