"""Reads images from tar files in the form of WebDataset, at random, without unpacking.

The image `KEY.jpg` (or another format) of a sample has a label beside it: `KEY.cls`, an
integer as text, or `KEY.json` with an integer "label". A folder has `train*.tar`, and
also `val*.tar` and `test*.tar`; without such names all its files are for training. The
names of the classes are the lines of `classnames.txt` or `classes.txt` in the folder,
else numbers.

A file is indexed once, when it is opened. Its images are then read in any order, so a
run is deterministic and resumes exactly, unlike with a stream of shuffled shards.
"""

import dataclasses
import functools
import json
import logging
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shiftjax import image_files
from shiftjax.errors import InputError, MissingFileError, reading
from train.data import shards, splits
from train.data.decoding import Decoding
from train.data.encoded import Encoded
from train.data.labels import name_classes

_LOG = logging.getLogger(__name__)
_BLOCK = 512
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_UNPACK = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
_CLASS_NAMES = ("classnames.txt", "classes.txt")


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """The samples of a tar file, in its order.

    Attributes:
      file: the file.
      keys: the names of the samples.
      places: offset and size in bytes of each image, int64 `[samples, 2]`.
      labels: int64 `[samples]`.
    """

    file: Path
    keys: list[str]
    places: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Shards:
    """Images in tar files; see `train.data.records.Records`.

    Attributes:
      indices: the files.
      class_names: one name per class.
    """

    indices: Sequence[Index]
    class_names: tuple[str, ...]

    upright: bool = True

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def labels(self) -> np.ndarray:
        """The labels of all files."""
        return np.concatenate([x.labels for x in self.indices]).astype(np.int32)

    def name(self, number: int) -> str:
        """Returns the file and the key of a sample."""
        index, place = self._find(number)
        return f"{index.file}: sample {index.keys[place]!r}"

    def read(self, numbers: Sequence[int]) -> list[tuple[bytes | Path, int]]:
        """Reads images from their places in the files."""
        return [self._sample(number) for number in numbers]

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(index.keys) for index in self.indices])

    def _find(self, number: int) -> tuple[Index, int]:
        """Returns the file of a sample, and its number there."""
        shard = int(np.searchsorted(self._ends, number, "right"))
        index = self.indices[shard]
        return index, number - int(self._ends[shard]) + len(index.keys)

    def _sample(self, number: int) -> tuple[bytes, int]:
        """Reads a sample, by a descriptor of its own and thus on any thread."""
        index, place = self._find(number)
        offset, size = index.places[place].tolist()
        try:
            descriptor = os.open(index.file, os.O_RDONLY)
            try:
                return os.pread(descriptor, size, offset), int(index.labels[place])
            finally:
                os.close(descriptor)
        except OSError as e:
            raise InputError(f"{self.name(number)} cannot be read ({e})") from e


def open_tar(path: str, decoding: Decoding) -> splits.OfficialSplits:
    """Opens a tar file, or a folder of them.

    Args:
      path: the file or the folder.
      decoding: how the images become pixels.

    Returns:
      The splits.

    Raises:
      MissingFileError: if there is no such file or folder.
      InputError: if a file is compressed, cut or empty, or a sample is not whole.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise MissingFileError(f"tar:{path}: there is no such file or folder")
    files = {"train": [root]} if root.is_file() else shards.by_split(_inside(root))
    folder = root.parent if root.is_file() else root
    _LOG.info("indexing %d tar files of %s", sum(map(len, files.values())), root)
    indices = {split: [_index(x) for x in found] for split, found in files.items()}
    everything = [index for found in indices.values() for index in found]
    class_names = name_classes(
        {str(index.file): index.labels for index in everything}, _class_names(folder)
    )
    examples = sum(len(index.keys) for index in everything)

    def read(split: str) -> Encoded:
        return Encoded.of(Shards(indices[split], class_names), decoding, examples)

    return splits.assign(f"tar:{path}", list(indices), read)


def _inside(folder: Path) -> list[Path]:
    """Lists the tar files in a folder."""
    with reading(folder):
        found = [
            file
            for file in folder.iterdir()
            if file.name.lower().endswith((".tar", *_COMPRESSED))
            and not file.name.startswith(".")
        ]
    if not found:
        raise InputError(f"{folder} has no files that end in .tar")
    return found


def _class_names(folder: Path) -> list[str] | None:
    """Reads the names of the classes, one a line, if there are any."""
    for name in _CLASS_NAMES:
        file = folder / name
        if file.is_file():
            with reading(file):
                lines = file.read_text("utf-8").splitlines()
            return [line.strip() for line in lines if line.strip()]
    return None


def _index(file: Path) -> Index:
    """Indexes a file, once as long as it does not change."""
    with reading(file):
        status = file.stat()
        return _indexed(file, status.st_size, status.st_mtime_ns)


@functools.cache
def _indexed(file: Path, size: int, changed: int) -> Index:
    """Indexes a file of a size and a time of change."""
    del changed
    with file.open("rb") as opened:
        start = opened.read(8)
    for magic, command in _UNPACK.items():
        if start.startswith(magic):
            raise InputError(
                f"{file} is compressed, so its images cannot be read at random: unpack "
                f"it with {command} < {file} > NEW.tar"
            )
    return _Members(file).read(size)


class _Members:
    """The members of a tar file, collected by sample."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._images: dict[str, tuple[int, int]] = {}
        self._labels: dict[str, int] = {}
        self._described: dict[str, Any] = {}

    def read(self, size: int) -> Index:
        """Reads a file of a size in bytes."""
        end, last = 0, "its start"
        try:
            with tarfile.open(self._file, "r:") as tar:
                for member in tar:
                    end, last = member.offset_data + member.size, member.name
                    if end > size:
                        raise InputError(f"{self._file} is cut within {last}")
                    if member.isfile():
                        self._add(tar, member)
        except (tarfile.TarError, OSError) as e:
            raise InputError(
                f"{self._file} is not a whole tar file: {e}, after {last}"
            ) from e
        with self._file.open("rb") as opened:
            opened.seek(-(-end // _BLOCK) * _BLOCK)
            # Python reads a file that is cut between two members without an error.
            if opened.read(_BLOCK) != bytes(_BLOCK):
                raise InputError(f"{self._file} is cut or damaged after {last}")
        return self._whole()

    def _add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Adds an image or a label."""
        # As in WebDataset, a key ends at the first dot of the file's name.
        parts = re.fullmatch(r"((?:.*/)?[^./]+)(\.[^/]+)", member.name)
        if parts is None:
            return
        key, extension = parts[1], parts[2].lower()
        table: dict[str, Any]
        if extension in image_files.EXTENSIONS:
            table, value = self._images, (member.offset_data, member.size)
        elif extension == ".cls":
            table, value = self._labels, self._number(tar, member)
        elif extension == ".json":
            table, value = self._described, self._description(tar, member)
        else:
            return
        if key in table:
            raise InputError(
                f"{self._file} has the sample {key!r} twice, again in {member.name}"
            )
        table[key] = value

    def _number(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
        """Reads a label from a text."""
        text = _content(tar, member)
        try:
            return int(text)
        except ValueError as e:
            raise InputError(
                f"{self._file}: {member.name} has {text[:20]!r}, which is no integer"
            ) from e

    def _description(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
        """Reads the label in a JSON object; None if there is none."""
        try:
            found = json.loads(_content(tar, member))
        except ValueError as e:
            raise InputError(f"{self._file}: {member.name} is no JSON ({e})") from e
        label = found.get("label") if isinstance(found, dict) else None
        return label if type(label) is int else None

    def _whole(self) -> Index:
        """Checks that each image has a label, and each label an image."""
        labels = {k: v for k, v in self._described.items() if v is not None}
        labels |= self._labels
        for key in self._images:
            if key not in labels:
                raise InputError(
                    f"{self._file}: sample {key!r} has no label, an integer in "
                    f'{key}.cls or as "label" in {key}.json'
                )
        for key in labels:
            if key not in self._images:
                raise InputError(f"{self._file}: sample {key!r} has no image")
        if not self._images:
            raise InputError(
                f"{self._file} has no samples, images KEY.jpg with KEY.cls or KEY.json"
            )
        return Index(
            self._file,
            list(self._images),
            np.array(list(self._images.values()), np.int64),
            np.array([labels[key] for key in self._images]),
        )


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Reads a member."""
    file = tar.extractfile(member)
    assert file is not None  # it is a file
    return file.read()
