"""The interface of the examples of a split: of images in memory, and of encoded ones.

Tasks, loop and evaluation use a split through `Examples`. Only `train.data.placement`
asks if its images are in memory, since no others can be resident on a device.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class Examples(Protocol):
    """Labeled images of one size, by their positions `0 .. len - 1`."""

    def __len__(self) -> int: ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, in the order of the labels."""
        ...

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape `(height, width, channels)` of an image."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """The labels of all examples, int32 `[examples]`, without decoding an image."""
        ...

    def take(self, indices: np.ndarray | Sequence[int]) -> "Examples":
        """Returns the examples at the given positions, in this order."""
        ...

    def joined(self, other: Any) -> "Examples":
        """Returns these examples and, after them, those of a set of the same kind."""
        ...

    def batch(
        self, positions: np.ndarray, draws: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images and labels at the given positions.

        Args:
          positions: int `[batch]`; -1 for no example, whose image may be any.
          draws: int `[batch]`, another number each time that an example is drawn, if
            the images are to be augmented for training.

        Returns:
          uint8 images `[batch, height, width, channels]` and int32 labels `[batch]`.
        """
        ...
