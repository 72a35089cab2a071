"""Examples whose images are decoded when a batch needs them, on several threads.

Their memory does not depend on their number. `Encoded.decoded` decodes them once, into
memory.
"""

import dataclasses
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shiftjax.errors import InputError
from train.data import bulk
from train.data.decoding import Decoding
from train.data.image_set import ImageSet, check_labels
from train.data.records import Joined, Records

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """Examples that are decoded for each batch; see `train.data.examples.Examples`.

    A damaged image stops the run, or the next image of the set takes its place, with
    its label, and the number of such images is logged.

    Attributes:
      records: encoded images.
      numbers: the record of each example, int `[examples]`.
      decoding: how the images become pixels.
      once: True if `load_source` has to decode them into memory, once they are chosen.
    """

    records: Records
    numbers: np.ndarray
    decoding: Decoding
    once: bool = False
    _damaged: dict[int, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls, records: Records, decoding: Decoding, examples: int | None = None
    ) -> "Encoded":
        """Makes the examples of all records, in their order.

        Args:
          records: the encoded images of a split.
          decoding: how they become pixels.
          examples: number of examples of all splits of the source, which are alike
            decoded once or at each epoch; None for at each epoch.
        """
        once = examples is not None and not decoding.at_each_epoch(examples)
        return cls(records, np.arange(len(records)), decoding, once)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, in the order of the labels."""
        return self.records.class_names

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape `(height, width, channels)` of an image."""
        return self.decoding.image_shape

    @property
    def labels(self) -> np.ndarray:
        """The labels of all examples, read without decoding an image."""
        return self.records.labels[self.numbers]

    def take(self, indices: np.ndarray | Sequence[int]) -> "Encoded":
        """Returns the examples at the given positions, in this order."""
        return Encoded(self.records, self.numbers[indices], self.decoding, self.once)

    def joined(self, other: "Encoded") -> "Encoded":
        """Returns these examples and, after them, those of another split."""
        numbers = np.concatenate([self.numbers, other.numbers + len(self.records)])
        records = Joined(self.records, other.records)
        return Encoded(records, numbers, self.decoding, self.once)

    def batch(
        self, positions: np.ndarray, draws: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decodes images; see `Examples.batch`.

        Raises:
          InputError: for a damaged image, unless it is skipped; if none can be read.
        """
        images = np.zeros((len(positions), *self.image_shape), np.uint8)
        labels = np.zeros(len(positions), np.int32)
        faults = self._fill(positions, draws, images, labels)
        for distance in range(1, len(self)):
            if not faults:
                break
            self._note(positions, faults)
            places = list(faults)
            following = np.full(len(positions), -1)
            following[places] = (positions[places] + distance) % len(self)
            faults = self._fill(following, draws, images, labels)
        if faults:
            raise self._none_sound(faults)
        return images, labels

    def decoded(self) -> ImageSet:
        """Decodes all examples into memory, without the damaged ones that are skipped.

        Raises:
          InputError: for a damaged image, unless it is skipped; if none can be read;
            if the machine has not enough memory.
        """
        images = bulk.allocate(len(self), self.image_shape)
        labels = np.zeros(len(self), np.int32)
        faults = self._fill(np.arange(len(self)), None, images, labels)
        if faults and len(faults) == len(self):
            raise self._none_sound(faults)
        if faults:
            first = next(iter(faults.values()))
            warnings.warn(
                f"{len(faults)} of {len(self)} images are left out, "
                f"the first is {first}",
                stacklevel=2,
            )
            kept = np.delete(np.arange(len(self)), list(faults))
            images, labels = images[kept], labels[kept]
        return ImageSet(images, labels, self.class_names)

    def _fill(
        self,
        positions: np.ndarray,
        draws: np.ndarray | None,
        images: np.ndarray,
        labels: np.ndarray,
    ) -> dict[int, InputError]:
        """Decodes the examples at the positions that are not -1, in place.

        Returns:
          The errors of damaged images by their place in the batch, ascending.
        """
        places = np.flatnonzero(positions >= 0)
        faults: dict[int, InputError] = {}

        def work(chunk: range) -> None:
            some = places[chunk.start : chunk.stop].tolist()
            numbers = self.numbers[positions[some]].tolist()
            found = self.records.read(numbers)
            for place, number, record in zip(some, numbers, found, strict=True):
                image, labels[place] = record
                draw = None if draws is None else int(draws[place])
                try:
                    images[place] = self._pixels(image, number, draw)
                except InputError as error:
                    if self.decoding.on_corrupt == "stop":
                        raise
                    faults[place] = error

        bulk.for_chunks(len(places), work, self.decoding.threads)
        check_labels(labels, self.num_classes)
        return dict(sorted(faults.items()))

    def _pixels(self, image: bytes | Path, number: int, draw: int | None) -> np.ndarray:
        """Decodes one image; its errors name it."""
        try:
            return self.decoding.pixels(image, number, draw, self.records.upright)
        except InputError as error:
            if isinstance(image, Path):  # which the error names
                raise
            raise InputError(f"{self.records.name(number)}: {error}") from error

    def _none_sound(self, faults: dict[int, InputError]) -> InputError:
        """Builds the error for a set of damaged images only."""
        first = next(iter(faults.values()))
        return InputError(f"none of {len(self)} images can be read: {first}")

    def _note(self, positions: np.ndarray, faults: dict[int, InputError]) -> None:
        """Logs the first damaged image, and their number at each power of ten."""
        before = len(self._damaged)
        for place, error in faults.items():
            self._damaged.setdefault(int(positions[place]), str(error))
        count = len(self._damaged)
        if not before or len(str(count)) > len(str(before)):
            first = next(iter(self._damaged.values()))
            _LOG.warning(
                "%d of %d images are damaged so far, and the next one takes the place "
                "of each; the first is %s",
                count,
                len(self),
                first,
            )
