"""The plot of the results: accuracy against cost, ours and the published ones."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftjax.releases.manifest import Release
from train.zoo.published import DOUBTFUL, PUBLIC_ZOO, PUBLISHED, TITLES
from train.zoo.results import FAMILIES, dataset, depth, family

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which color-blind readers can tell apart.
COLORS = {
    "shiftresnet": "#0072B2",
    "resnet": "#D55E00",
    "depthwise_resnet": "#009E73",
}
SIZES = {20: 4.0, 56: 6.0, 110: 8.0}  # of markers, by the number of layers
PAPER, OTHERS = "o", "sD^v"  # markers of the paper's recipe, and of other recipes
GREY = "#555555"
PUBLIC = {"ResNet": "X", "ShuffleNetV2 x0.5": "P", "MobileNetV2 x0.5": "*"}


@dataclasses.dataclass(frozen=True)
class Point:
    """A network in the plot.

    Attributes:
      name: the name of the release.
      dataset: the data set, e.g. "cifar10".
      params: the number of parameters.
      macs: the multiply-adds for one image.
      top1: the test top-1 in percent.
      spread: the standard deviation over the seeds; 0 for one run.
      recipe: the training recipe; "" for the paper's own results.
    """

    name: str
    dataset: str
    params: int
    macs: int
    top1: float
    spread: float = 0.0
    recipe: str = ""

    @property
    def architecture(self) -> str:
        """The name of the network, without its options and data set."""
        return self.name.partition(".")[0]


def draw(releases: Mapping[str, Release], path: Path) -> None:
    """Draws test top-1 against parameters and multiply-adds, one row per data set.

    Markers of our networks are filled, with the spread over the seeds; the paper's are
    hollow, and those of the public zoo black.

    Args:
      releases: the releases by name.
      path: the image file to write.
    """
    from matplotlib.figure import Figure

    points = [*_papers(), *_ours(releases.values())]
    others = sorted({p.recipe for p in points} - {"", "paper"})
    markers = {"": PAPER, "paper": PAPER}
    markers |= dict(zip(others, itertools.cycle(OTHERS), strict=False))
    names = list(TITLES)
    figure = Figure(figsize=(9, 4.2 * len(names)), dpi=200, layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False, sharex="col", sharey="row")
    for row, name in zip(panels, names, strict=True):
        for axes, cost in zip(row, ("params", "macs"), strict=True):
            _panel(axes, [p for p in points if p.dataset == name], cost, markers)
            _public(axes, name, cost)
        row[0].set_ylabel(f"{TITLES[name]}: test top-1, %")
    panels[-1][0].set_xlabel("parameters")
    panels[-1][1].set_xlabel("multiply-adds for one image")
    _legend(figure, points, markers)
    figure.savefig(path)


def _papers() -> list[Point]:
    """Returns the paper's results, except those that its authors take back."""
    return [
        Point(name, f.dataset, f.params, f.macs, f.paper)
        for name, f in PUBLISHED.items()
        if name not in DOUBTFUL
    ]


def _ours(releases: Iterable[Release]) -> list[Point]:
    """Returns the points of the releases that are drawn."""
    return [
        Point(
            release.name,
            dataset(release),
            release.params,
            release.macs,
            100 * release.mean(),
            100 * (release.spread() or 0),
            release.recipe or "unnamed",
        )
        for release in releases
        if dataset(release) in TITLES and family(release.architecture) in COLORS
    ]


def _panel(
    axes: "Axes", points: Sequence[Point], cost: str, markers: Mapping[str, str]
) -> None:
    """Draws one data set against one cost, with one line per recipe and depth."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(_millions)
    axes.grid(color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)

    def line(point: Point) -> tuple[str, str, int]:
        return point.recipe, family(point.architecture), depth(point.architecture)

    ordered = sorted(points, key=lambda p: (line(p), getattr(p, cost)))
    for (recipe, kind, layers), group in itertools.groupby(ordered, line):
        some = list(group)
        color = COLORS[kind]
        axes.errorbar(
            [getattr(p, cost) for p in some],
            [p.top1 for p in some],
            [p.spread for p in some] if recipe else None,
            fmt=markers[recipe],
            linestyle="-" if recipe else "",
            linewidth=0.8,
            color=color,
            markerfacecolor=color if recipe else "white",
            markersize=SIZES.get(layers, 6.0),
            capsize=2,
            zorder=3 if recipe else 2,
        )


def _public(axes: "Axes", name: str, cost: str) -> None:
    """Draws the public zoo's networks."""
    for public in PUBLIC_ZOO:
        axes.plot(
            getattr(public, cost),
            public.top1[name],
            PUBLIC[public.name.partition("-")[0]],
            color="black",
            markeredgecolor="white",
            markeredgewidth=0.7,
            markersize=3 + SIZES.get(depth(public.name), 6.0),
            zorder=2.5,  # behind our own
        )


def _millions(value: float, _: float) -> str:
    return f"{value / 1e6:g} M"


def _legend(
    figure: "Figure", points: Sequence[Point], markers: Mapping[str, str]
) -> None:
    """Explains colors, markers and sizes above the panels."""
    from matplotlib.lines import Line2D

    def entry(label: str, **style: Any) -> Line2D:
        defaults: dict[str, Any] = {"marker": "o", "linestyle": "", "color": GREY}
        defaults["markersize"] = 6
        return Line2D([], [], label=label, **(defaults | style))

    hollow: dict[str, Any] = {"markerfacecolor": "white"}
    groups = [
        [
            entry(FAMILIES[kind], color=color, marker="", linestyle="-", linewidth=3)
            for kind, color in COLORS.items()
            if any(family(p.architecture) == kind for p in points)
        ],
        [
            entry("the paper's results", **hollow),
            *(
                entry(f"ours, recipe {r}", marker=markers[r])
                for r in sorted({p.recipe for p in points} - {""})
            ),
        ],
        [
            entry(f"{name}, chenyaofo", marker=marker, color="black", markersize=8)
            for name, marker in PUBLIC.items()
        ],
        [entry(f"{n} layers", markersize=size, **hollow) for n, size in SIZES.items()],
    ]
    height = max(map(len, groups))  # one column each
    entries = [
        group[i] if i < len(group) else entry(" ", marker="")
        for group in groups
        for i in range(height)
    ]
    figure.legend(
        handles=entries,
        loc="outside upper center",
        ncols=len(groups),
        frameon=False,
        fontsize=9,
    )
