"""The two formats of `torch.save`, safetensors, and the tensors of a file by name.

The first bytes of a file tell the formats apart. Since PyTorch 1.6 a file is a zip
archive, whose members are a pickle and the storages. An older file is a sequence of
pickles: a number that marks the format, its version, the machine, the value and the
keys of the storages. The storages follow, each as its size and its numbers. Both
formats are little-endian.

Source: https://github.com/pytorch/pytorch, torch/serialization.py.
"""

import io
import os
import struct
import zipfile
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from shiftjax.convert.torch_files.unpickle import load_torch_pickle
from shiftjax.convert.torch_files.values import DTYPES, Record, Storage, Tensor
from shiftjax.errors import InputError, MissingFileError
from shiftjax.files import user_path

ARCHIVE = b"PK\x03\x04"
LEGACY = b"\x80"  # a pickle of protocol 2
LEGACY_MARK = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001

SAFETENSORS_DTYPES = {
    "F64": DTYPES["Double"],
    "F32": DTYPES["Float"],
    "F16": DTYPES["Half"],
    "BF16": DTYPES["BFloat16"],
    "I64": DTYPES["Long"],
    "I32": DTYPES["Int"],
    "I16": DTYPES["Short"],
    "I8": DTYPES["Char"],
    "U8": DTYPES["Byte"],
    "BOOL": DTYPES["Bool"],
}

CHECKPOINT_KEYS = ("net", "state_dict", "model", "model_state_dict")
# Of torch.nn.DataParallel, torch.compile and of trainers that wrap the network.
PREFIXES = ("module.", "_orig_mod.", "model.")
DEPTH = 4  # of checkpoints within checkpoints


def read_torch_file(path: str | os.PathLike[str]) -> Any:
    """Reads a file of `torch.save`, of any version since 0.2.

    Args:
      path: the file.

    Returns:
      The saved value, as `shiftjax.convert.torch_files.unpickle.load_torch_pickle`
      returns it.

    Raises:
      MissingFileError: if the file does not exist.
      InputError: if it is not a file of `torch.save`, is damaged, or contains a call
        that is not known to be harmless.
    """
    path = user_path(path)
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}")
    data = path.read_bytes()
    try:
        if data.startswith(ARCHIVE):
            return _read_archive(data)
        if data.startswith(LEGACY):
            return _read_legacy(data)
        raise InputError("it is not a file of torch.save")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a file of safetensors, whose tensors may have any names.

    Args:
      path: the file.

    Returns:
      The tensors by name, as read-only arrays.

    Raises:
      MissingFileError: if the file does not exist.
      InputError: if it is damaged, or has numbers of a type that is not read.
    """
    path = user_path(path)
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}")
    try:
        return parse_safetensors(path.read_bytes())
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def parse_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """Parses the content of a file of safetensors.

    Args:
      data: the content.

    Returns:
      The tensors by name, as read-only arrays; unlike those of `safetensors.numpy`,
      they may be bfloat16.

    Raises:
      InputError: if it is damaged, or has numbers of a type that is not read.
    """
    import safetensors

    try:
        tensors = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise InputError(f"it is cut short or damaged: {error}") from error
    for name, tensor in tensors:
        if tensor["dtype"] not in SAFETENSORS_DTYPES:
            raise InputError(
                f"its tensor {name} is {tensor['dtype']}, which is not one of "
                + ", ".join(SAFETENSORS_DTYPES)
            )
    return {
        name: np.frombuffer(
            memoryview(tensor["data"]).toreadonly(), SAFETENSORS_DTYPES[tensor["dtype"]]
        ).reshape(tensor["shape"])
        for name, tensor in tensors
    }


def named_tensors(value: Any) -> dict[str, Any]:
    """Finds the tensors of a network in a saved value.

    Args:
      value: a state dict, a module, or a checkpoint: a dict with one of these as its
        "net", "state_dict", "model" or "model_state_dict".

    Returns:
      The tensors by name in the order of a state dict, as read-only views of type
      `np.ndarray`. Names lose the `PREFIXES` that all of them have. Values that are not
      tensors are returned unchanged.

    Raises:
      InputError: if there is neither a state dict nor a module.

    Example:
      >>> checkpoint = {"net": {"module.linear.bias": np.zeros(10)}, "epoch": 3}
      >>> list(named_tensors(checkpoint))
      ['linear.bias']
    """
    for _ in range(DEPTH):
        if isinstance(value, Mapping):
            nested = [value[key] for key in CHECKPOINT_KEYS if key in value]
            value = next((v for v in nested if isinstance(v, Mapping | Record)), value)
    if isinstance(value, Record):
        named = dict(_module_tensors(value))
    elif isinstance(value, Mapping):
        named = {f"{name}": tensor for name, tensor in value.items()}
    else:
        raise InputError(
            f"it is of type {type(value).__name__}, neither a state dict nor a module"
        )
    while prefix := _common_prefix(named):
        named = {name.removeprefix(prefix): named[name] for name in named}
    return {name: _array(tensor) for name, tensor in named.items()}


def _common_prefix(names: Collection[str]) -> str:
    """Returns the one of `PREFIXES` that all names have; "" if there is none."""
    return next(
        (p for p in PREFIXES if names and all(name.startswith(p) for name in names)), ""
    )


def _read_archive(data: bytes) -> Any:
    """Reads the value of a zip archive, the format since PyTorch 1.6."""
    storages: dict[str, Storage] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {member.filename: member for member in archive.infolist()}
            if any(m.compress_type != zipfile.ZIP_STORED for m in members.values()):
                raise InputError("it is compressed, which torch.save never does")
            roots = [name for name in members if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise InputError("it is an archive, but not one of torch.save")
            folder = roots[0].removesuffix("data.pkl")
            order = f"{folder}byteorder"
            if order in members and archive.read(order) != b"little":
                raise InputError("its numbers are big-endian")
            value = load_torch_pickle(io.BytesIO(archive.read(roots[0])), storages)
            for key, storage in storages.items():
                storage.data = archive.read(f"{folder}data/{key}")
                _check_size(storage, len(storage.data))
    except InputError:
        raise
    except (zipfile.BadZipFile, LookupError, ValueError, struct.error) as error:
        raise InputError(f"it is cut short or damaged: {error}") from error
    except (EOFError, NotImplementedError, OSError, RuntimeError) as error:
        raise InputError(f"it is cut short or damaged: {error}") from error
    return value


def _read_legacy(data: bytes) -> Any:
    """Reads the value of a sequence of pickles, the format before PyTorch 1.6."""
    stream = io.BytesIO(data)
    if load_torch_pickle(stream) != LEGACY_MARK:
        raise InputError("it is a pickle, but not a file of torch.save")
    if load_torch_pickle(stream) != LEGACY_VERSION:
        raise InputError(
            f"it has another version of the format than {LEGACY_VERSION}, the only one "
            "that is read"
        )
    machine = load_torch_pickle(stream)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise InputError("its numbers are not little-endian")
    storages: dict[str, Storage] = {}
    value = load_torch_pickle(stream, storages)
    keys = load_torch_pickle(stream)
    if not isinstance(keys, list) or any(type(key) is not str for key in keys):
        raise InputError("it is damaged: its keys of storages are not a list of names")
    if sorted(keys) != sorted(storages):
        raise InputError("it is damaged: it lists other storages than its tensors use")
    for storage in map(storages.__getitem__, keys):
        size = int.from_bytes(stream.read(8), "little")
        _check_size(storage, size * storage.dtype.itemsize)
        storage.data = stream.read(storage.nbytes)
        _check_size(storage, len(storage.data))
    return value


def _check_size(storage: Storage, nbytes: int) -> None:
    """Raises InputError unless a storage has the given size."""
    if nbytes != storage.nbytes:
        raise InputError(
            f"it is cut short or damaged: one of its storages has {nbytes} bytes, "
            f"not {storage.nbytes}"
        )


def _module_tensors(module: Record) -> Iterator[tuple[str, Any]]:
    """Yields the parameters and buffers of a module and of its submodules, by name."""
    seen: set[int] = set()
    modules = [("", module)]
    while modules:
        prefix, module = modules.pop()
        if id(module) in seen:
            raise InputError(f"its module {prefix[:-1]} appears twice")
        seen.add(id(module))
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _attribute(module, kind).items():
                if tensor is not None:
                    yield f"{prefix}{name}", tensor
        inner = [
            (f"{prefix}{name}.", child)
            for name, child in _attribute(module, "_modules").items()
            if isinstance(child, Record)
        ]
        modules.extend(reversed(inner))


def _attribute(module: Record, name: str) -> dict[Any, Any]:
    """Returns a dict attribute of a module; empty if the module has none."""
    state = module.state if isinstance(module.state, dict) else {}
    value = state.get(name)
    return value if isinstance(value, dict) else {}


def _array(value: Any) -> Any:
    """Returns a tensor of a file or of PyTorch as an array, other values unchanged."""
    if isinstance(value, Tensor):
        return value.array()
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if not value.is_floating_point():
            return np.asarray(value)
        dtype = jnp.dtype(str(value.dtype).removeprefix("torch."))
        return np.asarray(value.float()).astype(dtype)  # NumPy has no bfloat16
    return value
