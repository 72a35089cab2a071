"""The fast form of the shift block on a TPU: one Pallas kernel.

Files, in the order of their floors: `kernel` (expand, ReLU, shift and project, in
which the wide tensor never leaves the chip), `block` (the block around it, with
BatchNorm from statistics of its narrow input). `shiftjax.layers` defines what they
compute.
"""

from shiftjax.tpu.block import is_faster, shift_block
from shiftjax.tpu.kernel import is_supported, shift_project

__all__ = ["is_faster", "is_supported", "shift_block", "shift_project"]
