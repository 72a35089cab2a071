"""Heat maps of an analysis: the share of each displacement, for each block."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from shiftjax.apps.analysis import BlockAnalysis, Move
from shiftjax.apps.figures import figure_class, save_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 6


def draw_heatmaps(
    blocks: Sequence[BlockAnalysis], kept: Mapping[Move, float], path: str
) -> None:
    """Draws a heat map of the window for each block, and one of the predictions kept.

    Args:
      blocks: result of `shiftjax.apps.analysis.analyze`.
      kept: result of `shiftjax.apps.analysis.agreement`.
      path: file of the figure; its ending decides the format.

    Raises:
      InputError: if matplotlib is not installed, or the file cannot be written.
    """
    maps = [(block.name, block.contributions) for block in blocks]
    maps.append(("predictions kept without it", kept))
    columns = min(COLUMNS, len(maps))
    rows = -(-len(maps) // columns)
    figure = figure_class()(figsize=(2.1 * columns, 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, (title, values) in zip(panels, maps, strict=False):
        _map(axes, title, values)
    figure.suptitle("share of each displacement (dy down, dx to the right), %")
    save_plot(functools.partial(figure.savefig, dpi=150), path)


def _map(axes: "Axes", title: str, values: Mapping[Move, float]) -> None:
    """Draws one window, with the value of each displacement in percent."""
    moves = np.array(list(values))
    rows, columns = (np.unique(axis) for axis in moves.T)
    grid = np.full((len(rows), len(columns)), np.nan)
    for (dy, dx), value in values.items():
        grid[np.searchsorted(rows, dy), np.searchsorted(columns, dx)] = 100 * value
    axes.imshow(grid, cmap="Blues", vmin=0)
    top = np.nanmax(grid)
    for (i, j), value in np.ndenumerate(grid):
        if not np.isnan(value):
            color = "white" if value > 0.6 * top else "black"
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=color)
    axes.set_title(title, fontsize=8)
