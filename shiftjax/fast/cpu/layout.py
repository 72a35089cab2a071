"""The container of the layout, and its conversions."""

import dataclasses
from collections.abc import Callable

import jax

from shiftjax.fast.batchnorm import Pair
from shiftjax.shift import positive


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Planes:
    """The activations of a batch, `[channels, chunks, H, W, n]`.

    Wide tensors are computed for a few chunks of `n` images at a time.

    Attributes:
      array: `[channels, chunks, height, width, n]`.
      statistics: means `[groups, C]` and covariances `[groups, C, C]` of groups of
        equally many images; None if they have not been computed.

    Example:
      >>> images = jax.numpy.zeros((6, 32, 32, 3))
      >>> planes = Planes.from_nhwc(images, chunk=4)
      >>> planes.array.shape, planes.shape
      ((3, 2, 32, 32, 3), (6, 32, 32, 3))
      >>> planes.to_nhwc().shape
      (6, 32, 32, 3)
    """

    array: jax.Array
    statistics: Pair | None = None

    @classmethod
    def from_nhwc(cls, x: jax.Array, *, chunk: int | None = None) -> "Planes":
        """Splits an NHWC batch into chunks of equal size.

        Args:
          x: `[batch, height, width, channels]`.
          chunk: largest number of images in a chunk; None for one chunk.

        Returns:
          The same values in this layout.
        """
        limit = len(x) if chunk is None else min(positive("chunk", chunk), len(x))
        n = max((n for n in range(1, limit + 1) if len(x) % n == 0), default=1)
        return cls(x.reshape(-1, n, *x.shape[1:]).transpose(4, 0, 2, 3, 1))

    def to_nhwc(self) -> jax.Array:
        """Returns the values as `[batch, height, width, channels]`."""
        return self.array.transpose(1, 4, 2, 3, 0).reshape(self.shape)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the NHWC batch."""
        channels, chunks, height, width, n = self.array.shape
        return chunks * n, height, width, channels

    @property
    def dtype(self) -> jax.numpy.dtype:
        """The dtype of the values."""
        return self.array.dtype

    def map(self, function: Callable[[jax.Array], jax.Array]) -> "Planes":
        """Applies a function to the array, and drops the statistics."""
        return Planes(function(self.array))

    def global_average_pool(self) -> jax.Array:
        """Returns the mean over height and width, `[batch, channels]`."""
        pooled = self.array.mean((2, 3))
        return pooled.reshape(len(pooled), -1).T


Activations = jax.Array | Planes


def rows(x: jax.Array) -> jax.Array:
    """Flattens all axes but the first: `[C, ...]` to `[C, P]`."""
    return x.reshape(len(x), -1)
