"""Reads any image classification data set of TensorFlow Datasets, without TensorFlow.

The records are array_record files, which have random access. Pillow decodes the images
on several threads; they are kept in memory, and cached on disk for the next run.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from shiftjax import image_files
from shiftjax.errors import InputError
from train.data import bulk, cache, splits, tfds_directory
from train.data.image_set import ImageSet
from train.data.tfds_directory import TfdsDirectory

if TYPE_CHECKING:
    from tensorflow_datasets.core.features import FeatureConnector

_LOG = logging.getLogger(__name__)

# Data sets whose test split was published without labels (all are -1).
_UNLABELLED_TEST = ("imagenet2012", "places365_small")


def open_tfds(
    name: str, data_dir: str | None, image_size: int, channels: int, *, use_cache: bool
) -> splits.OfficialSplits:
    """Opens a data set that TFDS has written to disk as array_record.

    Args:
      name: `NAME`, `NAME/CONFIG`, `NAME:VERSION` or `NAME/CONFIG:VERSION`.
      data_dir: directory of all TFDS data sets; None for TFDS's default.
      image_size: height and width of the images.
      channels: 1 (gray) or 3 (RGB).
      use_cache: if True, cache decoded images on disk.

    Returns:
      The splits.

    Raises:
      MissingFileError: if the data set does not exist.
      InputError: if the data set cannot be read.
    """
    directory = tfds_directory.find(name, data_dir)

    def read(split: str) -> ImageSet:
        if not use_cache:
            return _decode(directory, split, image_size, channels)
        identity = {
            "name": f"{directory.full_name}-{split}-{image_size}x{channels}",
            "files": directory.fingerprint(),
        }
        return cache.cached(
            identity, lambda: _decode(directory, split, image_size, channels)
        )

    names = set(directory.splits)
    if directory.full_name.partition("/")[0] in _UNLABELLED_TEST:
        names.discard("test")
    return splits.assign(f"tfds:{name}", names, read)


def _decode(
    directory: TfdsDirectory, split: str, image_size: int, channels: int
) -> ImageSet:
    """Reads and decodes a split, in the order of the records."""
    import tensorflow_datasets as tfds  # takes half a second, saved by the cache

    try:
        # TFDS's decorators hide its signatures from type checkers.
        builder: Any = tfds.builder_from_directory(directory.path)
    except (OSError, ValueError) as e:
        raise InputError(f"{directory.path} is not a whole TFDS data set: {e}") from e
    features = dict(builder.info.features.items())
    image_key, label_key = _keys(directory, features, builder.info.supervised_keys)
    # TFDS decodes no images: this function decodes those that are needed.
    skipped = {
        key: tfds.decode.SkipDecoding()
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image)
    }
    records = builder.as_data_source(split=split, decoders=skipped)
    _LOG.info("decoding %d images of %s", len(records), directory.full_name)
    images = bulk.allocate(len(records), image_size, channels)
    labels = np.empty(len(records), np.int32)

    def work(chunk: range) -> None:
        try:
            examples = records.__getitems__(list(chunk))
        except Exception as e:  # each layer below has its own exceptions
            raise InputError(
                f"{directory.path}: split {split!r} cannot be read ({e}): remove the "
                "data set and prepare it again"
            ) from e
        for i, example in zip(chunk, examples, strict=True):
            try:
                images[i] = image_files.decode(example[image_key], image_size, channels)
            except InputError as e:
                raise InputError(f"{directory.path}: {split} example {i}: {e}") from e
            labels[i] = example[label_key]

    bulk.for_chunks(len(records), work)
    return ImageSet(images, labels, tuple(features[label_key].names))


def _keys(
    directory: TfdsDirectory,
    features: Mapping[str, "FeatureConnector"],
    supervised_keys: tuple[Any, ...] | None,
) -> tuple[str, str]:
    """Returns the names of the image and of the label feature."""
    from tensorflow_datasets.core.features import ClassLabel, Image

    keys = ("image", "label")
    if not features.keys() >= set(keys) and supervised_keys:
        # There may be more than two keys, and they may be nested.
        keys = tuple(key for key in supervised_keys if isinstance(key, str))
    image, label = (features.get(key) for key in (*keys, "", "")[:2])
    if not (
        isinstance(image, Image)
        and image.np_dtype == np.uint8
        and isinstance(label, ClassLabel)
        and label.num_classes
    ):
        listed = ", ".join(f"{k}: {type(v).__name__}" for k, v in features.items())
        raise InputError(
            f"tfds:{directory.full_name} is not a set of 8-bit images with one class "
            f"label each; its features are {listed}"
        )
    return keys[0], keys[1]
