"""Conversion of weights from and to PyTorch: `from_torch` and `to_torch`."""

from shiftjax.convert.state_dicts import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
