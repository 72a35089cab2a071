"""PyTorch's files, read without PyTorch and without running what is in them.

values.py     tensors, and what stands for everything else
unpickle.py   pickles, of which nothing is called
formats.py    the files of `torch.save`, and the tensors in them by name
"""

from shiftjax.convert.torch_files.formats import named_tensors, read

__all__ = ["named_tensors", "read"]
