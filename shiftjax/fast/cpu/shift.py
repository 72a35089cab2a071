"""ReLU and shift on planes: each group of channels is written to its destination.

The memory of the result is reused, and pixels to which no channel moves stay zero in
it. So a border costs nothing, and the single pass over the wide tensor copies whole
rows.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from shiftjax.fast.phases import phases
from shiftjax.lowerings import Size


class ShiftOptions(NamedTuple):
    """The options of a shift, as in `shiftjax.shift.shift`."""

    kernel_size: int
    dilation: int
    strides: int


class Box(NamedTuple):
    """The pixels that a group of channels with one displacement reads and writes.

    Attributes:
      channels: the first, and one past the last, among those of the phase.
      source: first row and column read.
      target: first row and column written.
      size: rows and columns.
    """

    channels: tuple[int, int]
    source: Size
    target: Size
    size: Size


class Phase(NamedTuple):
    """The channels that read one phase of the image.

    Attributes:
      start: first row and column of the image that the phase has.
      size: rows and columns of the phase.
      channels: indices of the channels that read it.
      boxes: the pixels that they read and write.
    """

    start: Size
    size: Size
    channels: tuple[int, ...]
    boxes: tuple[Box, ...]


@functools.lru_cache
def plan_phases(channels: int, shift: ShiftOptions, size: Size) -> tuple[Phase, ...]:
    """Groups channels by the phase of the image that they read.

    Args:
      channels: number of shifted channels.
      shift: the options of the shift.
      size: height and width of the image.
    """
    stride = shift.strides
    out = [-(-length // stride) for length in size]
    plan = []
    for start, members, table in phases(channels, *shift):
        extent = [-(-(n - s) // stride) for n, s in zip(size, start, strict=True)]
        offsets, boxes = np.asarray(table), []
        cuts = np.flatnonzero(np.diff(offsets, axis=0).any(1)) + 1
        for group in np.split(np.arange(len(members)), cuts):
            offset = offsets[group[0]]
            low = np.maximum(offset, 0)
            shape = np.minimum(extent, out + offset) - low
            if (shape > 0).all():  # otherwise it only reads zeros
                numbers = (tuple(v.tolist()) for v in (low, low - offset, shape))
                boxes.append(Box((int(group[0]), int(group[-1]) + 1), *numbers))
        phase = start, (max(extent[0], 0), max(extent[1], 0))
        plan.append(Phase(*phase, tuple(members.tolist()), tuple(boxes)))
    return tuple(plan)


def place_channels(
    phase: Phase, first: int, target: jax.Array, source: jax.Array
) -> jax.Array:
    """Writes the channels of a phase to their destinations.

    Args:
      phase: the channels.
      first: the row of `target` that has the first of them.
      target: `[C, group, h, w * n]`, zero where nothing is written.
      source: `[channels of the phase, group, height, width * n]`.

    Returns:
      The target with the values.
    """
    n = source.shape[3] // max(phase.size[1], 1)
    for (low, high), (y, x), (to_y, to_x), (h, w) in phase.boxes:
        block = source[low:high, :, y : y + h, x * n : (x + w) * n]
        corner = (first + low, 0, to_y, to_x * n)
        target = lax.dynamic_update_slice(target, block, corner)
    return target


def place_channels_back(
    phase: Phase, first: int, target: jax.Array, source: jax.Array
) -> jax.Array:
    """Moves the channels of a phase back: the transpose of `place_channels`.

    Args:
      phase: the channels.
      first: the row of `source` that has the first of them.
      target: `[channels of the phase, group, height, width * n]`, zero where nothing
        is written.
      source: `[C, group, h, w * n]`.

    Returns:
      The target with the values.
    """
    n = target.shape[3] // max(phase.size[1], 1)
    for (low, high), (y, x), (to_y, to_x), (h, w) in phase.boxes:
        channels = slice(first + low, first + high)
        block = source[channels, :, to_y : to_y + h, to_x * n : (to_x + w) * n]
        target = lax.dynamic_update_slice(target, block, (low, 0, y, x * n))
    return target


def with_firsts(plan: Sequence[Phase]) -> list[tuple[int, Phase]]:
    """Returns each phase with the row of its first channel, in order."""
    starts = np.cumsum([0] + [len(phase.channels) for phase in plan])
    return list(zip(starts.tolist(), plan, strict=False))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def relu_shift(
    plan: tuple[Phase, ...],
    wide: list[jax.Array],
    forward: jax.Array,
    back: list[jax.Array],
) -> jax.Array:
    """Computes ReLU and shift; the sign of the result masks the gradient.

    Args:
      plan: the phases.
      wide: for each phase, `[its channels, group, height, width * n]`.
      forward: the memory of the result, `[C, group, h, w * n]`: an earlier result, or
        zeros.
      back: the memory of the gradient, like `wide`: an earlier gradient, or zeros. The
        derivative with respect to it is the memory with the new gradient.

    Returns:
      `[C, group, h, w * n]`, channels in the order of the phases.
    """
    del back
    for (first, phase), x in zip(with_firsts(plan), wide, strict=True):
        forward = place_channels(phase, first, forward, jnp.maximum(x, 0))
    return forward


def _relu_shift_forward(plan: tuple[Phase, ...], *inputs: Any) -> tuple:
    out = relu_shift(plan, *inputs)
    return out, (out, inputs[2])


def _relu_shift_backward(
    plan: tuple[Phase, ...], residuals: tuple, g: jax.Array
) -> tuple:
    out, back = residuals
    masked = jnp.where(out > 0, g, 0)
    phased = zip(with_firsts(plan), back, strict=True)
    dx = [place_channels_back(phase, first, x, masked) for (first, phase), x in phased]
    return dx, None, dx


relu_shift.defvjp(_relu_shift_forward, _relu_shift_backward)
