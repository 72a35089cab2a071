"""What a pickle of PyTorch's may want done, and what is done instead.

Source: what PyTorch writes, https://github.com/pytorch/pytorch, torch/_utils.py and
torch/serialization.py, back to version 0.2 under Python 2.
"""

from collections.abc import Callable, Iterable
from typing import Any

from shiftjax.convert.torch_files.values import (
    DTYPES,
    Name,
    Part,
    Record,
    Storage,
    Tensor,
)
from shiftjax.errors import InputError

LARGEST = 2**48  # of the numbers that tensors are made with


def instance(kind: Any, *_: Any) -> Record:
    """Makes an object of a class, of which nothing is called."""
    if type(kind) is not Name:
        raise ValueError("an object has no class")
    return Record(kind.path)


def fill(target: Any, values: list[Any]) -> dict[Any, Any]:
    """Adds keys and values, in turn, to a dict."""
    if type(target) is not dict:
        raise ValueError("what gets items is no dict")
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[_key(key)] = value
    return target


def part(storages: dict[str, Storage], *reference: Any) -> Part:
    """Finds or makes the storage that a pickle refers to.

    Args:
      storages: those known by their keys, to which a new one is added.
      *reference: class, key, device and size; and, of a storage that is a view of this
        one (which old versions of PyTorch have), its key, start and size.

    Returns:
      All numbers of the storage, or those of the view.

    Raises:
      InputError: if there is no such type of number.
      ValueError: if the reference is not as PyTorch makes it.
    """
    kind, key, _, size, *view = reference
    path = kind.path if type(kind) is Name else ""
    name = path.removeprefix("torch.").removeprefix("cuda.").removesuffix("Storage")
    if not path.endswith("Storage") or name not in DTYPES:
        raise InputError(
            f"it has tensors in {path or 'what is no class'}, and not in one of "
            + ", ".join(f"{name}Storage" for name in DTYPES)
        )
    start, length = view[0][1:] if view and view[0] is not None else (0, size)
    _check_numbers(size, start, length)
    if type(key) is not str:
        raise ValueError("a storage has no key")
    storage = storages.setdefault(key, Storage(DTYPES[name], size))
    if (storage.dtype, storage.size) != (DTYPES[name], size) or start + length > size:
        raise ValueError("a storage has two types or sizes")
    return Part(storage, start, start + length)


def _ordered_dict(items: Iterable[tuple[Any, Any]] = ()) -> dict[Any, Any]:
    """An OrderedDict, of which Python 2 saves the pairs."""
    return fill({}, [value for key, item in items for value in (key, item)])


def _tensor(part: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """A tensor; whether it has a gradient or hooks does not matter."""
    _check_numbers(offset, *shape, *strides)
    if type(part) is not Part:
        raise ValueError("a tensor is of no storage")
    return Tensor(part, offset, tuple(shape), tuple(strides))


def _parameter(data: Any, *_: Any) -> Any:
    """A parameter, which is its tensor."""
    return data


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "copy_reg._reconstructor": instance,
    "copyreg._reconstructor": instance,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.autograd.variable.Variable": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
}
"""The functions that may be called, and what is called for them."""

RECORDED = frozenset(
    [
        "__builtin__.set",
        "_codecs.encode",
        "builtins.set",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray.scalar",
        "numpy.dtype",
        "torch.Size",
        "torch.device",
        "torch.nn.backends.thnn._get_thnn_function_backend",
    ]
)
"""Those of which a record is kept: attributes of modules, with no tensors in them."""


def _check_numbers(*numbers: Any) -> None:
    if any(type(n) is not int or not 0 <= n < LARGEST for n in numbers):
        raise ValueError("a size, offset or stride is no positive number")


def _key(value: Any) -> Any:
    """A key of a dict, of a type that is hashed and printed at once."""
    if type(value) not in (str, bytes, int, float, bool, type(None), Name) or (
        type(value) is int and abs(value) > LARGEST
    ):
        raise ValueError(f"a {type(value).__name__} is a key")
    return value
