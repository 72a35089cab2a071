"""The published files of CIFAR-10 and CIFAR-100: their names and digests.

Both data sets have two formats, Python 2 pickles and binary records; the pixels,
the labels and their order are the same (https://www.cs.toronto.edu/~kriz/cifar.html).
"""

import dataclasses
from collections.abc import Mapping

URL = "https://www.cs.toronto.edu/~kriz/"


@dataclasses.dataclass(frozen=True)
class Layout:
    """One of the two published formats of a CIFAR data set.

    Attributes:
      archive: the file name of the archive.
      archive_bytes: the size of the archive.
      archive_digest: its digest, as `algorithm:hexadecimal`.
      folder: the folder in the archive.
      train: names of the files of the training split, in order.
      test: names of the files of the test split.
      names: names of the files with the classes' names.
      md5: digest of every file in `train` and `test`, and of `names` where published.
    """

    archive: str
    archive_bytes: int
    archive_digest: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: tuple[str, ...]
    md5: Mapping[str, str]

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all files."""
        return (*self.train, *self.test, *self.names)

    @property
    def is_pickled(self) -> bool:
        """True if the files are Python pickles."""
        return not self.train[0].endswith(".bin")


@dataclasses.dataclass(frozen=True)
class Cifar:
    """The published formats of a CIFAR data set.

    Attributes:
      name: name in TensorFlow Datasets.
      label_keys: feature names of the labels, in the order of a binary record.
      pickled_keys: for each label its key in the pickles, and of its names in the meta
        file.
      names_digest: md5 of each label's class names, joined by line feeds. (The digests
        of the text files are not published; those of the pickles are.)
      binary: the binary files, the ones that TensorFlow Datasets reads.
      python: the pickles.
    """

    name: str
    label_keys: tuple[str, ...]
    pickled_keys: Mapping[str, tuple[str, str]]
    names_digest: Mapping[str, str]
    binary: Layout
    python: Layout


CIFAR10 = Cifar(
    name="cifar10",
    label_keys=("label",),
    pickled_keys={"label": ("labels", "label_names")},
    names_digest={"label": "c4a53feb1b64ee5c7b132f9a245e037b"},
    binary=Layout(
        archive="cifar-10-binary.tar.gz",
        archive_bytes=170052171,
        archive_digest="sha256:"
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test=("test_batch.bin",),
        names=("batches.meta.txt",),
        md5={
            "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
            "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
            "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
            "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
            "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
            "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
        },
    ),
    python=Layout(
        archive="cifar-10-python.tar.gz",
        archive_bytes=170498071,
        archive_digest="md5:c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test=("test_batch",),
        names=("batches.meta",),
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
    ),
)

CIFAR100 = Cifar(
    name="cifar100",
    label_keys=("coarse_label", "label"),
    pickled_keys={
        "coarse_label": ("coarse_labels", "coarse_label_names"),
        "label": ("fine_labels", "fine_label_names"),
    },
    names_digest={
        "coarse_label": "7baf0fcbe8bbb8483327dd18f1cda1cb",
        "label": "18d2388358c0483ca2d2be3aac2d399e",
    },
    binary=Layout(
        archive="cifar-100-binary.tar.gz",
        archive_bytes=168513733,
        archive_digest="sha256:"
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        folder="cifar-100-binary",
        train=("train.bin",),
        test=("test.bin",),
        names=("coarse_label_names.txt", "fine_label_names.txt"),
        md5={
            "train.bin": "6172c7755cfe09b2fe270c85cebc1b15",
            "test.bin": "4499cfba6c016c1be1438163640a0898",
        },
    ),
    python=Layout(
        archive="cifar-100-python.tar.gz",
        archive_bytes=169001437,
        archive_digest="md5:eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train=("train",),
        test=("test",),
        names=("meta",),
        md5={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
)

DATA_SETS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
