"""An implementation of the shift block for TPUs: one Pallas kernel.

Files, in the order of their floors: `plan` (what is known when a kernel is traced),
`rows` (products, and moves within the vector memory), `calls`, `forward` and `backward`
(the two kernels), `kernel` (expand, ReLU, shift and project as a differentiable
function, whose wide tensor never leaves the chip), `block` (the block around it, with
BatchNorm from statistics of its narrow input). `shiftjax.layers` defines what they
compute.
"""

from shiftjax.fast.tpu.block import shift_block, supports
from shiftjax.fast.tpu.kernel import shift_project
from shiftjax.fast.tpu.plan import is_supported

__all__ = ["is_supported", "shift_block", "shift_project", "supports"]
