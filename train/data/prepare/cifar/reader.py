"""Reads the official CIFAR files: finds them, verifies their digests, decodes them.

No file is decoded before its digest has been verified.
"""

import dataclasses
import hashlib
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from shiftjax.errors import InputError, MissingFileError
from train.data.prepare.cifar.files import Cifar, Layout
from train.data.prepare.cifar.pickles import load_pickle

_PIXELS = 3 * 32 * 32  # an image is stored as its red, green and blue planes


@dataclasses.dataclass(frozen=True)
class CifarSplit:
    """One split, in the official order.

    Attributes:
      images: uint8 `[examples, 32, 32, 3]`.
      labels: uint8 `[examples]` for each label key.
    """

    images: np.ndarray
    labels: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class CifarContents:
    """A whole CIFAR data set.

    Attributes:
      train: the training split.
      test: the test split.
      names: the names of the classes for each label key.
    """

    train: CifarSplit
    test: CifarSplit
    names: Mapping[str, tuple[str, ...]]


def read_cifar(spec: Cifar, source: Sequence[str | Path]) -> CifarContents:
    """Reads a CIFAR data set from its official files.

    Args:
      spec: the data set.
      source: the archive (pickles or binary, as published), or a folder with the
        extracted files or the archive, or the files themselves.

    Returns:
      The contents.

    Raises:
      MissingFileError: if a path or a file of the data set does not exist.
      InputError: if a file is not the official one.
    """
    found = _find(spec, source)
    for layout in (spec.binary, spec.python):
        if layout.archive in found:
            return _decode(spec, layout, _unpack(layout, found[layout.archive]))
        if all(file in found for file in layout.files):
            files = {file: found[file].read_bytes() for file in layout.files}
            return _decode(spec, layout, files)
    nearest = max(
        (spec.python, spec.binary), key=lambda s: sum(f in found for f in s.files)
    )
    missing = [file for file in nearest.files if file not in found]
    raise MissingFileError(
        f"{', '.join(map(str, source))}: not all files of {spec.name} are there, "
        f"missing {', '.join(missing)} (or {nearest.archive})"
    )


def _find(spec: Cifar, source: Sequence[str | Path]) -> dict[str, Path]:
    """Returns the path of each official file in the source."""
    found: dict[str, Path] = {}
    layouts = (spec.binary, spec.python)
    names = {name for s in layouts for name in (s.archive, *s.files)}
    for path in (Path(item).expanduser() for item in source):
        if not path.exists():
            raise MissingFileError(f"{path}: there is no such file or folder")
        if path.is_file() and path.name not in names:
            raise InputError(
                f"{path}: not a file of {spec.name} by its name; the official ones "
                f"are {', '.join(sorted(names))}"
            )
        folders = (path, *(path / layout.folder for layout in layouts))
        candidates = (
            [path] if path.is_file() else [f / n for f in folders for n in names]
        )
        found.update({c.name: c for c in candidates if c.is_file()})
    return found


def verify_archive(layout: Layout, path: Path) -> None:
    """Compares an archive with the official one.

    Args:
      layout: the published layout.
      path: the archive.

    Raises:
      InputError: if the size or the digest differs.
    """
    algorithm, expected = layout.archive_digest.split(":")
    size = path.stat().st_size
    if size != layout.archive_bytes:
        raise InputError(
            f"{path}: {size} bytes instead of the official {layout.archive_bytes}; "
            "the file is cut short or not the official one"
        )
    with path.open("rb") as file:
        received = hashlib.file_digest(file, algorithm).hexdigest()
    if received != expected:
        raise InputError(
            f"{path}: {algorithm} {received} instead of the official {expected}; "
            "the file is damaged or not the official one"
        )


def _unpack(layout: Layout, path: Path) -> dict[str, bytes]:
    """Reads the files of a verified archive, without writing to disk."""
    verify_archive(layout, path)
    files = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            stream = archive.extractfile(member) if name in layout.files else None
            if stream is not None:
                files[name] = stream.read()
    missing = [file for file in layout.files if file not in files]
    if missing:
        raise MissingFileError(f"{path}: {', '.join(missing)} is not in the archive")
    return files


def _decode(spec: Cifar, layout: Layout, files: Mapping[str, bytes]) -> CifarContents:
    """Verifies and decodes the files of one layout."""
    for name, expected in layout.md5.items():
        received = hashlib.md5(files[name], usedforsecurity=False).hexdigest()
        if received != expected:
            raise InputError(
                f"{name}: md5 {received} instead of the official {expected}; "
                "the file is damaged or not the official one"
            )
    decode = _pickled_split if layout.is_pickled else _binary_split
    return CifarContents(
        train=decode(spec, [files[name] for name in layout.train]),
        test=decode(spec, [files[name] for name in layout.test]),
        names=_class_names(spec, layout, files),
    )


def _class_names(
    spec: Cifar, layout: Layout, files: Mapping[str, bytes]
) -> dict[str, tuple[str, ...]]:
    """Reads the names of the classes of every label key and verifies them."""
    if layout.is_pickled:
        meta = load_pickle(files[layout.names[0]])
        lines = [meta[spec.pickled_keys[key][1]] for key in spec.label_keys]
    else:
        lines = [files[name].decode().splitlines() for name in layout.names]
    names = {
        k: tuple(filter(None, v)) for k, v in zip(spec.label_keys, lines, strict=True)
    }
    for key, values in names.items():
        text = "\n".join(values).encode()
        received = hashlib.md5(text, usedforsecurity=False).hexdigest()
        if received != spec.names_digest[key]:
            raise InputError(
                f"{', '.join(layout.names)}: the class names of {key!r} are not the "
                f"official ones: {', '.join(values)[:80]}"
            )
    return names


def _binary_split(spec: Cifar, files: Sequence[bytes]) -> CifarSplit:
    """Decodes binary records: the labels, one byte each, and the pixels."""
    keys = spec.label_keys
    rows = np.frombuffer(b"".join(files), np.uint8).reshape(-1, len(keys) + _PIXELS)
    labels = {key: rows[:, column] for column, key in enumerate(keys)}
    return CifarSplit(_channels_last(rows[:, len(keys) :]), labels)


def _pickled_split(spec: Cifar, files: Sequence[bytes]) -> CifarSplit:
    """Decodes pickled batches."""
    batches = [load_pickle(file) for file in files]
    labels = {
        key: np.concatenate([np.array(b[pickled], np.uint8) for b in batches])
        for key, (pickled, _) in spec.pickled_keys.items()
    }
    return CifarSplit(
        _channels_last(np.concatenate([b["data"] for b in batches])), labels
    )


def _channels_last(rows: np.ndarray) -> np.ndarray:
    """Turns rows of color planes into `[examples, 32, 32, 3]`."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
