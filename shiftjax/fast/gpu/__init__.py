"""An implementation of the shift block for GPUs: one Pallas kernel each way.

Files, each of which imports only earlier ones: `plan` (the static shapes of a kernel),
`kernel` (the kernels of expand, ReLU, shift and project, in which the wide tensor never
exists), `call` (their calls and derivative), `statistics` (statistics of narrow
tensors, in one pass), `block` (the whole block, with BatchNorm from statistics of its
narrow input). `shiftjax.layers` has the reference implementation.
"""

from shiftjax.fast.gpu.block import gpu_supports as supports
from shiftjax.fast.gpu.block import shift_block
from shiftjax.fast.gpu.call import gpu_kernel_supports as is_supported
from shiftjax.fast.gpu.call import gpu_shift_project as shift_project
from shiftjax.fast.gpu.plan import Sizes

__all__ = ["Sizes", "is_supported", "shift_block", "shift_project", "supports"]
