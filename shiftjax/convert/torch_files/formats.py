"""The files of `torch.save`, and the tensors in them by name.

Two formats, told apart by their first bytes: since PyTorch 1.6 an archive whose members
are a pickle and the storages; before, pickles one after the other (a number that marks
the format, its version, the machine, the value, the keys of the storages) and behind
them the storages, each as its size and its numbers. Both little-endian.

Source: https://github.com/pytorch/pytorch, torch/serialization.py.
"""

import io
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shiftjax.convert.torch_files.unpickle import load
from shiftjax.convert.torch_files.values import Record, Storage, Tensor
from shiftjax.errors import InputError, MissingFileError

ARCHIVE = b"PK\x03\x04"
LEGACY = b"\x80"  # a pickle of protocol 2
LEGACY_MARK = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001

CHECKPOINT_KEYS = ("net", "state_dict", "model")


def read(path: str | os.PathLike[str]) -> Any:
    """Reads a file of `torch.save`, of any version since 0.2.

    Args:
      path: the file.

    Returns:
      What was saved, as `shiftjax.convert.torch_files.unpickle.load` returns it.

    Raises:
      MissingFileError: if there is no such file.
      InputError: if it is none of `torch.save`, is damaged, or wants something called
        that is not known to be harmless.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"no file {path}")
    data = Path(path).read_bytes()
    try:
        if data.startswith(ARCHIVE):
            return _read_archive(data)
        if data.startswith(LEGACY):
            return _read_legacy(data)
        raise InputError("it is not a file of torch.save")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def named_tensors(value: Any) -> dict[str, Any]:
    """Finds the tensors of a network in what was saved of it.

    Args:
      value: a state dict, a module, or a checkpoint: a dict with one of these as its
        "net", "state_dict" or "model".

    Returns:
      The tensors in the order and by the names of a state dict, without the prefix
      "module." of `torch.nn.DataParallel`; read-only views of type `np.ndarray`. What
      is no tensor is returned as it is.

    Raises:
      InputError: if there is neither a state dict nor a module.

    Example:
      >>> checkpoint = {"net": {"module.linear.bias": np.zeros(10)}, "epoch": 3}
      >>> list(named_tensors(checkpoint))
      ['linear.bias']
    """
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
    if all(name.startswith("module.") for name in named):
        named = {name.removeprefix("module."): named[name] for name in named}
    return {name: _array(tensor) for name, tensor in named.items()}


def _read_archive(data: bytes) -> Any:
    storages: dict[str, Storage] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {member.filename: member for member in archive.infolist()}
            if any(m.compress_type != zipfile.ZIP_STORED for m in members.values()):
                raise InputError("it is compressed, as torch.save never does")
            roots = [name for name in members if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise InputError("it is an archive, but not one of torch.save")
            folder = roots[0].removesuffix("data.pkl")
            order = f"{folder}byteorder"
            if order in members and archive.read(order) != b"little":
                raise InputError("its numbers are big-endian")
            value = load(io.BytesIO(archive.read(roots[0])), storages)
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
    stream = io.BytesIO(data)
    if load(stream) != LEGACY_MARK:
        raise InputError("it is a pickle, but not a file of torch.save")
    if load(stream) != LEGACY_VERSION:
        raise InputError(f"it is not of the format's version {LEGACY_VERSION}")
    machine = load(stream)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise InputError("its numbers are not little-endian")
    storages: dict[str, Storage] = {}
    value = load(stream, storages)
    keys = load(stream)
    if not isinstance(keys, list) or any(type(key) is not str for key in keys):
        raise InputError("it is damaged: its list of storages is none")
    if sorted(keys) != sorted(storages):
        raise InputError("it is damaged: it lists other storages than its tensors have")
    for storage in map(storages.__getitem__, keys):
        size = int.from_bytes(stream.read(8), "little")
        _check_size(storage, size * storage.dtype.itemsize)
        storage.data = stream.read(storage.nbytes)
        _check_size(storage, len(storage.data))
    return value


def _check_size(storage: Storage, nbytes: int) -> None:
    if nbytes != storage.nbytes:
        raise InputError(
            f"it is cut short or damaged: one of its storages has {nbytes} bytes, "
            f"not {storage.nbytes}"
        )


def _module_tensors(module: Record) -> Iterator[tuple[str, Any]]:
    """Yields the parameters and buffers of a module, and of those within it."""
    seen: set[int] = set()
    modules = [("", module)]
    while modules:
        prefix, module = modules.pop()
        if id(module) in seen:
            raise InputError(f"its module {prefix[:-1]} is there twice")
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
    """A dict among the attributes of a module, empty if there is none."""
    state = module.state if isinstance(module.state, dict) else {}
    value = state.get(name)
    return value if isinstance(value, dict) else {}


def _array(value: Any) -> Any:
    """A tensor, of a file or of PyTorch's own, as an array."""
    if isinstance(value, Tensor):
        return value.array()
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
        return np.asarray(value)
    return value
