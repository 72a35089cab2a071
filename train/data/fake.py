"""Random images, of any number, to measure training without a disk."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shiftjax.errors import InputError
from train.data import splits
from train.data.decoding import Decoding
from train.data.encoded import Encoded

FORMS = ("fake:COUNT", "fake:COUNTxCLASSES")
_CLASSES = 1000
_SEEDS = {"train": 1, "test": 2}


@dataclasses.dataclass(frozen=True)
class Noise:
    """Random images, made when they are read; see `train.data.records.Records`.

    Attributes:
      examples: the number of images.
      classes: the number of classes.
      extent: height and width of the images.
      seed: the seed of the pixels.
    """

    examples: int
    classes: int
    extent: tuple[int, int]
    seed: int

    upright: bool = False

    def __len__(self) -> int:
        return self.examples

    @property
    def class_names(self) -> tuple[str, ...]:
        """Numbers."""
        return tuple(map(str, range(self.classes)))

    @property
    def labels(self) -> np.ndarray:
        """All classes in turn."""
        return np.arange(self.examples, dtype=np.int32) % np.int32(self.classes)

    def name(self, number: int) -> str:
        """Returns the number of an image."""
        return f"fake image {number}"

    def read(self, numbers: Sequence[int]) -> list[tuple[bytes | Path, int]]:
        """Makes images as PPM files, whose decoding costs almost nothing."""
        height, width = self.extent
        header, size = b"P6 %d %d 255\n" % (width, height), 3 * height * width
        found: list[tuple[bytes | Path, int]] = []
        for number in numbers:
            bits = np.random.Philox(key=[self.seed, number])
            words = bits.random_raw(-(-size // 8))
            pixels = words.tobytes()[:size]
            found.append((header + pixels, number % self.classes))
        return found


def open_fake(name: str, decoding: Decoding) -> splits.OfficialSplits:
    """Opens random images: training examples, and a tenth as many test examples.

    They are made at each epoch, in no memory, unless they are to be decoded once.

    Args:
      name: `COUNT` or `COUNTxCLASSES`; 1000 classes by default.
      decoding: how the images become pixels.

    Raises:
      InputError: for another name.
    """
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", name)
    examples, classes = (
        (int(x or _CLASSES) for x in found.groups()) if found else (0, 0)
    )
    if not examples or not classes:
        raise InputError(f"source 'fake:{name}': it must be {' or '.join(FORMS)}")
    counts = {"train": examples, "test": max(examples // 10, 1)}
    when = decoding.decode or "each_epoch"

    def read(split: str) -> Encoded:
        extent = decoding.image_shape[:2]
        noise = Noise(counts[split], classes, extent, _SEEDS[split])
        chosen = dataclasses.replace(decoding, decode=when)
        return Encoded.of(noise, chosen, sum(counts.values()))

    return splits.assign(f"fake:{name}", list(counts), read)
