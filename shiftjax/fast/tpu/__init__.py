"""An implementation of the shift block for TPUs: one Pallas kernel.

Files, each of which imports only earlier ones: `plan` (the static shapes of a kernel),
`rows` (products, and moves within the vector memory), `calls`, `forward` and `backward`
(the two kernels), `kernel` (expand, ReLU, shift and project as a differentiable
function, whose wide tensor never leaves the chip), `block` (the whole block, with
BatchNorm from statistics of its narrow input). `shiftjax.layers` has the reference
implementation.
"""

from shiftjax.fast.tpu.block import shift_block
from shiftjax.fast.tpu.block import tpu_supports as supports
from shiftjax.fast.tpu.kernel import tpu_shift_project as shift_project
from shiftjax.fast.tpu.plan import tpu_kernel_supports as is_supported

__all__ = ["is_supported", "shift_block", "shift_project", "supports"]
