"""The published files of ImageNet (ILSVRC 2012): names, sizes, digests and labels.

The names of the classes, their order, and the labels of the validation images are those
that TensorFlow Datasets ships; they are read from the installed package.
"""

import dataclasses

import tensorflow_datasets as tfds

NAME = "imagenet2012"
URL = "https://image-net.org/download-images"


@dataclasses.dataclass(frozen=True)
class Split:
    """One split and its archive.

    Attributes:
      name: name in TensorFlow Datasets.
      archive: the file name of the archive.
      archive_bytes: the size of the archive.
      md5: the digest of the archive.
      folders: names of a folder with the unpacked images.
      examples: the number of images.
      shards: the number of record files to write, the same as TFDS's.
    """

    name: str
    archive: str
    archive_bytes: int
    md5: str
    folders: tuple[str, ...]
    examples: int
    shards: int


TRAIN = Split(
    name="train",
    archive="ILSVRC2012_img_train.tar",
    archive_bytes=147_897_477_120,
    md5="1d675b47d978889d74fa0da5fadfb00e",
    folders=("train",),
    examples=1_281_167,
    shards=1024,
)
VALIDATION = Split(
    name="validation",
    archive="ILSVRC2012_img_val.tar",
    archive_bytes=6_744_924_160,
    md5="29b22e2961454d5413ddabcf34fc5622",
    folders=("val", "validation"),
    examples=50_000,
    shards=64,
)


@dataclasses.dataclass(frozen=True)
class ImageNet:
    """The published files, or a selection of their classes.

    Attributes:
      train: the training split; its archive has one archive per class in it.
      validation: the validation split.
      classes: the WordNet ids of the classes in the files.
      validation_labels: the WordNet id of each validation image, by its number.
    """

    train: Split
    validation: Split
    classes: tuple[str, ...]
    validation_labels: tuple[str, ...]

    @property
    def splits(self) -> tuple[Split, Split]:
        """Both splits."""
        return self.train, self.validation


def official() -> ImageNet:
    """Describes the whole of ImageNet.

    Returns:
      The description, with the labels that TFDS ships.

    Example:
      >>> imagenet = official()
      >>> len(imagenet.classes), imagenet.classes[0], imagenet.validation_labels[0]
      (1000, 'n01440764', 'n01751748')
    """
    classes, labels = (
        tuple(tfds.core.tfds_path(f"datasets/{NAME}/{file}").read_text().split())
        for file in ("labels.txt", "validation_labels.txt")
    )
    return ImageNet(TRAIN, VALIDATION, classes, labels)
