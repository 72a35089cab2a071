"""Vision networks built on the shift operation, in JAX and Flax.

    import shiftjax

    y = shiftjax.shift(x)                       # the operation
    model = shiftjax.create_model("shiftresnet20_e3", num_classes=10)
    print(shiftjax.summarize("shiftresnet20_e3").macs)

The Flax modules are in `shiftjax.layers`, the networks in `shiftjax.models`, and shifts
of other kinds, fixed and learned, in `shiftjax.family`. `shiftjax.convert` converts
weights from PyTorch and Caffe, and to PyTorch.
"""

from shiftjax import convert, family
from shiftjax.errors import InputError, MissingFileError, UnknownNameError
from shiftjax.layers import CSC, SC2, ConvNorm, Shift, ShiftConv
from shiftjax.registry import create_model, list_models
from shiftjax.shift import displace, displacements, shift
from shiftjax.summary import Summary, summarize
from shiftjax.version import __version__
from shiftjax.weights import load_pretrained

__all__ = [
    "CSC",
    "SC2",
    "ConvNorm",
    "InputError",
    "MissingFileError",
    "Shift",
    "ShiftConv",
    "Summary",
    "UnknownNameError",
    "__version__",
    "convert",
    "create_model",
    "displace",
    "displacements",
    "family",
    "list_models",
    "load_pretrained",
    "shift",
    "summarize",
]
