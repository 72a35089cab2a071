"""The phases of an image, on which a strided shift has stride 1."""

import functools

import numpy as np

from shiftjax.lowerings import Size, Table
from shiftjax.shift import displacements


@functools.lru_cache
def phases(
    channels: int, kernel_size: int, dilation: int, stride: int
) -> tuple[tuple[Size, np.ndarray, Table], ...]:
    """Groups channels by the phase of the image that they read.

    A strided shift reads row `stride * h + dy`, which is row `h + dy // stride` of the
    phase `dy % stride`.

    Returns:
      For each phase, (row, column), its channels, and their displacements within it.
    """
    moves = displacements(channels, kernel_size, dilation=dilation)
    phase, offsets = moves % stride, moves // stride
    plan = []
    for row, column in np.unique(phase, axis=0).tolist():
        # JAX cannot index by one array of int64 both with and without enable_x64.
        members = np.flatnonzero((phase == (row, column)).all(1)).astype(np.int32)
        table = tuple(map(tuple, offsets[members].tolist()))
        plan.append(((row, column), members, table))
    return tuple(plan)
