"""The static plan of a kernel: shapes, displacements and memory."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shiftjax.fast.dispatch import BlockOptions
from shiftjax.fast.fused_block import reachable_moves
from shiftjax.lowerings import Table

LANES = 128  # images in a step of the grid, and the depth of the matrix unit
WORDS = 8  # rows of a register
UNROLL = 8  # largest number of groups of positions to unroll
VMEM_LIMIT = 100 * 2**20  # of the 128 MiB of a v5e or v6e
DTYPES = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class TPUPlan:
    """The shapes of a kernel, and sizes derived from them.

    Attributes:
      blocks: number of blocks of 128 images.
      height: rows of an image.
      width: columns of an image.
      channels: channels of the input.
      expanded: number of shifted channels.
      features: channels of the output.
      dtype: dtype of the input, the wide rows and the operands of products.
      runs: neighboring channels of equal displacement, as (start, stop, dy, dx).
      interpret: if True, the kernel is interpreted.
    """

    blocks: int
    height: int
    width: int
    channels: int
    expanded: int
    features: int
    dtype: jnp.dtype
    runs: tuple[tuple[int, int, int, int], ...]
    interpret: bool = False

    @classmethod
    def make(
        cls, x: Any, features: int, table: Table, interpret: bool = False
    ) -> "TPUPlan":
        """Makes the plan of x `[height, width, channels, batch]` and a table."""
        height, width, channels, batch = x.shape
        moves = np.asarray(table)
        changes = np.flatnonzero((moves[1:] != moves[:-1]).any(1)) + 1
        starts = [0, *changes.tolist()]
        stops = [*changes.tolist(), len(moves)]
        runs = tuple(
            (start, stop, *moves[start].tolist())
            for start, stop in zip(starts, stops, strict=True)
        )
        shape = (batch // LANES, height, width, channels, len(moves), features)
        return cls(*shape, jnp.dtype(x.dtype), runs, interpret)

    @property
    def rows(self) -> int:
        """Number of rows of all blocks of images, which stream through the chip."""
        return self.blocks * self.height

    @property
    def reach(self) -> int:
        """Largest vertical displacement, in rows."""
        return max(abs(dy) for _, _, dy, _ in self.runs)

    @property
    def lag(self) -> int:
        """Number of steps after a row until all of its neighbors are there."""
        return self.reach + 1

    @property
    def margin(self) -> int:
        """Largest horizontal displacement, in columns."""
        return max(abs(dx) for *_, dx in self.runs)

    @property
    def slots(self) -> int:
        """Number of rows in a ring; rings of wide rows have one more, of zeros."""
        return self.reach + self.lag + 1

    @property
    def packing(self) -> int:
        """Number of neighboring channels in a word of 32 bits."""
        return 4 // self.dtype.itemsize

    @property
    def positions(self) -> int:
        """Number of neighboring positions that share a product."""
        return self.divisor(LANES // max(self.channels, self.features), self.width)

    @property
    def projected(self) -> int:
        """Number of neighboring positions that share a product of wide depth."""
        return self.divisor(LANES // self.expanded, self.positions)

    @staticmethod
    def divisor(most: int, n: int) -> int:
        """Returns the largest divisor of n up to `most`."""
        return next(p for p in range(max(1, most), 0, -1) if n % p == 0)

    @property
    def wide_rows(self) -> tuple[int, int, int, int]:
        """Shape of a ring of wide rows, in words, with zeros left and right of each."""
        words = self.expanded // self.packing
        return self.slots + 1, self.width + 2 * self.margin, words, LANES

    def narrow_rows(self, channels: int) -> tuple[int, int, int, int]:
        """Returns the shape of a ring of rows with few channels."""
        return self.slots, self.width, channels, LANES

    def memory(self) -> int:
        """Estimates the bytes of vector memory that the backward kernel takes."""
        narrow, wide = self.channels + self.features, self.positions * self.expanded
        rows = np.prod(self.narrow_rows(narrow)) * self.dtype.itemsize
        rows += 2 * np.prod(self.wide_rows) * 4
        rows += 2 * self.width * (narrow + self.channels) * LANES * self.dtype.itemsize
        depth = -(-self.positions * max(self.channels, self.features) // LANES) * LANES
        weights = 2 * wide * (3 * depth * self.dtype.itemsize + 8 * depth + 8 * LANES)
        temporaries = 4 * UNROLL * wide * LANES * 4
        return int(rows + weights + temporaries)


def tpu_kernel_supports(shape: Sequence[int], block: BlockOptions) -> bool:
    """Returns True if `shift_project` supports the sizes.

    Args:
      shape: shape of x on one device, `[batch, height, width, channels]`.
      block: options of the block, whose strides are 1.

    Returns:
      False if the batch does not fill the lanes, channels do not fill registers, the
      dtype has no kernel or the rows do not fit into the vector memory.

    Example:
      >>> block = BlockOptions(wide=48, features=16, dtype=jnp.bfloat16)
      >>> tpu_kernel_supports((256, 32, 32, 16), block)
      True
      >>> tpu_kernel_supports((100, 32, 32, 16), block)
      False
    """
    dtype = jnp.dtype(block.dtype)
    if dtype not in DTYPES or len(shape) != 4 or 0 in shape or shape[0] % LANES:
        return False
    tile = WORDS * 4 // dtype.itemsize
    if any(n < tile or n % tile for n in (shape[-1], block.wide, block.features)):
        return False
    window = block.kernel_size, block.dilation
    table = reachable_moves(block.wide, *window, shape[1:3])
    x = jax.ShapeDtypeStruct((*shape[1:], shape[0]), dtype)
    return TPUPlan.make(x, block.features, table).memory() <= VMEM_LIMIT
