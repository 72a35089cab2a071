"""The container of the layout, and the ways in and out of it."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from shiftjax.batchnorm import Pair
from shiftjax.shift import positive


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Planes:
    """The activations of a batch: parts of one shape, `[channels, chunks, H, W, n]`.

    The parts are independent work, which XLA spreads over threads. Within a part, wide
    tensors are made for one chunk of `n` images at a time.

    Attributes:
      parts: at least one array `[channels, chunks, height, width, n]`.
      statistics: of each part, means `[groups, C]` and covariances `[groups, C, C]` of
        groups of as many images each; None where nobody has taken them.

    Example:
      >>> images = jnp.zeros((6, 32, 32, 3))
      >>> planes = Planes.from_nhwc(images, parts=2)
      >>> [part.shape for part in planes.parts], planes.shape
      ([(3, 1, 32, 32, 3), (3, 1, 32, 32, 3)], (6, 32, 32, 3))
      >>> planes.to_nhwc().shape
      (6, 32, 32, 3)
    """

    parts: tuple[jax.Array, ...]
    statistics: tuple[Pair, ...] | None = None

    @classmethod
    def from_nhwc(
        cls, x: jax.Array, *, parts: int = 2, chunk: int | None = None
    ) -> "Planes":
        """Cuts an NHWC batch into parts of one size, and these into chunks.

        Args:
          x: `[batch, height, width, channels]`.
          parts: how many parts at most; fewer where that does not divide the batch.
          chunk: images in a chunk at most; None for one chunk a part.

        Returns:
          The same values in this layout.
        """
        size = len(x) // math.gcd(positive("parts", parts), len(x))
        limit = size if chunk is None else min(positive("chunk", chunk), size)
        n = max((n for n in range(1, limit + 1) if size % n == 0), default=1)
        chunked = x.reshape(-1, size // n, n, *x.shape[1:])
        return cls(tuple(chunked.transpose(0, 5, 1, 3, 4, 2)))

    def to_nhwc(self) -> jax.Array:
        """Returns the values as `[batch, height, width, channels]`."""
        channels_last = [x.transpose(1, 4, 2, 3, 0) for x in self.parts]
        return jnp.concatenate([x.reshape(-1, *x.shape[2:]) for x in channels_last])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the NHWC batch that this holds."""
        channels, chunks, height, width, n = self.parts[0].shape
        return len(self.parts) * chunks * n, height, width, channels

    def map(self, function: Callable[[jax.Array], jax.Array]) -> "Planes":
        """Applies a function to each part, whose statistics are lost."""
        return Planes(tuple(map(function, self.parts)))

    def global_average_pool(self) -> jax.Array:
        """Returns the mean over height and width, `[batch, channels]`."""
        pooled = [x.mean((2, 3)).reshape(len(x), -1).T for x in self.parts]
        return jnp.concatenate(pooled)


def rows(x: jax.Array) -> jax.Array:
    """Flattens all axes but the first: `[C, ...]` to `[C, P]`."""
    return x.reshape(len(x), -1)
