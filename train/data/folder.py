"""Reads images from folders, one folder per class.

`PATH/train/CLASS/*.jpg` with `PATH/test/CLASS/*.jpg` beside it, and also
`PATH/validation/CLASS/*.jpg` (or `val`, `valid`); or `PATH/CLASS/*.jpg` alone.
Without a test split, a fifth of the images is held out, stratified by class, by a fixed
seed. It depends on the files, so adding images changes it; a folder `test` is fixed.
"""

import warnings
from pathlib import Path

import numpy as np

from shiftjax import image_files
from shiftjax.errors import InputError, MissingFileError, unknown_name
from train.data import bulk, splits
from train.data.image_set import ImageSet

ON_CORRUPT = ("error", "skip")

_NOT_CLASSES = ("__MACOSX", "__pycache__")


def open_folder(
    path: str,
    image_size: int,
    channels: int,
    *,
    on_corrupt: str = "error",
    labelled: bool = True,
) -> splits.OfficialSplits:
    """Opens a folder of images.

    Args:
      path: the folder.
      image_size: the height and width to resize the images to.
      channels: 1 (gray) or 3 (RGB).
      on_corrupt: `"error"` stops at a damaged image, `"skip"` leaves it out and
        warns.
      labelled: True if folders are classes; if False, the images have one class and
        no splits.

    Returns:
      The splits.

    Raises:
      MissingFileError: if the folder does not exist.
      UnknownNameError: for another value of `on_corrupt`.
      InputError: if there are no images or only one class, or the splits' classes
        differ.
    """
    if on_corrupt not in ON_CORRUPT:
        raise unknown_name("value of on_corrupt", on_corrupt, ON_CORRUPT)
    root = Path(path).expanduser()
    if not root.is_dir():
        raise MissingFileError(f"folder:{path}: there is no such folder")
    roots, classes = _labelled(root) if labelled else ({"train": root}, ["."])

    def read(split: str) -> ImageSet:
        return _read(roots[split], classes, image_size, channels, on_corrupt)

    return splits.assign(f"folder:{path}", list(roots), read)


def _labelled(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Returns the splits' folders, and the names of the classes in them."""
    inside = _folders(root)
    names = [name for name in inside if name in splits.SPLIT_NAMES]
    if names and "train" not in names:
        raise InputError(
            f"{root} has {names[0]}/ and no train/: put the training images into "
            f"{root / 'train'}/CLASS/"
        )
    roots = {name: root / name for name in names} or {"train": root}
    return roots, _classes(roots)


def _folders(path: Path) -> list[str]:
    """Returns the names of the folders in a folder, sorted, without hidden ones."""
    inside = (p.name for p in path.iterdir() if p.is_dir())
    return sorted(n for n in inside if not n.startswith(".") and n not in _NOT_CLASSES)


def _classes(roots: dict[str, Path]) -> list[str]:
    """Returns the names of the classes, the same in every split."""
    classes = _folders(roots["train"])
    if len(classes) < 2:
        found = (
            f"one class only, {classes[0]!r}" if classes else "no folders of classes"
        )
        raise InputError(
            f"{roots['train']} has {found}: images are expected in one folder a "
            "class, two classes at least"
        )
    for root in roots.values():
        extra = sorted(set(_folders(root)) - set(classes))
        missing = sorted(set(classes) - set(_folders(root)))
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


def _files(root: Path, classes: list[str]) -> tuple[list[Path], np.ndarray]:
    """Lists the images of a split by class and path, with their labels."""
    files: list[Path] = []
    counts = []
    for name in classes:
        found = image_files.find(root / name)
        files += found
        counts.append(len(found))
    return files, np.repeat(np.arange(len(classes), dtype=np.int32), counts)


def _read(
    root: Path, classes: list[str], image_size: int, channels: int, on_corrupt: str
) -> ImageSet:
    """Decodes the images of a split."""
    files, labels = _files(root, classes)
    images = bulk.allocate(len(files), image_size, channels)
    corrupt: list[tuple[int, InputError]] = []

    def work(chunk: range) -> None:
        for i in chunk:
            try:
                images[i] = image_files.decode(
                    files[i], image_size, channels, upright=True
                )
            except InputError as e:
                if on_corrupt == "error":
                    raise
                corrupt.append((i, e))

    bulk.for_chunks(len(files), work)
    if corrupt:
        first = min(corrupt, key=lambda pair: pair[0])[1]
        warnings.warn(
            f"{root}: {len(corrupt)} of {len(files)} images are left out, "
            f"the first is {first}",
            stacklevel=2,
        )
        kept = np.delete(np.arange(len(files)), [i for i, _ in corrupt])
        images, labels = images[kept], labels[kept]
    return ImageSet(images, labels, tuple(classes))
