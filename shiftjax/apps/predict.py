"""Classification of images with a trained network."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from shiftjax import image_files
from shiftjax.errors import InputError, MissingFileError
from shiftjax.files import user_path
from shiftjax.weights import Card, Pretrained

BATCH_SIZE = 64
NONE_READABLE = "none of the images can be read"
# What to use for networks without classes, by their outputs.
COMMANDS = {
    "images": ": use `shiftjax stylize`",
    "embeddings": ": use `shiftjax embed`",
}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image.

    Attributes:
      path: the image's file.
      classes: names and probabilities in 0 .. 1, the likeliest first.
    """

    path: str
    classes: tuple[tuple[str, float], ...]


class Classifier:
    """A network with its weights, ready to classify images.

    Args:
      pretrained: result of `shiftjax.weights.open_pretrained`.

    Raises:
      InputError: if the network returns no logits.
    """

    def __init__(self, pretrained: Pretrained) -> None:
        self.card = pretrained.card
        if not self.card.class_names:
            outputs = pretrained.model.outputs
            hint = COMMANDS.get(outputs, "")
            raise InputError(
                f"a {self.card.architecture} returns {outputs}, not classes{hint}"
            )
        self.variables = pretrained.variables
        self._apply: Any = jax.jit(pretrained.model.apply)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Computes logits, batch by batch.

        Args:
          images: uint8 `[images, height, width, channels]`, of any number.

        Returns:
          float32 `[images, classes]`.

        Raises:
          InputError: if dtype, shape or number of channels do not fit the network.
        """
        apply = functools.partial(self._apply, self.variables)
        return network_outputs(apply, images, self.card, len(self.card.class_names))

    def read(
        self,
        paths: Iterable[str | Path],
        on_skip: Callable[[str], None] | None = None,
    ) -> np.ndarray:
        """Reads images of any size and format.

        Each image is resized by its short side, to the size that the card of the
        network names, and then center cropped.

        Args:
          paths: files and folders; a folder's images are read in order of their paths.
          on_skip: called with a message for each file that cannot be read; None to
            raise an error instead.

        Returns:
          uint8 `[images, height, width, channels]`.

        Raises:
          MissingFileError: if a path does not exist.
          InputError: if a folder has no image, no file can be read, or `on_skip` is
            None and a file is not an image.
        """
        batches = list(read_batches(_files(paths), self.card, on_skip))
        if not batches:
            raise InputError(NONE_READABLE)
        return np.concatenate([images for _, images in batches])

    def predict(
        self,
        paths: Iterable[str | Path],
        *,
        count: int = 5,
        on_skip: Callable[[str], None] | None = None,
    ) -> Iterator[Prediction]:
        """Classifies image files, which are read as in `read`.

        Args:
          paths: files and folders; a folder's images are read in order of their paths.
          count: number of classes to return for each image.
          on_skip: called with a message for each file that cannot be read; None to
            raise an error instead.

        Yields:
          One prediction for each image that can be read.

        Raises:
          MissingFileError: if a path does not exist.
          InputError: if a folder has no image, or `on_skip` is None and a file is not
            an image.
        """
        files = list(_files(paths))
        for some, images in read_batches(files, self.card, on_skip):
            best = top_classes(self.logits(images), self.card.class_names, count)
            for path, classes in zip(some, best, strict=True):
                yield Prediction(str(path), classes)


def read_image(file: Path, card: Card) -> np.ndarray:
    """Reads an image of any size and format.

    Args:
      file: the file.
      card: the card of the network's weights.

    Returns:
      uint8 `[height, width, channels]`, resized by its short side to the size of the
      card, and center cropped.

    Raises:
      InputError: if the file is not an image.
    """
    size, channels = card.image_size, len(card.mean)
    return image_files.decode(file, size, channels, upright=True, resize=card.resize)


def read_batches(
    files: Iterable[Path], card: Card, on_skip: Callable[[str], None] | None = None
) -> Iterator[tuple[list[Path], np.ndarray]]:
    """Reads image files in batches, with or without those that are damaged.

    Args:
      files: the files.
      card: the card of the network's weights.
      on_skip: called with a message for each file that cannot be read; None to raise
        an error instead.

    Yields:
      Up to `BATCH_SIZE` files, and their images: uint8 `[files, height, width,
      channels]`, as of `read_image`.

    Raises:
      InputError: if `on_skip` is None and a file is not an image.
    """

    def readable() -> Iterator[tuple[Path, np.ndarray]]:
        for file in files:
            try:
                yield file, read_image(file, card)
            except InputError as error:
                if on_skip is None:
                    raise
                on_skip(str(error))

    rest = readable()
    while some := list(itertools.islice(rest, BATCH_SIZE)):
        yield [file for file, _ in some], np.stack([image for _, image in some])


def network_outputs(
    apply: Callable[[np.ndarray], Any], images: np.ndarray, card: Card, size: int
) -> np.ndarray:
    """Computes the outputs of a network, batch by batch.

    Args:
      apply: function from normalized images to outputs `[batch, outputs]`.
      images: uint8 `[images, height, width, channels]`, of any number.
      card: the card of the network's weights.
      size: number of outputs for an image.

    Returns:
      float32 `[images, outputs]`.

    Raises:
      InputError: if dtype, shape or number of channels do not fit the network.
    """
    fits = images.ndim == 4 and images.shape[-1] == len(card.mean)
    if not fits or images.dtype != np.uint8:
        raise InputError(
            f"the images are {images.dtype} {list(images.shape)}; they must be uint8 "
            f"[images, height, width, {len(card.mean)}], not normalized"
        )
    count = max(1, min(BATCH_SIZE, len(images)))
    outs = [np.zeros((0, size), np.float32)]
    for start in range(0, len(images), count):
        batch = normalize_images(images[start : start + count], card)
        # The last batch is filled up, so that one shape is compiled once.
        padding = [(0, count - len(batch))] + [(0, 0)] * 3
        out = apply(np.pad(batch, padding))
        outs.append(np.asarray(out)[: len(batch)])
    return np.concatenate(outs)


def normalize_images(images: np.ndarray, card: Card) -> np.ndarray:
    """Normalizes images with the mean and deviation of a network's training.

    Args:
      images: uint8 `[..., height, width, channels]`.
      card: the card of the network's weights.

    Returns:
      float32 of the same shape: `(images / 255 - mean) / std`.
    """
    mean, std = (np.asarray(v, np.float32) for v in (card.mean, card.std))
    return (images.astype(np.float32) / 255 - mean) / std


def top_classes(
    logits: np.ndarray, class_names: Sequence[str], count: int
) -> list[tuple[tuple[str, float], ...]]:
    """Returns the likeliest classes of each image, with their probabilities.

    Args:
      logits: `[images, classes]`.
      class_names: one name for each class.
      count: number of classes to return, at most.

    Returns:
      For each image, pairs of name and probability, the likeliest first.

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
    """Yields files, and the images in folders.

    Raises:
      MissingFileError: if a path does not exist.
    """
    for path in map(user_path, paths):
        if path.is_dir():
            yield from image_files.find_images(path)
        elif path.is_file():
            yield path
        else:
            raise MissingFileError(f"there is no image {path}")
