"""Reading of Caffe's files of weights, without Caffe and without protobuf.

A `.caffemodel` is a message in the wire format of protobuf: a sequence of fields, each
a number, a type and a value, which may be another message. These fields are read:

    network    100 layer
    layer      1 name, 7 blobs
    blob       7 shape, 5 data (float32)
    shape      1 dim

Sources: https://protobuf.dev/programming-guides/encoding, and caffe.proto in
https://github.com/BVLC/caffe.
"""

import io
import os
import zlib
from collections.abc import Iterator
from zipfile import BadZipFile

import numpy as np

from shiftjax.errors import InputError, MissingFileError
from shiftjax.files import user_path

SUFFIXES = (".caffemodel", ".npz")
LAYER, NAME, BLOBS, DATA, SHAPE = 100, 1, 7, 5, 7  # fields

VARINT, BYTES = 0, 2  # types of fields
FIXED = {1: 8, 5: 4}  # and their bytes
LONGEST = 10  # bytes of an integer

# What NumPy and the functions below raise for a file of another kind, or a damaged one.
UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    RuntimeError,  # of archives that are encrypted, or of an unknown kind
    BadZipFile,
    zlib.error,
)


def read_caffe_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the blobs of a network.

    Args:
      path: a `.caffemodel`; or an `.npz` of its blobs by the names below, of which
        other arrays are ignored.

    Returns:
      The blobs by "layer.index", such as "conv1.0", in their order in the file.

    Raises:
      MissingFileError: if the file does not exist.
      InputError: if it has another ending, is cut short, or is another kind of file.
    """
    path = user_path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: it must end in {' or '.join(SUFFIXES)}")
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}")
    data = path.read_bytes()
    try:
        if path.suffix == ".npz":
            with np.load(io.BytesIO(data)) as file:
                names = [name for name in file if name.rpartition(".")[2].isdecimal()]
                blobs = {name: file[name] for name in names}
        else:
            blobs = dict(_blobs(memoryview(data)))
    except UNREADABLE as error:
        raise InputError(
            f"{path} is not a file of Caffe weights, or is cut short: {error}"
        ) from error
    if not blobs:
        raise InputError(f"{path} is not a file of Caffe weights: it has no blobs")
    return blobs


def _blobs(network: memoryview) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the blobs of a network with their names."""
    for message in _messages(network).get(LAYER, []):
        layer = _messages(message)
        for index, blob in enumerate(layer.get(BLOBS, [])):
            yield f"{bytes(layer[NAME][-1]).decode()}.{index}", _array(_messages(blob))


def _array(blob: dict[int, list[memoryview]]) -> np.ndarray:
    """Returns the numbers of a blob, in its shape."""
    shape: list[int] = []
    for message in blob.get(SHAPE, []):
        for _, dim in _fields(message):
            shape += [dim] if isinstance(dim, int) else _varints(dim)
    return np.frombuffer(b"".join(blob.get(DATA, [])), "<f4").reshape(shape)


def _messages(message: memoryview) -> dict[int, list[memoryview]]:
    """Returns the fields of bytes of a message by number: text, and other messages."""
    found: dict[int, list[memoryview]] = {}
    for number, value in _fields(message):
        if not isinstance(value, int):
            found.setdefault(number, []).append(value)
    return found


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields the fields of a message: the number, and an integer or bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = divmod(key, 8)
        if kind == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == BYTES:
            size, at = _varint(message, at)
        elif kind in FIXED:
            size = FIXED[kind]
        else:
            raise ValueError(f"a field of the unknown type {kind}")
        if at + size > len(message):
            raise ValueError(f"a field of {size:,} bytes has {len(message) - at:,}")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Reads an integer of seven bits a byte; returns it and the place after it."""
    value = 0
    for index, byte in enumerate(message[at : at + LONGEST]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, at + index + 1
    raise ValueError("an integer does not end")


def _varints(message: memoryview) -> list[int]:
    """Reads integers up to the end."""
    values, at = [], 0
    while at < len(message):
        value, at = _varint(message, at)
        values.append(value)
    return values
