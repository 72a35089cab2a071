"""The data sets that can be prepared, by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import tensorflow_datasets as tfds
from rich.console import Console

from shiftjax.errors import unknown_name
from train.data import tfds_directory
from train.data.prepare.cifar import builder as cifar
from train.data.prepare.imagenet import writer as imagenet


class Write(Protocol):
    """Checks the official files, and writes a data set from them."""

    def __call__(
        self,
        source: Sequence[str | Path],
        target: Path,
        console: Console,
        *,
        verify: bool,
    ) -> None:
        """Writes to `target`; `verify` asks for checks that take minutes."""
        ...


DATA_SETS: dict[str, Write] = {
    "cifar10": cifar.write_cifar,
    "cifar100": cifar.write_cifar,
    "imagenet2012": imagenet.write_imagenet,
}


def prepare(
    name: str,
    *,
    source: str | Sequence[str | Path] = (),
    data_dir: str | None = None,
    verify: bool = False,
    console: Console | None = None,
) -> Path:
    """Writes a data set as a directory of TensorFlow Datasets (array_record).

    The directory is created atomically. If it exists already, nothing is done.

    Args:
      name: `"cifar10"`, `"cifar100"` or `"imagenet2012"`.
      source: the official files. For CIFAR, verified by their published digests: the
        archive (`cifar-10-python.tar.gz`, `cifar-10-binary.tar.gz`, ...), a folder with
        the extracted files, or the files. If empty, the archive is downloaded, and
        deleted at the end. For ImageNet, `ILSVRC2012_img_train.tar` and
        `ILSVRC2012_img_val.tar`, or the folder with both, or a folder with the images
        in `train/CLASS/` and in `val/` or `val/CLASS/`.
      data_dir: directory of all TFDS data sets; None for TFDS's default.
      verify: if True, compare the digests of ImageNet's archives, which takes minutes;
        otherwise their sizes.
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
    console = console or Console(stderr=True, emoji=False)
    version: str = str(tfds.builder_cls(name).VERSION)
    target = tfds_directory.data_directory(data_dir) / name / version
    if target.exists():
        tfds_directory.read_description(target)  # raises if it is something else
        told = "already prepared"
    else:
        source = [source] if isinstance(source, str) else source
        DATA_SETS[name](source, target, console, verify=verify)
        told = "prepared"
    console.print(f"{name} is {told}: {target}", soft_wrap=True, markup=False)
    return target
