"""Conversion of weights: from and to PyTorch, and from Caffe."""

from shiftjax.convert.caffe import from_caffe
from shiftjax.convert.state_dicts import from_torch, to_torch

__all__ = ["from_caffe", "from_torch", "to_torch"]
