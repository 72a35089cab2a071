"""Writes CIFAR-10 and CIFAR-100 as TensorFlow Datasets does, without TensorFlow.

The official builders of TFDS (`image_classification/cifar.py`) need TensorFlow to read
the archive and to encode the images. The builders of this module inherit name, version,
features, keys and thus the order of the records, and read and encode without it.
`tfds.data_source("cifar10")` reads the result like the original data set.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from rich.progress import Progress, TaskID
from tensorflow_datasets.core.registered import skip_registration
from tensorflow_datasets.image_classification import cifar

from shiftjax.errors import InputError, unknown_name
from train.data import tfds_directory
from train.data.prepare import reader
from train.data.prepare.download import download
from train.data.prepare.files import DATA_SETS, URL, Cifar

# The records (150 MB) are on disk twice while they are sorted.
_BYTES_NEEDED = 350_000_000


def prepare(
    name: str,
    *,
    source: str | Sequence[str | Path] = (),
    data_dir: str | None = None,
    console: Console | None = None,
) -> Path:
    """Writes a CIFAR data set as a directory of TensorFlow Datasets (array_record).

    The directory is created atomically. If it exists already, nothing is done.

    Args:
      name: `"cifar10"` or `"cifar100"`.
      source: the official files, verified by their published digests: the archive
        (`cifar-10-python.tar.gz`, `cifar-10-binary.tar.gz`, ...), a folder with the
        extracted files, or the files. If empty, the archive is downloaded, and deleted
        at the end.
      data_dir: directory of all TFDS data sets; None for TFDS's default.
      console: the console for progress and results; by default standard error.

    Returns:
      The data set's directory, `data_dir/name/version`.

    Raises:
      UnknownNameError: if there is no such data set.
      MissingFileError: if a file does not exist.
      InputError: if a file is not the official one, the download failed, the disk has
        too little space, or the directory holds something else.
    """
    if name not in DATA_SETS:
        raise unknown_name("data set", name, DATA_SETS)
    spec = DATA_SETS[name]
    console = console or Console(stderr=True)
    root = tfds_directory.data_directory(data_dir)
    target = root / name / str(_BUILDERS[name].VERSION)
    if target.exists():
        tfds_directory.describe(target)  # raises if it is something else
        console.print(
            f"{name} is already prepared: {target}", soft_wrap=True, markup=False
        )
        return target
    _check_space(root, _BYTES_NEEDED + (0 if source else spec.binary.archive_bytes))
    source = [source] if isinstance(source, str) else source
    archive = root / "downloads" / spec.binary.archive
    downloading = not source and not archive.exists()
    if downloading:
        _download(spec, archive, console)
    contents = reader.read(spec, source or [archive])
    _write(spec, contents, target, console)
    if downloading:
        archive.unlink()
    console.print(f"{name} is prepared: {target}", soft_wrap=True, markup=False)
    return target


def _check_space(folder: Path, needed: int) -> None:
    """Creates the directory, and raises if its disk has too little space."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"data_dir {folder} cannot be written: {e}") from e
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder}: {free / 1e6:.0f} MB are free on its disk and "
            f"{needed / 1e6:.0f} MB are needed; make room or name another data_dir"
        )


def _download(spec: Cifar, path: Path, console: Console) -> None:
    """Downloads the binary archive, which is smaller and has a sha256."""
    download(
        URL + spec.binary.archive,
        path,
        spec.binary.archive_bytes,
        verify=lambda part: reader.verify_archive(spec.binary, part),
        console=console,
    )


def _write(
    spec: Cifar, contents: reader.CifarContents, target: Path, console: Console
) -> None:
    """Writes the records beside the target, and moves them there at the end."""
    root = target.parents[1]
    total = len(contents.train.images) + len(contents.test.images)
    with (
        tempfile.TemporaryDirectory(dir=root, prefix=f".{spec.name}-") as scratch,
        Progress(console=console) as progress,
    ):
        task = progress.add_task(f"writing {spec.name}", total=total)
        builder = _BUILDERS[spec.name](data_dir=scratch, file_format="array_record")
        builder.fill(contents, progress, task)
        tfds.disable_progress_bar()  # this module shows its own
        try:
            builder.download_and_prepare(download_dir=scratch)
        finally:
            tfds.enable_progress_bar()
        target.parent.mkdir(exist_ok=True)
        try:
            Path(builder.data_dir).rename(target)
        except OSError:
            # Another process may have finished first; its records are the same.
            if not target.exists():
                raise


class _Local:
    """Overrides reading and encoding of an official builder, and nothing else."""

    # None keeps TFDS from searching for checksums beside this file, for which it needs
    # a package that it does not declare (importlib_resources).
    code_path: ClassVar[None] = None
    _contents: reader.CifarContents
    _progress: Progress
    _task: TaskID

    def fill(
        self, contents: reader.CifarContents, progress: Progress, task: TaskID
    ) -> None:
        """Sets the contents to write."""
        self._contents, self._progress, self._task = contents, progress, task

    def _split_generators(self, dl_manager: object) -> dict[Any, Any]:
        del dl_manager  # nothing is downloaded through TFDS, whose extractor needs TF
        for key, names in self._contents.names.items():
            self.info.features[key].names = names  # type: ignore[attr-defined]
        return {
            "train": self._records("train_", self._contents.train),
            "test": self._records("test_", self._contents.test),
        }

    def _records(
        self, prefix: str, split: reader.CifarSplit
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, image in enumerate(split.images):
            labels = {key: int(values[index]) for key, values in split.labels.items()}
            # TFDS encodes arrays with TensorFlow, and Pillow's images without it.
            example = {"id": f"{prefix}{index:05d}", "image": Image.fromarray(image)}
            yield index, example | labels
            self._progress.advance(self._task)

    def _log_download_bytes(self) -> None:
        """Prints nothing: the size is unknown to TFDS, and there is no download."""

    def _log_download_done(self) -> None:
        """Prints nothing: the directory is not in its final place yet."""


# If registered, they would replace the official builders in the whole process.
with skip_registration():

    class Cifar10(_Local, cifar.Cifar10):
        """The builder of CIFAR-10."""

    class Cifar100(_Local, cifar.Cifar100):
        """The builder of CIFAR-100."""


_BUILDERS = {"cifar10": Cifar10, "cifar100": Cifar100}
