"""Labeled images in memory, as the examples of a split."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from shiftjax.errors import InputError


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """Raises InputError for a label outside the classes.

    Args:
      labels: int `[examples]`.
      num_classes: the number of classes.
    """
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise InputError(
            f"labels must lie in 0..{num_classes - 1} ({num_classes} classes), not in "
            f"{labels.min()}..{labels.max()}"
        )


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Labeled images in memory; see `train.data.examples.Examples`.

    Attributes:
      images: uint8 `[examples, height, width, channels]`, 1 or 3 channels (gray, RGB).
      labels: int32 `[examples]`, indices into `class_names`.
      class_names: one name per class, in the order of the labels.

    Raises:
      InputError: for a wrong shape or dtype, or a label outside the classes.

    Example:
      >>> examples = ImageSet(
      ...     images=np.zeros([2, 8, 8, 3], np.uint8),
      ...     labels=np.array([1, 0], np.int32),
      ...     class_names=("cat", "dog"),
      ... )
      >>> len(examples), examples.num_classes
      (2, 2)
      >>> examples.take([1]).labels
      array([0], dtype=int32)
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Rejects arrays that do not fit together."""
        images, labels = self.images, self.labels
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[3] not in (1, 3)
        ):
            raise InputError(
                "images must be uint8 [examples, height, width, 1 or 3 channels], "
                f"not {images.dtype} {list(images.shape)}"
            )
        if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
            raise InputError(
                f"labels must be int32 [{len(images)}], one per image, "
                f"not {labels.dtype} {list(labels.shape)}"
            )
        check_labels(labels, self.num_classes)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape `(height, width, channels)` of an image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def take(self, indices: np.ndarray | Sequence[int]) -> "ImageSet":
        """Copies the examples at the given positions.

        Args:
          indices: the positions, in the wanted order.

        Returns:
          These examples, with the same classes.
        """
        return ImageSet(self.images[indices], self.labels[indices], self.class_names)

    def joined(self, other: "ImageSet") -> "ImageSet":
        """Copies these examples and, after them, those of a set of the same classes."""
        return ImageSet(
            np.concatenate([self.images, other.images]),
            np.concatenate([self.labels, other.labels]),
            self.class_names,
        )

    def batch(
        self, positions: np.ndarray, draws: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Copies images and labels; every draw has the same."""
        del draws
        kept = np.maximum(positions, 0)
        return self.images[kept], self.labels[kept]
