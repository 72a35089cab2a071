"""Reads images from folders, one folder per class.

`PATH/train/CLASS/*.jpg` with `PATH/test/CLASS/*.jpg` beside it, and also
`PATH/validation/CLASS/*.jpg` (or `val`, `valid`), in any capitals; or
`PATH/CLASS/*.jpg` alone. Without a test split, a fifth of the images is held out,
stratified by class, by a fixed seed. It depends on the files, so adding images changes
it; a folder `test` is fixed.
"""

import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shiftjax import image_files
from shiftjax.errors import InputError, MissingFileError, reading
from train.data import splits
from train.data.decoding import Decoding
from train.data.encoded import Encoded

_LOG = logging.getLogger(__name__)
_NOT_CLASSES = ("__MACOSX", "__pycache__")


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Image files; see `train.data.records.Records`.

    Attributes:
      paths: the files.
      labels: int32 `[files]`.
      class_names: one name per class.
    """

    paths: list[Path]
    labels: np.ndarray
    class_names: tuple[str, ...]

    upright: bool = True

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, number: int) -> str:
        """Returns the path of a file."""
        return str(self.paths[number])

    def read(self, numbers: Sequence[int]) -> list[tuple[bytes | Path, int]]:
        """Returns paths and labels."""
        return [(self.paths[i], int(self.labels[i])) for i in numbers]


def open_folder(
    path: str,
    decoding: Decoding,
    *,
    labelled: bool = True,
    without: frozenset[str] = frozenset(),
    min_images: int = 1,
) -> splits.OfficialSplits:
    """Opens a folder of images.

    Args:
      path: the folder.
      decoding: how the images become pixels.
      labelled: True if folders are classes; if False, the images have one class and
        no splits.
      without: names of classes to leave out, which are logged.
      min_images: least number of training images of a class; classes with fewer are
        left out too.

    Returns:
      The splits.

    Raises:
      MissingFileError: if the folder does not exist.
      InputError: if there are no images or only one class, or the splits' classes
        differ.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise MissingFileError(f"folder:{path}: there is no such folder")
    roots, classes = {"train": root}, ["."]
    if labelled:
        roots = _split_folders(root)
        if min_images > 1:
            without |= _small(roots["train"], min_images)
        classes = _classes(roots, without)
    listed = functools.cache(lambda split: _files(roots[split], classes))

    def read(split: str) -> Encoded:
        count = sum(len(listed(name)) for name in roots)
        examples = Encoded.of(listed(split), decoding, count)
        if examples.once:
            _warn_of_twins(listed(split))
        return examples

    return splits.assign(f"folder:{path}", list(roots), read)


def _split_folders(root: Path) -> dict[str, Path]:
    """Returns the folders of the splits, by their names."""
    inside = _folders(root)
    named = [name for name in inside if name.lower() in splits.SPLIT_NAMES]
    # A single one beside other folders, with images in it, is a class of this name.
    if len(named) == 1 < len(inside) and not _folders(root / named[0]):
        named = []
    roots = {name.lower(): root / name for name in named}
    if len(roots) < len(named):
        raise InputError(f"{root} has one split twice: {', '.join(named)}")
    if roots and "train" not in roots:
        raise InputError(
            f"{root} has {named[0]}/ and no train/: put the training images into "
            f"{root / 'train'}/CLASS/"
        )
    return roots or {"train": root}


def _small(root: Path, least: int) -> frozenset[str]:
    """Returns the names of the classes with fewer images."""
    return frozenset(
        name
        for name in _folders(root)
        if sum(1 for _ in image_files.walk_images(root / name)) < least
    )


def _folders(path: Path) -> list[str]:
    """Returns the names of the folders in a folder, sorted, without hidden ones."""
    with reading(path):
        inside = [p for p in path.iterdir() if not p.name.startswith(".")]
    for link in inside:
        if not link.exists() and link.suffix.lower() not in image_files.EXTENSIONS:
            target = os.readlink(link)
            raise InputError(f"{link} is a link to {target}, which is not there")
    return sorted(p.name for p in inside if p.is_dir() and p.name not in _NOT_CLASSES)


def _classes(roots: dict[str, Path], without: frozenset[str]) -> list[str]:
    """Returns the names of the classes, the same in every split."""
    found_here = _folders(roots["train"])
    classes = [name for name in found_here if name not in without]
    left_out = [name for name in found_here if name in without]
    if left_out:
        _note(roots["train"], tuple(left_out), len(classes))
    if len(classes) < 2:
        found = (
            f"one class only, {classes[0]!r}" if classes else "no folders of classes"
        )
        raise InputError(
            f"{roots['train']} has {found}: images are expected in one folder a "
            "class, two classes at least"
        )
    for root in roots.values():
        inside = set(_folders(root))
        extra = sorted(inside - set(classes) - without)
        missing = sorted(set(classes) - inside)
        if extra or missing:
            differences = [
                *([f"missing {', '.join(missing[:10])}"] if missing else []),
                *([f"extra {', '.join(extra[:10])}"] if extra else []),
            ]
            raise InputError(
                f"{root} has not the same classes as {roots['train']}: "
                + "; ".join(differences)
            )
    return classes


@functools.cache  # once for each folder
def _note(root: Path, left_out: tuple[str, ...], kept: int) -> None:
    """Logs the classes that are left out."""
    _LOG.warning(
        "%s: %d of %d classes are left out: %s%s",
        root,
        len(left_out),
        len(left_out) + kept,
        ", ".join(left_out[:5]),
        ", ..." if len(left_out) > 5 else "",
    )


def _files(root: Path, classes: list[str]) -> Files:
    """Lists the images of a split by class and path, with their labels."""
    files: list[Path] = []
    counts = []
    for name in classes:
        found = image_files.find_images(root / name)
        files += found
        counts.append(len(found))
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return Files(files, labels, tuple(classes))


def _warn_of_twins(files: Files) -> None:
    """Logs an image that is in two classes, if there is one."""
    twins = _twins(files)
    if twins is not None:
        _LOG.warning("%s and %s are the same image in two classes", *twins)


def _twins(files: Files) -> tuple[str, str] | None:
    """Returns two files of the same bytes in two classes, or None.

    Only files of the same size are read.
    """
    by_size: dict[int, list[int]] = {}
    for i, path in enumerate(files.paths):
        if path.exists():  # no dangling link
            by_size.setdefault(path.stat().st_size, []).append(i)
    for numbers in by_size.values():
        if len(set(files.labels[numbers])) == 1:
            continue
        first: dict[bytes, int] = {}
        for i in numbers:
            digest = hashlib.sha1(files.paths[i].read_bytes()).digest()
            other = first.setdefault(digest, i)
            if files.labels[other] != files.labels[i]:
                return files.name(other), files.name(i)
    return None
