"""An implementation of the shift block for GPUs: one Pallas kernel each way.

Files, in the order of their floors: `plan` (what is known when a kernel is traced),
`kernel` (expand, ReLU, shift and project, in which the wide tensor never exists),
`call` (their calls and derivative), `statistics` (of narrow tensors, in one pass),
`block` (the block around them, with BatchNorm from statistics of its narrow input).
`shiftjax.layers` defines what they compute.
"""

from shiftjax.fast.gpu.block import shift_block, supports
from shiftjax.fast.gpu.call import is_supported, shift_project
from shiftjax.fast.gpu.plan import Sizes

__all__ = ["Sizes", "is_supported", "shift_block", "shift_project", "supports"]
