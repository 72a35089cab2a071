"""Reading of PyTorch files, without PyTorch and without running code in them.

values.py     tensors, and inert stand-ins for all other objects
calls.py      the few calls of a pickle that are simulated
unpickle.py   an unpickler that calls nothing
formats.py    files of `torch.save` and safetensors, and their tensors by name
"""

from shiftjax.convert.torch_files.formats import (
    named_tensors,
    parse_safetensors,
    read_safetensors,
    read_torch_file,
)

__all__ = ["named_tensors", "parse_safetensors", "read_safetensors", "read_torch_file"]
