"""Writes CIFAR-10 and CIFAR-100 as TensorFlow Datasets does, without TensorFlow.

The official builders of TFDS (`image_classification/cifar.py`) need TensorFlow to read
the archive and to encode the images. The builders of this module inherit name, version,
features, keys and thus the order of the records, and read and encode without it.
`tfds.data_source("cifar10")` reads the result like the original data set.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from rich.progress import Progress, TaskID
from tensorflow_datasets.core.registered import skip_registration
from tensorflow_datasets.image_classification import cifar

from train.data.prepare import directory
from train.data.prepare.cifar import reader
from train.data.prepare.cifar.files import DATA_SETS, URL, Cifar
from train.data.prepare.download import download

# The records (150 MB) are on disk twice while they are sorted.
_BYTES_NEEDED = 350_000_000


def write_cifar(
    source: Sequence[str | Path],
    target: Path,
    console: Console,
    *,
    verify: bool = True,
) -> None:
    """Writes a CIFAR data set from its official files.

    Args:
      source: the archive, a folder with the extracted files, or the files. If empty,
        the archive is downloaded, and deleted at the end.
      target: the directory to create, `data_dir/NAME/VERSION`.
      console: the console for the progress.
      verify: not used: the digests are always compared.

    Raises:
      MissingFileError: if a file does not exist.
      InputError: if a file is not the official one, the download failed, or the disk
        has too little space.
    """
    del verify
    spec = DATA_SETS[target.parent.name]
    root = target.parents[1]
    needed = _BYTES_NEEDED + (0 if source else spec.binary.archive_bytes)
    directory.check_space(root, needed)
    if source:
        _write(spec, reader.read_cifar(spec, source), target, console)
        return
    archive = root / "downloads" / spec.binary.archive
    with directory.locked(target, console):
        if target.exists():  # another process has written it meanwhile
            return
        downloading = not archive.exists()
        if downloading:
            _download(spec, archive, console)
        _write(spec, reader.read_cifar(spec, [archive]), target, console)
        if downloading:
            archive.unlink(missing_ok=True)


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
    total = len(contents.train.images) + len(contents.test.images)
    with (
        directory.scratch(target) as scratch,
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
        directory.move_to_place(Path(builder.data_dir), target)


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
