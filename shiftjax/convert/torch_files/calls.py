"""Simulated calls: the functions that PyTorch pickles name, and their replacements.

Source: https://github.com/pytorch/pytorch, torch/_utils.py and torch/serialization.py,
back to version 0.2 under Python 2.
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

LARGEST = 2**48  # bound of sizes, offsets, strides and integer keys


def instance(kind: Any, *_: Any) -> Record:
    """Creates the record of an object, without calling its class.

    Args:
      kind: the name of the class.

    Returns:
      A record without state.

    Raises:
      ValueError: if the kind is not the name of a class.
    """
    if type(kind) is not Name:
        raise ValueError("an object has no class")
    return Record(kind.path)


def fill(target: Any, values: list[Any]) -> dict[Any, Any]:
    """Adds items to a dict.

    Args:
      target: the dict.
      values: keys and values in turns.

    Returns:
      The same dict.

    Raises:
      ValueError: if the target is not a dict, or a key is of a type not allowed.
    """
    if type(target) is not dict:
        raise ValueError("items are added to an object that is not a dict")
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[_key(key)] = value
    return target


def part(storages: dict[str, Storage], *reference: Any) -> Part:
    """Finds or creates the storage that a pickle refers to.

    Args:
      storages: the known storages by key; a new one is added.
      *reference: class, key, device and size of the storage. Old versions of PyTorch
        also have views of storages, given by a tuple of key, start and size.

    Returns:
      All numbers of the storage, or those of the view.

    Raises:
      InputError: if the type of number is unknown.
      ValueError: if the reference is not of PyTorch's layout.
    """
    kind, key, _, size, *view = reference
    path = kind.path if type(kind) is Name else ""
    name = path.removeprefix("torch.").removeprefix("cuda.").removesuffix("Storage")
    if not path.endswith("Storage") or name not in DTYPES:
        raise InputError(
            f"it has tensors in {path or 'an object without a class'}, which is not "
            "one of " + ", ".join(f"{name}Storage" for name in DTYPES)
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
    """Creates the dict of an OrderedDict, which Python 2 saves as pairs."""
    return fill({}, [value for key, item in items for value in (key, item)])


def _tensor(part: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """Creates a tensor; gradient flag and hooks are ignored."""
    _check_numbers(offset, *shape, *strides)
    if type(part) is not Part:
        raise ValueError("a tensor has no storage")
    return Tensor(part, offset, tuple(shape), tuple(strides))


def _parameter(data: Any, *_: Any) -> Any:
    """Returns the tensor of a parameter."""
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
"""Allowed functions by name, with their replacements."""

_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
_TIMES = ("date", "datetime", "time", "timedelta", "timezone")
RECORDED = frozenset(
    [
        *(
            f"{module}.{name}"
            for module in ("pathlib", "pathlib._local")
            for name in _PATHS
        ),
        *(f"datetime.{name}" for name in _TIMES),
        "__builtin__.bytearray",
        "__builtin__.complex",
        "__builtin__.frozenset",
        "__builtin__.set",
        "__builtin__.xrange",
        "_codecs.encode",
        "argparse.Namespace",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.frozenset",
        "builtins.range",
        "builtins.set",
        "builtins.slice",
        "collections.Counter",
        "collections.defaultdict",
        "collections.deque",
        "decimal.Decimal",
        "fractions.Fraction",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy.dtype",
        "torch.Size",
        "torch.device",
        "torch.nn.backends.thnn._get_thnn_function_backend",
        "uuid.UUID",
    ]
)
"""Allowed functions whose call becomes a `Record`.

They make attributes of modules, and what else trainers save beside a network.
"""


def _check_numbers(*numbers: Any) -> None:
    """Raises ValueError unless all numbers are integers of 0 to `LARGEST`."""
    if any(type(n) is not int or not 0 <= n < LARGEST for n in numbers):
        raise ValueError("a size, offset or stride is not an integer of at least 0")


def _key(value: Any) -> Any:
    """Returns a key of a dict, after a check of its type.

    Only types that hash and print quickly are allowed: a damaged or hostile file must
    not cause endless work.
    """
    if type(value) not in (str, bytes, int, float, bool, type(None), Name) or (
        type(value) is int and abs(value) > LARGEST
    ):
        raise ValueError(f"a {type(value).__name__} cannot be a key")
    return value
