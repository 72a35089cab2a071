"""The modules of this implementation, for NHWC arrays and for `Planes`.

An NHWC array is converted to the layout and back; `Planes` stay `Planes`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from shiftjax.fast.batchnorm import Params, Stats
from shiftjax.fast.cpu import block, statistics
from shiftjax.fast.cpu.chunks import chunk_size
from shiftjax.fast.cpu.layout import Activations, Planes
from shiftjax.fast.dispatch import BlockOptions


def cpu_supports(shape: Sequence[int], block: BlockOptions) -> bool:
    """Returns True, because all shift blocks are supported."""
    del shape, block
    return True


def conv_norm(
    params: Params, stats: Stats | None, x: Activations, **options: Any
) -> tuple[Activations, Stats]:
    """Computes `shiftjax.layers.ConvNorm`; see `shiftjax.fast.cpu.statistics`."""
    return _run(statistics.conv_norm_planes, params, stats, x, None, options)


def shift_block(
    params: Params, stats: Stats | None, x: Activations, **options: Any
) -> tuple[Activations, Stats]:
    """Computes `shiftjax.layers.ShiftConv`; see `shiftjax.fast.cpu.block`."""
    wide = len(params["project"]["conv"]["kernel"])
    pixels = math.prod(x.shape[1:3]) // options["strides"] ** 2
    chunk = chunk_size(4 * wide * pixels)
    return _run(block.shift_block_planes, params, stats, x, chunk, options)


def _run(
    function: Callable[..., tuple[Planes, Stats]],
    params: Params,
    stats: Stats | None,
    x: Activations,
    chunk: int | None,
    options: dict[str, Any],
) -> tuple[Activations, Stats]:
    if isinstance(x, Planes):
        return function(params, stats, x, **options)
    planes = Planes.from_nhwc(x, chunk=chunk)
    y, batch_stats = function(params, stats, planes, **options)
    return y.to_nhwc(), batch_stats
