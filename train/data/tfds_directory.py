"""Finds and describes data sets that TensorFlow Datasets has written to disk.

The module imports nothing from TFDS, so it finds a data set in milliseconds. The layout
is `data_dir/NAME[/CONFIG]/VERSION/`, with `dataset_info.json` and the record files in
it.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from shiftjax.errors import InputError, MissingFileError, reading, unknown_name

_PREPARED = {  # the commands for the data sets that need no TensorFlow
    "cifar10": "`python -m train prepare cifar10`",
    "cifar100": "`python -m train prepare cifar100`",
    "imagenet2012": "`python -m train prepare imagenet2012 --source FOLDER` with the "
    "folder of the official archives",
}
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclasses.dataclass(frozen=True)
class TfdsDirectory:
    """A data set on disk.

    Attributes:
      path: the directory of the version.
      full_name: `name/version` or `name/config/version`.
      splits: the number of examples of each split.
    """

    path: Path
    full_name: str
    splits: Mapping[str, int]

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """Returns name, size and modification time of every file of the data set."""
        files = sorted(file for file in self.path.iterdir() if file.is_file())
        status = [(file.name, file.stat()) for file in files]
        return [(name, s.st_size, s.st_mtime_ns) for name, s in status]


def data_directory(data_dir: str | None = None) -> Path:
    """Returns the directory of all TFDS data sets.

    Args:
      data_dir: the directory; None for TFDS's default, `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.

    Returns:
      The directory, which need not exist.

    Raises:
      InputError: if it is a remote address, which array_record cannot read.

    Example:
      >>> data_directory("sets").name
      'sets'
    """
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    chosen = os.fspath(data_dir or default)
    if "://" in chosen:
        raise InputError(
            f"data_dir {chosen!r}: only local folders can be read; mount or copy it"
        )
    return Path(chosen).expanduser()


def find_directory(name: str, data_dir: str | None = None) -> TfdsDirectory:
    """Finds a data set.

    Args:
      name: `NAME`, `NAME/CONFIG`, `NAME:VERSION` or `NAME/CONFIG:VERSION`, as in TFDS.
        The version defaults to the newest one, the config to the only one.
      data_dir: directory of all TFDS data sets; None for TFDS's default.

    Returns:
      The data set.

    Raises:
      MissingFileError: if the data set does not exist; the message has the command
        that creates it.
      InputError: if the data set cannot be read, or the name is ambiguous.
    """
    path, _, version = name.partition(":")
    folder = _folder_of_versions(data_directory(data_dir), path)
    versions = _versions(folder)
    if version and version not in versions:
        raise unknown_name(f"version of {path}", version, versions)
    return read_description(folder / (version or versions[-1]))


def _folder_of_versions(root: Path, path: str) -> Path:
    """Finds `NAME` or `NAME/CONFIG`; the config defaults to the only one."""
    folder = root / path
    base, _, config = path.partition("/")
    if config and not folder.is_dir() and (root / base).is_dir():
        raise unknown_name(f"config of {base}", config, _folders(root / base))
    if not path or not folder.is_dir():
        raise _missing(base, root)
    if _versions(folder):
        return folder
    configs = [name for name in _folders(folder) if _versions(folder / name)]
    if not configs:
        raise _missing(path, root)
    if len(configs) > 1:
        raise InputError(
            f"tfds:{path} is there in several configs, name one of them: "
            + ", ".join(f"tfds:{path}/{name}" for name in configs)
        )
    return folder / configs[0]


def _missing(name: str, root: Path) -> MissingFileError:
    """Builds the error for a data set that is not on disk."""
    build = (
        f"`tfds build {name} --file_format=array_record` where TensorFlow is installed"
    )
    run = _PREPARED.get(name, build)
    near = ", ".join(_folders(root)) if root.is_dir() else ""
    there = f"there are: {near}" if near else "there are none"
    return MissingFileError(
        f"no data set {name!r} in {root} ({there}): run {run}, or name another data_dir"
    )


def _folders(path: Path) -> list[str]:
    """Returns the names of the visible directories in a directory."""
    with reading(path):
        inside = [p for p in path.iterdir() if p.is_dir()]
    return sorted(p.name for p in inside if not p.name.startswith((".", "downloads")))


def _versions(path: Path) -> list[str]:
    """Returns the versions in a directory, the newest last."""
    found = [v for v in _folders(path) if _VERSION.fullmatch(v)]
    return sorted(found, key=lambda v: tuple(map(int, v.split("."))))


def read_description(path: Path) -> TfdsDirectory:
    """Reads the description of a data set from its directory.

    Args:
      path: the directory of a version.

    Returns:
      The description.

    Raises:
      InputError: if it is not a TFDS directory, or its format has no random access.
    """
    try:
        info = json.loads((path / "dataset_info.json").read_text())
        splits = {
            split["name"]: sum(map(int, split.get("shardLengths", [])))
            for split in info["splits"]
        }
        parts = [info["name"], info.get("configName", ""), info["version"]]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(
            f"{path} is not a whole TFDS data set ({e}): remove it and prepare it again"
        ) from e
    formats = [
        info.get("fileFormat", "tfrecord"),
        *info.get("alternativeFileFormats", []),
    ]
    if "array_record" not in formats:
        raise InputError(
            f"{path} is written as {formats[0]}, which only TensorFlow reads; write it "
            f"as array_record: `tfds build {info['name']} --file_format=array_record` "
            "where TensorFlow is installed, in another data_dir"
        )
    return TfdsDirectory(path, "/".join(filter(None, parts)), splits)
