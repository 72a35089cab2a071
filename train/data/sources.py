"""Loads labelled pictures by the name of their source.

A source is a file with a function that opens it, and a row of `SOURCES`.

`digits`: scikit-learn's handwritten digits, which need no download.
`tfds:NAME`: a data set of TensorFlow Datasets on the disk, e.g. `tfds:cifar10`; also
`tfds:NAME/CONFIG`, `tfds:NAME:VERSION` and `tfds:NAME/CONFIG:VERSION`.
`folder:PATH`: pictures in `PATH/train/CLASS/` and `PATH/test/CLASS/`, or `PATH/CLASS/`.
"""

import dataclasses
from collections.abc import Callable

from shiftjax import image_files
from shiftjax.errors import InputError, unknown_name
from train.config import Config
from train.data import digits, folder, splits, tfds
from train.data.image_set import ImageSet

__all__ = ["ImageSet", "load", "load_split"]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a source.

    Attributes:
      name: what follows the colon; "" for a source without one.
      image_size: height and width of the images.
      channels: 3 (RGB) or 1 (grey).
      data_dir: folder of all TFDS data sets; None for TFDS's own.
      use_cache: whether decoded images are kept on the disk.
      on_corrupt: "error" or "skip", for a damaged file.
      labelled: whether the labels are wanted.
    """

    name: str
    image_size: int
    channels: int
    data_dir: str | None = None
    use_cache: bool = True
    on_corrupt: str = "error"
    labelled: bool = True


@dataclasses.dataclass(frozen=True)
class Source:
    """A kind of source.

    Attributes:
      open: opens its official splits; it takes what it needs of the request.
      forms: how its names are written, for the errors. Without a colon in the first,
        the kind is the whole name.
    """

    open: Callable[[Request], splits.OfficialSplits]
    forms: tuple[str, ...]

    @property
    def takes_name(self) -> bool:
        """Whether a name follows the kind."""
        return ":" in self.forms[0]


SOURCES: dict[str, Source] = {
    "digits": Source(
        lambda given: digits.open_digits(given.image_size, given.channels),
        ("digits",),
    ),
    "tfds": Source(
        lambda given: tfds.open_tfds(
            given.name,
            given.data_dir,
            given.image_size,
            given.channels,
            use_cache=given.use_cache,
        ),
        ("tfds:cifar10", "tfds:cifar100", "tfds:NAME"),
    ),
    "folder": Source(
        lambda given: folder.open_folder(
            given.name,
            given.image_size,
            given.channels,
            on_corrupt=given.on_corrupt,
            labelled=given.labelled,
        ),
        ("folder:PATH",),
    ),
}


def load(
    source: str,
    split: str,
    *,
    image_size: int = 32,
    data_dir: str | None = None,
    validation_examples: int | None = None,
    channels: int = 3,
    use_cache: bool = True,
    on_corrupt: str = "error",
    labelled: bool = True,
) -> ImageSet:
    """Loads a split of a source into memory.

    The order is the source's own and the same at every call; nothing is shuffled.

    Args:
      source: `"digits"`, `"tfds:NAME"` (`NAME/CONFIG`, `NAME:VERSION`) or
        `"folder:PATH"`.
      split: `"train"`, `"validation"`, `"train+validation"` (all official training
        examples) or `"test"`. A source without a test split has its validation split
        for one, or a fifth of its examples.
      image_size: height and width; pictures of another size have their short side
        resized and the centre cropped.
      data_dir: for `tfds:`, the folder of all TFDS data sets; by default
        `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      validation_examples: how many training examples are held out as validation split
        where the source has none, by a fixed seed; `None` is a tenth, 0 is none.
      channels: 3 (RGB; grey pictures are repeated) or 1 (grey).
      use_cache: for `tfds:`, keep decoded pictures in `$SHIFTJAX_CACHE` or
        `~/.cache/shiftjax`.
      on_corrupt: for `folder:`, `"error"` stops at a damaged picture, `"skip"` leaves
        it out and warns.
      labelled: for `folder:`, whether its folders are classes; if not, all pictures
        in it, at any depth, are of one class.

    Returns:
      The pictures with their labels.

    Raises:
      UnknownNameError: an unknown source, split or other name.
      MissingFileError: the data are not there, with what to run.
      InputError: data or numbers that cannot be used.

    Example:
      >>> digits = load("digits", "train", image_size=16, validation_examples=137)
      >>> digits.images.shape, digits.num_classes
      ((1300, 16, 16, 3), 10)
    """
    image_files.check_shape(image_size, channels)
    if split not in splits.SPLITS:
        raise unknown_name("split", split, splits.SPLITS)
    request = Request(
        "", image_size, channels, data_dir, use_cache, on_corrupt, labelled
    )
    official = _open(source, request)
    return splits.select(official, split, validation_examples)


def load_split(config: Config, split: str) -> ImageSet:
    """Loads a split of a run's data.

    Args:
      config: the run's.
      split: as of `load`.
    """
    return load(
        config.data.source,
        split,
        image_size=config.data.image_size,
        data_dir=config.data.data_dir,
        validation_examples=config.data.validation_examples,
        labelled=config.task != "style",
    )


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
