"""What a network says of pictures."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from shiftjax import image_files
from shiftjax.errors import InputError, MissingFileError
from shiftjax.weights import Card, Pretrained

BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one picture.

    Attributes:
      path: the file.
      classes: names and probabilities, the likeliest first.
    """

    path: str
    classes: tuple[tuple[str, float], ...]


class Classifier:
    """A network with its weights, ready to classify pictures.

    Args:
      pretrained: of `shiftjax.weights.open_pretrained`.

    Raises:
      InputError: if it is a network that gives pictures.
    """

    def __init__(self, pretrained: Pretrained) -> None:
        self.card = pretrained.card
        if not self.card.class_names:
            raise InputError(
                f"a {self.card.architecture} gives pictures, not classes: "
                "see `shiftjax stylize`"
            )
        self.variables = pretrained.variables
        self._apply: Any = jax.jit(pretrained.model.apply)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Computes logits, batch by batch.

        Args:
          images: uint8 `[pictures, height, width, channels]`.

        Returns:
          float32 `[pictures, classes]`.

        Raises:
          InputError: if the pictures have other channels than the network takes.
        """
        if images.ndim != 4 or images.shape[-1] != len(self.card.mean):
            raise InputError(
                f"pictures are {list(images.shape)}; the network takes [pictures, "
                f"height, width, {len(self.card.mean)}]"
            )
        size = max(1, min(BATCH_SIZE, len(images)))
        outs = [np.zeros((0, len(self.card.class_names)), np.float32)]
        for start in range(0, len(images), size):
            batch = normalize(images[start : start + size], self.card)
            room = [(0, size - len(batch))] + [(0, 0)] * 3  # one shape, compiled once
            out = self._apply(self.variables, np.pad(batch, room))
            outs.append(np.asarray(out)[: len(batch)])
        return np.concatenate(outs)

    def read(self, paths: Iterable[str | Path]) -> np.ndarray:
        """Reads pictures of any size and format.

        The short side is brought to the network's size, and the centre taken.

        Args:
          paths: files, and folders, whose pictures are taken in order of their paths.

        Returns:
          uint8 `[pictures, height, width, channels]`.

        Raises:
          MissingFileError: if a path is not there.
          InputError: if a file is no picture.
        """
        size, channels = self.card.image_size, len(self.card.mean)
        return np.stack(
            [image_files.decode(f, size, channels, upright=True) for f in _files(paths)]
        )

    def predict(
        self, paths: Iterable[str | Path], *, count: int = 5
    ) -> Iterator[Prediction]:
        """Classifies pictures, as `read` reads them.

        Args:
          paths: files, and folders, whose pictures are taken in order of their paths.
          count: how many classes to name.

        Yields:
          One prediction a picture.

        Raises:
          MissingFileError: if a path is not there.
          InputError: if a file is no picture.
        """
        files = list(_files(paths))
        for start in range(0, len(files), BATCH_SIZE):
            some = files[start : start + BATCH_SIZE]
            logits = self.logits(self.read(some))
            best = top_classes(logits, self.card.class_names, count)
            for path, classes in zip(some, best, strict=True):
                yield Prediction(str(path), classes)


def normalize(images: np.ndarray, card: Card) -> np.ndarray:
    """Brings uint8 `[pictures, height, width, channels]` to what the network takes."""
    mean, std = (np.asarray(v, np.float32) for v in (card.mean, card.std))
    return (images.astype(np.float32) / 255 - mean) / std


def top_classes(
    logits: np.ndarray, class_names: Sequence[str], count: int
) -> list[tuple[tuple[str, float], ...]]:
    """Returns the likeliest classes of each row, with their probabilities.

    Example:
      >>> top_classes(np.log([[0.25, 0.75]]), ("cat", "dog"), 1)
      [(('dog', 0.75),)]
    """
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    shares = shifted / shifted.sum(-1, keepdims=True)
    order = np.argsort(-logits, -1, kind="stable")[:, :count]
    names = list(class_names)
    return [
        tuple((names[i], round(float(row[i]), 6)) for i in best)
        for row, best in zip(shares, order, strict=True)
    ]


def _files(paths: Iterable[str | Path]) -> Iterator[Path]:
    """Yields files, and the pictures in folders."""
    for path in map(Path, paths):
        if path.is_dir():
            yield from image_files.find(path)
        elif path.is_file():
            yield path
        else:
            raise MissingFileError(f"there is no picture {path}")
