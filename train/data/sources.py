"""Loads labelled pictures by the name of their source.

`digits`: scikit-learn's handwritten digits, which need no download.
`tfds:NAME`: a data set of TensorFlow Datasets on the disk, e.g. `tfds:cifar10`; also
`tfds:NAME/CONFIG`, `tfds:NAME:VERSION` and `tfds:NAME/CONFIG:VERSION`.
`folder:PATH`: pictures in `PATH/train/CLASS/` and `PATH/test/CLASS/`, or `PATH/CLASS/`.
"""

from shiftjax import image_files
from shiftjax.errors import InputError, unknown_name
from train.config import Config
from train.data import digits, folder, splits, tfds
from train.data.image_set import ImageSet

__all__ = ["ImageSet", "load", "load_split"]

_GRAMMAR = ("digits", "tfds:cifar10", "tfds:cifar100", "tfds:NAME", "folder:PATH")


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
    kind, _, name = source.partition(":")
    if source == "digits":
        official = digits.open_digits(image_size, channels)
    elif kind == "tfds" and name:
        official = tfds.open_tfds(
            name, data_dir, image_size, channels, use_cache=use_cache
        )
    elif kind == "folder" and name:
        official = folder.open_folder(
            name, image_size, channels, on_corrupt=on_corrupt, labelled=labelled
        )
    elif kind in ("tfds", "folder"):
        raise InputError(f"source {source!r} names no data: {', '.join(_GRAMMAR)}")
    else:
        raise unknown_name("source", source, _GRAMMAR)
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
