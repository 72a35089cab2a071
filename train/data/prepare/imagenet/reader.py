"""Finds the files of ImageNet, checks them, and reads their images one by one.

The images of a split are in its archive or in a folder: `train/CLASS/*.JPEG` and
`val/CLASS/*.JPEG`, or `val/*.JPEG` as on Kaggle. Both are read as pairs of a name,
such as `n01440764/n01440764_18.JPEG`, and the encoded bytes.
"""

import dataclasses
import hashlib
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import Progress

from shiftjax.errors import InputError, MissingFileError
from train.data.prepare.imagenet.files import NAME, URL, ImageNet, Split

_CHUNK = 1 << 20
_INSIDE = (".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")  # the last two are Kaggle's
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG")  # one training image is a PNG


@dataclasses.dataclass(frozen=True)
class Example:
    """One image.

    Attributes:
      file_name: the name of the file, without a folder.
      label: the WordNet id of the class.
      image: the encoded bytes, as they are in the source.
    """

    file_name: str
    label: str
    image: bytes


def find_splits(spec: ImageNet, source: Sequence[str | Path]) -> Mapping[str, Path]:
    """Finds the archive or the folder of each split.

    Args:
      spec: the published files.
      source: the archives, folders with the archives, or folders with `train` and
        `val`.

    Returns:
      The path of each split by its name.

    Raises:
      MissingFileError: if a path or a split does not exist.
      InputError: if a file is not an archive of ImageNet by its name.
    """
    found: dict[str, Path] = {}
    for path in (Path(item).expanduser() for item in source):
        if not path.exists():
            raise MissingFileError(f"{path}: there is no such file or folder")
        if path.is_file() and path.name not in {s.archive for s in spec.splits}:
            raise InputError(
                f"{path}: not a file of {NAME} by its name; the official ones are "
                + " and ".join(split.archive for split in spec.splits)
            )
        for split in spec.splits:
            if candidates := _candidates(split, path):
                found.setdefault(split.name, candidates[0])
    missing = [split for split in spec.splits if split.name not in found]
    if missing:
        wanted = " and ".join(
            f"{split.archive} (or a folder {split.folders[0]}/)" for split in missing
        )
        given = ", ".join(map(str, source)) or "--source names no files"
        raise MissingFileError(
            f"{given}: missing {wanted}; they are at {URL} for those who register"
        )
    return found


def _candidates(split: Split, path: Path) -> list[Path]:
    """Lists the archives and the folders of a split that a path may mean."""
    if path.is_file():
        return [path] if path.name == split.archive else []
    archive = path / split.archive
    folders = [path / inside / name for inside in _INSIDE for name in split.folders]
    own = [path] if path.name in split.folders else []
    return [
        *([archive] if archive.is_file() else []),
        *(folder for folder in folders if folder.is_dir()),
        *own,
    ]


def check_complete(spec: ImageNet, found: Mapping[str, Path]) -> None:
    """Checks that the files are complete, without reading the images.

    Args:
      spec: the published files.
      found: the path of each split.

    Raises:
      InputError: if an archive has another size, a class is missing, or a folder has
        another number of images.
    """
    for split in spec.splits:
        path = found[split.name]
        if path.is_file():
            _check_size(split, path)
        else:
            _check_count(split, path, sum(1 for _ in _names(path)))
    _check_classes(spec, found[spec.train.name])


def verify_archives(
    spec: ImageNet, found: Mapping[str, Path], console: Console
) -> None:
    """Compares the digests of the archives with the published ones.

    Args:
      spec: the published files.
      found: the path of each split; folders have no digest.
      console: the console for the progress, since it takes minutes.

    Raises:
      InputError: if a digest differs.
    """
    for split in spec.splits:
        if found[split.name].is_file():
            _check_digest(split, found[split.name], console)


def _check_classes(spec: ImageNet, train: Path) -> None:
    """Compares the archives or the folders of the training split with the classes."""
    held = _classes_in_archive(train) if train.is_file() else _classes_in_folder(train)
    differences = {
        "missing": sorted(set(spec.classes) - held),
        "unknown": sorted(held - set(spec.classes)),
    }
    for kind, names in differences.items():
        if names:
            listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise InputError(
                f"{train}: {len(names)} {kind} of {len(spec.classes)} classes: {listed}"
            )


def _check_size(split: Split, path: Path) -> None:
    """Compares the size of an archive with the official one."""
    size = path.stat().st_size
    if size != split.archive_bytes:
        raise InputError(
            f"{path}: {size} bytes instead of the official {split.archive_bytes}; the "
            f"file is cut short or not the official one, which is at {URL}"
        )


def _check_count(split: Split, path: Path, images: int) -> None:
    """Compares a number of images with the official one."""
    if images != split.examples:
        raise InputError(
            f"{path}: {images} images instead of the {split.examples} of the "
            f"{split.name} split"
        )


def _check_digest(split: Split, path: Path, console: Console) -> None:
    """Compares the digest of an archive with the published one."""
    with (
        Progress(console=console) as progress,
        progress.open(path, "rb", description=f"checking {path.name}") as file,
    ):
        digest = hashlib.md5(usedforsecurity=False)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    received = digest.hexdigest()
    if received != split.md5:
        raise InputError(
            f"{path}: md5 {received} instead of the official {split.md5}; the file is "
            "damaged or not the official one"
        )


def _classes_in_archive(path: Path) -> set[str]:
    """Returns the names of the archives in an archive, without reading them."""
    try:
        with tarfile.open(path, "r:") as archive:
            names = {member.name.rpartition("/")[2] for member in archive}
    except tarfile.TarError as e:
        raise InputError(f"{path}: not a tar archive, or damaged ({e})") from e
    return {name.removesuffix(".tar") for name in names}


def _classes_in_folder(path: Path) -> set[str]:
    """Returns the names of the folders in a folder."""
    return {e.name for e in os.scandir(path) if e.is_dir() and e.name[0] != "."}


def read_split(spec: ImageNet, split: Split, path: Path) -> Iterator[Example]:
    """Reads the images of a split, in the order of the archive or of the names.

    Args:
      spec: the published files.
      split: the split.
      path: its archive or folder.

    Yields:
      The images, one in memory at a time.

    Raises:
      InputError: if the source is damaged, with the name of the file in it.
    """
    count = 0
    for name, image in _from_archive(path) if path.is_file() else _from_folder(path):
        if not image.startswith(_SIGNATURES):
            raise InputError(f"{path}: {name} is not an image; the source is damaged")
        count += 1
        if count > split.examples:
            break
        file_name = name.rpartition("/")[2]
        yield Example(file_name, _label(spec, split, path, name), image)
    _check_count(split, path, count)


def _label(spec: ImageNet, split: Split, path: Path, name: str) -> str:
    """Returns the class of an image: its folder, or that of its validation number."""
    folder, _, file_name = name.rpartition("/")
    if split is spec.train:
        if not folder:
            raise InputError(f"{path}: {name} is in no folder of a class")
        return folder
    match = _VALIDATION_NAME.fullmatch(file_name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= len(spec.validation_labels):
        raise InputError(f"{path}: {name} is not a validation image by its name")
    label = spec.validation_labels[number - 1]
    if folder not in ("", label):
        raise InputError(
            f"{path}: {name} is in the wrong folder, its class is {label}; sort the "
            "validation images again, or name the archive"
        )
    return label


def _names(folder: Path) -> Iterator[str]:
    """Lists the images in a folder and its folders, sorted."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            inside = sorted(os.listdir(entry.path))
            yield from (f"{entry.name}/{n}" for n in inside if n.endswith(".JPEG"))
        elif entry.name.endswith(".JPEG"):
            yield entry.name


def _from_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Reads the images of a folder."""
    for name in _names(folder):
        try:
            image = (folder / name).read_bytes()
        except OSError as e:
            raise InputError(f"{folder / name} cannot be read: {e}") from e
        yield name, image


def _from_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Reads the images of an archive, and of the archives in it."""
    with path.open("rb") as file:
        yield from _unpack(file, str(path), "")


def _unpack(file: IO[bytes], origin: str, folder: str) -> Iterator[tuple[str, bytes]]:
    """Reads the members of a tar file, and those of the tar files in it."""
    member = None
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                stream = archive.extractfile(member)
                if stream is None:  # a folder
                    continue
                name = member.name.rpartition("/")[2]
                if name.endswith(".tar"):
                    inner = f"{origin}: {member.name}"
                    yield from _unpack(stream, inner, name.removesuffix(".tar"))
                else:
                    yield f"{folder}/{name}".lstrip("/"), stream.read()
            # tarfile takes a damaged header for the end, which is a block of zeros.
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("bad header of the next file")
    except (tarfile.TarError, OSError) as e:
        at = f"at or after {member.name}" if member else "at its start"
        raise InputError(f"{origin}: damaged {at} ({e}): download it again") from e
