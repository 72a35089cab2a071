"""Loads labeled images from a source by its name.

A source is a file with a function that opens it, and a row of `SOURCES`.

`digits`: scikit-learn's handwritten digits, which need no download.
`tfds:NAME`: a data set of TensorFlow Datasets on the disk, e.g. `tfds:cifar10`; also
`tfds:NAME/CONFIG`, `tfds:NAME:VERSION` and `tfds:NAME/CONFIG:VERSION`.
`folder:PATH`: images in `PATH/train/CLASS/` and `PATH/test/CLASS/`, or `PATH/CLASS/`.
`npz:PATH`: arrays of images and labels in a file of `numpy.savez`.
`tar:PATH`: a tar file of WebDataset, or a folder of them.
`hf:PATH`: a data set of Hugging Face on the disk, or Parquet files.
`fake:COUNT`: random images, to measure training; `fake:COUNTxCLASSES` for other than
1000 classes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from shiftjax import image_sizes
from shiftjax.errors import InputError, unknown_name
from train.data import (
    arrays,
    digits,
    fake,
    folder,
    hugging_face,
    jpeg,
    splits,
    tar,
    tfds,
)
from train.data.decoding import CROP_DECODERS, ON_CORRUPT, Decoding
from train.data.encoded import Encoded
from train.data.examples import Examples
from train.data.image_set import ImageSet

__all__ = ["ImageSet", "load_source"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request(Decoding):
    """The options of opening a source, and of decoding its images.

    Attributes:
      name: the name after the colon; "" for a source without one.
      data_dir: for `tfds:`, the folder of all TFDS data sets; None for `$TFDS_DATA_DIR`
        or `~/tensorflow_datasets`.
      use_cache: for `tfds:`, True to keep decoded images in `$SHIFTJAX_CACHE` or
        `~/.cache/shiftjax`.
      labelled: for `folder:`, True if its folders are classes; if False, all images in
        it, at any depth, have one class.
      without: for `folder:`, names of classes to leave out.
      min_images: for `folder:`, least number of training images of a class that is not
        left out.
    """

    name: str = ""
    data_dir: str | None = None
    use_cache: bool = True
    labelled: bool = True
    without: frozenset[str] = frozenset()
    min_images: int = 1


@dataclasses.dataclass(frozen=True)
class Source:
    """A kind of source.

    Attributes:
      open: opens the official splits of a request.
      forms: the syntax of its names, for errors. Without a colon in the first, the kind
        is the whole name.
    """

    open: Callable[[Request], splits.OfficialSplits]
    forms: tuple[str, ...]

    @property
    def takes_name(self) -> bool:
        """True if a name follows the kind."""
        return ":" in self.forms[0]


SOURCES: dict[str, Source] = {
    "digits": Source(
        lambda given: digits.open_digits(
            given.image_size, given.channels, given.resize
        ),
        ("digits",),
    ),
    "tfds": Source(
        lambda given: tfds.open_tfds(
            given.name, given.data_dir, given, use_cache=given.use_cache
        ),
        ("tfds:cifar10", "tfds:cifar100", "tfds:NAME"),
    ),
    "folder": Source(
        lambda given: folder.open_folder(
            given.name,
            given,
            labelled=given.labelled,
            without=given.without,
            min_images=given.min_images,
        ),
        ("folder:PATH",),
    ),
    "npz": Source(lambda given: arrays.open_arrays(given.name, given), ("npz:PATH",)),
    "tar": Source(lambda given: tar.open_tar(given.name, given), ("tar:PATH",)),
    "hf": Source(
        lambda given: hugging_face.open_hugging_face(given.name, given), ("hf:PATH",)
    ),
    "fake": Source(lambda given: fake.open_fake(given.name, given), fake.FORMS),
}


def load_source(
    source: str,
    split: str,
    validation_examples: int | None = None,
    *,
    cut_test: bool = True,
    **options: Any,
) -> Examples:
    """Opens a split of a source, in memory if it fits.

    The order is that of the source, and the same at every call.

    Args:
      source: `"digits"`, `"tfds:NAME"` (`NAME/CONFIG`, `NAME:VERSION`),
        `"folder:PATH"`, `"npz:PATH"`, `"tar:PATH"`, `"hf:PATH"` or `"fake:COUNT"`.
      split: `"train"`, `"validation"`, `"train+validation"` (all official training
        examples) or `"test"`. Without a test split, the source's validation split is
        the test split, or else a fifth of its examples.
      validation_examples: the number of training examples to hold out for validation,
        by a fixed seed, if the source has none; `None` for a tenth, 0 for no split.
      cut_test: False if no examples are to be held out for a missing test split,
        because the test is on other data.
      **options: attributes of `Request`, such as `image_size`.

    Returns:
      The images with their labels.

    Raises:
      UnknownNameError: for an unknown source, split or other name.
      MissingFileError: if the data are missing, with the command that prepares them.
      InputError: for data or numbers that cannot be used.

    Example:
      >>> digits = load_source(
      ...     "digits", "train", image_size=16, validation_examples=137
      ... )
      >>> len(digits), digits.image_shape, digits.num_classes
      (1300, (16, 16, 3), 10)
    """
    request = Request(**options)
    image_sizes.check_shape(request.image_size, request.channels, request.resize)
    if split not in splits.SPLITS:
        raise unknown_name("split", split, splits.SPLITS)
    if request.on_corrupt not in ON_CORRUPT:
        raise unknown_name("value of on_corrupt", request.on_corrupt, ON_CORRUPT)
    if request.crop_decoder not in CROP_DECODERS:
        raise unknown_name("crop_decoder", request.crop_decoder, CROP_DECODERS)
    # The images of the other splits are decoded by Pillow.
    if request.crop_decoder != "pillow" and split.startswith("train"):
        jpeg.check_installed(request.crop_decoder)
    official = _open(source, request)
    examples = splits.select_split(
        official, split, validation_examples, cut_test=cut_test
    )
    if isinstance(examples, Encoded) and examples.once:
        examples = examples.decoded()
    if request.crop_scale is not None and isinstance(examples, ImageSet):
        raise InputError(
            f"--augment.random-resized-crop needs images of their own size, which are "
            f"decoded at each epoch; those of {source} are in memory"
        )
    return examples


def _open(source: str, request: Request) -> splits.OfficialSplits:
    """Opens the source of a name."""
    kind, _, name = source.partition(":")
    forms = [form for known in SOURCES.values() for form in known.forms]
    found = SOURCES.get(kind)
    if found is None or (source != kind and not found.takes_name):
        raise unknown_name("source", source, forms)
    if found.takes_name and not name:
        raise InputError(f"source {source!r} names no data: {', '.join(forms)}")
    return found.open(dataclasses.replace(request, name=name))
