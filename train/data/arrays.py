"""Reads images and labels from a NumPy archive, a file of `numpy.savez`.

`train_images`, uint8 `[examples, height, width]` or `[examples, height, width, 1 or
3]`, and `train_labels`, integers `[examples]` or `[examples, 1]`. `test_images` and
`validation_images` (or `val_images`) with their labels are the other splits, as in
MedMNIST. `images` and `labels` alone have no splits. `class_names` is optional. Nothing
is unpickled.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile
from PIL import Image

from shiftjax import image_files
from shiftjax.errors import InputError, MissingFileError, reading
from train.data import bulk, splits
from train.data.decoding import Decoding
from train.data.image_set import ImageSet
from train.data.labels import name_classes


def open_arrays(path: str, decoding: Decoding) -> splits.OfficialSplits:
    """Opens a NumPy archive, whose images are kept in memory.

    Args:
      path: the file.
      decoding: the size and the channels of the images.

    Returns:
      The splits.

    Raises:
      MissingFileError: if the file does not exist.
      InputError: if the archive is damaged, or an array is missing or of another kind.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingFileError(f"npz:{path}: there is no such file")
    with _opened(file) as archive:
        prefixes = _prefixes(file, archive)
        labels = {
            split: _labels(file, archive, f"{prefix}labels")
            for split, prefix in prefixes.items()
        }
        places = {f"{file}: {prefixes[split]}labels": x for split, x in labels.items()}
        class_names = name_classes(places, _class_names(file, archive))

    def read(split: str) -> ImageSet:
        with _opened(file) as archive:
            images = _images(file, archive, f"{prefixes[split]}images")
        if len(images) != len(labels[split]):
            raise InputError(
                f"{file} has {len(images)} {prefixes[split]}images and "
                f"{len(labels[split])} {prefixes[split]}labels"
            )
        own = labels[split].astype(np.int32)
        return ImageSet(_fitted(images, decoding), own, class_names)

    return splits.assign(f"npz:{path}", list(prefixes), read)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[NpzFile]:
    """Opens an archive; its arrays are read on use."""
    with reading(file), file.open("rb") as opened:
        try:
            archive = np.load(opened, allow_pickle=False)
        except Exception as e:  # of zipfile, pickle, or NumPy's own
            raise InputError(f"{file} is not a whole archive of numpy ({e})") from e
        if not isinstance(archive, NpzFile):
            raise InputError(f"{file} is one array: numpy.savez writes several")
        yield archive


def _prefixes(file: Path, archive: NpzFile) -> dict[str, str]:
    """Returns the first part of the names of the arrays of each split.

    Raises:
      InputError: if a split has images without labels, or labels without images.
    """
    prefixes = {split: f"{split}_" for split in splits.SPLIT_NAMES}
    found = {
        split: prefix
        for split, prefix in prefixes.items()
        if f"{prefix}images" in archive or f"{prefix}labels" in archive
    }
    alone = "images" in archive or "labels" in archive
    found = found or {"train": "" if alone else "train_"}
    names = [p + kind for p in found.values() for kind in ("images", "labels")]
    for name in names:
        if name not in archive:
            raise InputError(
                f"{file} has no array {name!r}; it has "
                f"{', '.join(archive.files) or 'none'}"
            )
    return found


def _array(file: Path, archive: NpzFile, name: str) -> np.ndarray:
    """Reads an array, which must not be empty."""
    try:
        array = archive[name]
    except MemoryError:
        raise
    except Exception as e:  # of zipfile, zlib, or NumPy's own; also for objects
        raise InputError(f"{file}: {name} cannot be read ({e})") from e
    if not array.size:
        raise InputError(f"{file}: {name} is empty, of shape {list(array.shape)}")
    return array


def _labels(file: Path, archive: NpzFile, name: str) -> np.ndarray:
    """Reads labels, as integers `[examples]`."""
    labels = _array(file, archive, name)
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or not np.issubdtype(flat.dtype, np.integer):
        raise InputError(
            f"{file}: {name} must be integers [examples] or [examples, 1], not "
            f"{labels.dtype} {list(labels.shape)}"
        )
    return flat


def _class_names(file: Path, archive: NpzFile) -> list[str] | None:
    """Reads the names of the classes, if there are any."""
    if "class_names" not in archive:
        return None
    names = _array(file, archive, "class_names")
    if names.ndim != 1 or names.dtype.kind != "U":
        raise InputError(
            f"{file}: class_names must be strings [classes], not {names.dtype} "
            f"{list(names.shape)}"
        )
    return names.tolist()


def _images(file: Path, archive: NpzFile, name: str) -> np.ndarray:
    """Reads images, as uint8 `[examples, height, width, channels]`."""
    images = _array(file, archive, name)
    if (
        images.dtype != np.uint8
        or images.ndim not in (3, 4)
        or (images.ndim == 4 and images.shape[3] not in (1, 3))
    ):
        raise InputError(
            f"{file}: {name} must be uint8 [examples, height, width] or [examples, "
            f"height, width, 1 or 3], not {images.dtype} {list(images.shape)}"
        )
    return images[..., None] if images.ndim == 3 else images


def _fitted(images: np.ndarray, decoding: Decoding) -> np.ndarray:
    """Resizes and crops images as those of files."""
    size, channels = decoding.image_size, decoding.channels
    if decoding.resize is None and images.shape[1:] == decoding.image_shape:
        return images
    fitted = bulk.allocate(len(images), decoding.image_shape)

    def work(chunk: range) -> None:
        for i in chunk:
            pixels = images[i, ..., 0] if images.shape[3] == 1 else images[i]
            image = Image.fromarray(pixels)
            fitted[i] = image_files.fit(image, size, channels, decoding.resize)

    bulk.for_chunks(len(images), work, decoding.threads)
    return fitted
