"""The static plan of the kernels: shapes, tiles and sizes.

A product of the matrix units has at least 16 columns, and the sizes of Triton's arrays
are powers of two, but only 5 or 10 channels share a displacement. Therefore the wide
channels are packed into tiles of 16, 32 or 64 columns. Either each displacement has its
own tiles, with some empty columns, or several displacements share a tile, which reads
its input once for each of them.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from shiftjax.lowerings import Size, Table

SMALLEST = 16  # side of a product
WIDTHS = (16, 32, 64)  # of tiles
LOAD = 32  # cost of reading or writing a number, in products
TILE = 1024  # additional cost of a tile, in products
NOWHERE = 2**20  # a displacement that leaves every image

Run = tuple[int, int, int, int]  # first column, last column + 1, dy, dx


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The division of the work; the results are the same up to rounding.

    Attributes:
      pixels: pixels of a program in the forward pass; a power of two.
      warps: warps of a program in the forward pass.
      back_pixels: pixels of a step in the backward pass; a power of two.
      back_warps: warps of a program in the backward pass.
      back_stages: pipeline stages of the backward pass.
      programs: number of programs that sum the gradients of weights.
      sums: bytes of registers of a program for such sums.
      fused: if True, one pass computes all gradients if their sums fit; else two.
      width: width of a tile, or None for the least work.
    """

    pixels: int = 128
    warps: int = 4
    back_pixels: int = 64
    back_warps: int = 4
    back_stages: int = 1
    programs: int = 264
    sums: int = 2**16
    fused: bool = True
    width: int | None = None


@dataclasses.dataclass(frozen=True)
class Packing:
    """The assignment of wide channels to the columns of tiles.

    Attributes:
      width: columns of a tile.
      tiles: for each tile, the runs of neighboring columns of equal displacement.
      slots: for each column of all tiles, its channel, or -1.
    """

    width: int
    tiles: tuple[tuple[Run, ...], ...]
    slots: tuple[int, ...]

    def reads(self, tile: int) -> int:
        """Returns the number of displacements of a tile, as a power of two."""
        return power_of_two(len(self.tiles[tile]))

    def work(self, channels: int, features: int) -> int:
        """Estimates the work of a pixel, in products, to rank packings."""
        tiles = len(self.tiles)
        reads = sum(map(self.reads, range(tiles)))
        expand = reads * channels * (self.width + LOAD)
        return expand + tiles * (self.width * (features + LOAD) + TILE)


@dataclasses.dataclass(frozen=True)
class GPUPlan:
    """The shapes of a call.

    Attributes:
      image: height and width of the input.
      size: height and width of the output.
      stride: distance between the rows and columns kept.
      channels: channels of the input.
      features: channels of the output.
      packing: packing of the wide channels.
      sizes: the division of the work.
    """

    image: Size
    size: Size
    stride: int
    channels: int
    features: int
    packing: Packing
    sizes: Sizes

    @classmethod
    def make(
        cls,
        shape: Sequence[int],
        features: int,
        table: Table,
        stride: int,
        sizes: Sizes,
    ) -> "GPUPlan":
        """Makes the plan of x `[batch, height, width, channels]` and a table."""
        _, height, width, channels = shape
        packing = min(
            (
                pack(table, columns, alone)
                for columns in ([sizes.width] if sizes.width else WIDTHS)
                for alone in (True, False)
            ),
            key=lambda packing: packing.work(channels, features),
        )
        size = (-(-height // stride), -(-width // stride))
        return cls((height, width), size, stride, channels, features, packing, sizes)

    @property
    def padded(self) -> tuple[int, int]:
        """Channels and features, padded to powers of two that a product supports."""
        return (
            power_of_two(self.channels, SMALLEST),
            power_of_two(self.features, SMALLEST),
        )

    @property
    def moves(self) -> np.ndarray:
        """The distinct displacements int32 `[2, D]`, D a power of two, as (dy, dx)."""
        distinct = sorted({run[2:] for tile in self.packing.tiles for run in tile})
        return _columns(distinct, power_of_two(len(distinct), SMALLEST))

    @property
    def tile_moves(self) -> np.ndarray:
        """The displacements of each tile, int32 `[2, tiles, R]`, as (dy, dx)."""
        return np.stack([_columns(runs, self._most) for runs in self._moves], 1)

    @property
    def chunks(self) -> list[range]:
        """Tiles whose weights' gradients fit into the registers of a program."""
        channels, features = self.padded
        rows = channels + self._most * features + self.sizes.back_pixels
        count = max(1, self.sizes.sums // (4 * self.packing.width * rows))
        tiles = range(len(self.packing.tiles))
        return [tiles[i : i + count] for i in tiles[::count]]

    @property
    def _most(self) -> int:
        tiles = range(len(self.packing.tiles))
        return max(map(self.packing.reads, tiles))

    @property
    def _moves(self) -> list[list[tuple[int, int]]]:
        return [[(dy, dx) for *_, dy, dx in runs] for runs in self.packing.tiles]

    def scatter(self, weights: jax.Array) -> jax.Array:
        """Moves wide channels `[..., wide]` to their columns `[tiles, ..., width]`."""
        padding = [(0, 0)] * (weights.ndim - 1)
        padded = jnp.pad(weights, [*padding, (0, 1)])  # the channel -1 of empty columns
        packed = padded[..., np.asarray(self.packing.slots)]
        packed = packed.reshape(*weights.shape[:-1], -1, self.packing.width)
        return jnp.moveaxis(packed, -2, 0)

    def gather(self, packed: jax.Array) -> jax.Array:
        """Moves `[tiles, ..., width]` back to `[..., wide]`."""
        flat = jnp.moveaxis(packed, 0, -2)
        flat = flat.reshape(*flat.shape[:-2], -1)
        slots = np.asarray(self.packing.slots)
        columns = np.flatnonzero(slots >= 0)
        return flat[..., columns[np.argsort(slots[columns])]]

    def by_read(self) -> np.ndarray:
        """Returns a mask of the columns of each read of a tile, `[tiles, R, width]`."""
        mask = np.zeros((len(self.packing.tiles), self._most, self.packing.width), bool)
        for tile, runs in enumerate(self.packing.tiles):
            for read, (start, stop, *_) in enumerate(runs):
                mask[tile, read, start:stop] = True
        return mask

    def by_move(self) -> np.ndarray:
        """Returns a mask of the columns of each of `moves`, `[tiles, D, width]`."""
        moves = self.moves.T
        mask = np.zeros((len(self.packing.tiles), len(moves), self.packing.width), bool)
        for tile, runs in enumerate(self.packing.tiles):
            for start, stop, *move in runs:
                mask[tile, (moves == move).all(1), start:stop] = True
        return mask


def _columns(moves: Sequence[tuple[int, int]], count: int) -> np.ndarray:
    missing = [(NOWHERE, NOWHERE)] * (count - len(moves))
    return np.array([*moves, *missing], np.int32).T


def power_of_two(n: int, smallest: int = 1) -> int:
    """Returns the smallest power of two that is at least n and `smallest`."""
    return max(smallest, 1 << (n - 1).bit_length())


@functools.lru_cache
def pack(table: Table, width: int, alone: bool) -> Packing:
    """Packs wide channels into tiles.

    Args:
      table: a row (dy, dx) per channel.
      width: columns of a tile.
      alone: if True, no two displacements share a tile.

    Returns:
      The packing.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for channel, move in enumerate(table):
        groups.setdefault(move, []).append(channel)
    slots: list[int] = []
    tiles: list[list[Run]] = []
    for move in sorted(groups):
        members = groups[move]
        while members:
            start = len(slots) % width
            count = min(len(members), width - start)
            if start == 0:
                tiles.append([])
            tiles[-1].append((start, start + count, *move))
            slots += members[:count]
            members = members[count:]
        if alone:
            slots += [-1] * (-len(slots) % width)
    slots += [-1] * (-len(slots) % width)
    return Packing(width, tuple(map(tuple, tiles)), tuple(slots))
