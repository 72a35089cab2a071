"""Reads any image classification data set of TensorFlow Datasets, without TensorFlow.

The records are array_record files, which have random access. Pillow decodes the images
on several threads. A set that fits is kept in memory, and cached on disk for the next
run; a larger one is decoded at each epoch.
"""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shiftjax import image_sizes
from shiftjax.errors import InputError
from train.data import cache, splits, tfds_directory
from train.data.decoding import Decoding
from train.data.encoded import Encoded
from train.data.image_set import ImageSet
from train.data.tfds_directory import TfdsDirectory

if TYPE_CHECKING:
    from tensorflow_datasets.core.features import FeatureConnector

_LOG = logging.getLogger(__name__)
_LABELS = 1024  # records that are read at once for their labels

# Data sets whose test split was published without labels (all are -1).
_UNLABELLED_TEST = ("imagenet2012", "places365_small")


def open_tfds(
    name: str, data_dir: str | None, decoding: Decoding, *, use_cache: bool
) -> splits.OfficialSplits:
    """Opens a data set that TFDS has written to disk as array_record.

    Args:
      name: `NAME`, `NAME/CONFIG`, `NAME:VERSION` or `NAME/CONFIG:VERSION`.
      data_dir: directory of all TFDS data sets; None for TFDS's default.
      decoding: how the images become pixels.
      use_cache: if True, cache images that are decoded once on disk.

    Returns:
      The splits.

    Raises:
      MissingFileError: if the data set does not exist.
      InputError: if the data set cannot be read.
    """
    directory = tfds_directory.find_directory(name, data_dir)

    def read(split: str) -> Encoded | ImageSet:
        def encoded() -> Encoded:
            return Encoded.of(TfdsRecords(directory, split), decoding)

        if decoding.at_each_epoch(sum(directory.splits.values())):
            return encoded()
        if not use_cache:
            return encoded().decoded()
        identity = {
            "name": f"{directory.full_name}-{split}-{_pixels(decoding)}",
            "files": directory.fingerprint(),
        }
        # Without TFDS, whose import takes half a second.
        return cache.cached(identity, lambda: encoded().decoded())

    names = set(directory.splits)
    if directory.full_name.partition("/")[0] in _UNLABELLED_TEST:
        names.discard("test")
    return splits.assign(f"tfds:{name}", names, read)


def _pixels(decoding: Decoding) -> str:
    """Returns the options that the decoded images depend on."""
    resized = f"-resize{decoding.resize}" if decoding.resize is not None else ""
    skipped = "-skip" if decoding.on_corrupt == "skip" else ""
    size = image_sizes.size_text(decoding.image_size)
    return f"{size}x{decoding.channels}{resized}{skipped}"


@dataclasses.dataclass(frozen=True)
class TfdsRecords:
    """The records of a split; see `train.data.records.Records`.

    Attributes:
      directory: the data set.
      split: the name of the split.
    """

    directory: TfdsDirectory
    split: str

    upright: bool = False

    def __len__(self) -> int:
        return len(self._source)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class."""
        return tuple(self._builder.info.features[self._keys[1]].names)

    @property
    def labels(self) -> np.ndarray:
        """The labels of all records, which have to be read for them."""
        _LOG.info("reading the labels of %s", self.directory.full_name)
        labels = np.empty(len(self), np.int32)
        for start in range(0, len(self), _LABELS):
            numbers = range(len(self))[start : start + _LABELS]
            labels[numbers.start : numbers.stop] = [x for _, x in self.read(numbers)]
        return labels

    def name(self, number: int) -> str:
        """Returns the data set, the split and the number."""
        return f"{self.directory.path}: {self.split} example {number}"

    def read(self, numbers: Sequence[int]) -> list[tuple[bytes | Path, int]]:
        """Reads records, without decoding their images."""
        image, label = self._keys
        try:
            found = self._source.__getitems__(list(numbers))
        except Exception as e:  # each layer below has its own exceptions
            raise InputError(
                f"{self._damaged(numbers)} cannot be read ({e}): remove the data set "
                f"{self.directory.path} and prepare it again"
            ) from e
        return [(example[image], int(example[label])) for example in found]

    def _damaged(self, numbers: Sequence[int]) -> str:
        """Returns the file of the first record that cannot be read."""
        info = self._builder.info.splits[self.split]
        ends = np.cumsum(info.shard_lengths)
        for number in numbers:
            try:
                self._source[number]
            except Exception:  # as in `read`
                return str(info.filepaths[int(np.searchsorted(ends, number, "right"))])
        return f"{self.directory.path}: split {self.split!r}"

    @functools.cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets as tfds  # takes half a second, saved by the cache

        try:
            # TFDS's decorators hide its signatures from type checkers.
            return tfds.builder_from_directory(self.directory.path)
        except (OSError, ValueError) as e:
            raise InputError(
                f"{self.directory.path} is not a whole TFDS data set: {e}"
            ) from e

    @functools.cached_property
    def _source(self) -> Any:
        import tensorflow_datasets as tfds

        # TFDS decodes no images.
        skipped = {
            key: tfds.decode.SkipDecoding()
            for key, feature in self._builder.info.features.items()
            if isinstance(feature, tfds.features.Image)
        }
        source = self._builder.as_data_source(split=self.split, decoders=skipped)
        _LOG.info("reading %d images of %s", len(source), self.directory.full_name)
        return source

    @functools.cached_property
    def _keys(self) -> tuple[str, str]:
        info = self._builder.info
        return _keys(self.directory, dict(info.features.items()), info.supervised_keys)


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
