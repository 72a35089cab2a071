"""A small data set on the device, from which every step takes its examples."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from train.data.image_set import ImageSet


@struct.dataclass
class Resident:
    """Labeled images on a device.

    An image is stored as one row of numbers. With four axes, a TPU would store the
    batch axis last, and copy the whole data set for every batch.

    Attributes:
      pixels: uint8 `[examples, height * width * channels]`.
      labels: int32 `[examples]`.
      shape: `(height, width, channels)` of an image.

    Example:
      >>> images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
      >>> labels = np.array([5, 3], np.int32)
      >>> examples = Resident.of(ImageSet(images, labels, tuple("abcdef")))
      >>> images, labels = examples.take(np.array([1, 0, 1]))
      >>> images.shape, labels.tolist()
      ((3, 2, 2, 3), [3, 5, 3])
    """

    pixels: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray
    shape: tuple[int, int, int] = struct.field(pytree_node=False)

    @classmethod
    def of(cls, examples: ImageSet) -> "Resident":
        """Converts a data set, still in the memory of the host."""
        count, *shape = examples.images.shape
        pixels = examples.images.reshape(count, -1)
        return cls(pixels, examples.labels, tuple(shape))

    def take(self, index: jax.Array | np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Returns images `[batch, height, width, channels]` and labels `[batch]`."""
        images = self.pixels[index].reshape(len(index), *self.shape)
        return images, self.labels[index]


def images_and_labels(
    data: Resident | None, item: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Returns images and labels, from the data set on the device or from the item.

    Args:
      data: the data set on the device; None if it is fed from the host.
      item: "index" `[batch]`, -1 for no example; if fed, also "images" and "labels".
    """
    if data is None:
        return item["images"], item["labels"]
    return data.take(jnp.maximum(item["index"], 0))
