"""The fast form of the shift block on a TPU: one Pallas kernel."""

from shiftjax.tpu.kernel import is_supported, shift_project

__all__ = ["is_supported", "shift_project"]
