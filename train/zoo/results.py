"""Our results beside the paper's: a page, a table for the README, and a picture."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shiftjax.manifest import Release
from train.markdown import grid
from train.zoo.published import PUBLISHED, find

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKED = re.compile(r"(<!-- results: .*? -->\n).*?(<!-- end of results -->)", re.DOTALL)
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
INTRODUCTION = """# Results

Test top-1 in percent, of the last epoch; the test set was read once a run, and nothing
was chosen on it. Mean and standard deviation over the runs, which differ in their seeds
alone; the weights are those of the lowest seed. The paper's figures, and those of its
authors' later runs, are of one run each, at its best epoch on the test set. Made by
`python -m train results` from `checkpoints/manifest.json`.

![Test top-1 against parameters and multiply-adds](accuracy.png)"""
WORDS = ("weights", "recipe", "hardware", "command", "log")
# Label and colour of each, Okabe and Ito's, which the colour-blind tell apart.
FAMILIES = {
    "shiftresnet": ("ShiftResNet", "#0072B2"),
    "resnet": ("ResNet", "#D55E00"),
    "depthwise_resnet": ("depthwise ResNet", "#009E73"),
}


def dataset(release: Release) -> str:
    """Returns what a release was trained on, e.g. "cifar10"."""
    return release.dataset.partition(":")[2] or release.dataset


def family(architecture: str) -> str:
    """Returns the name without its size.

    Example:
      >>> family("shiftresnet20_e3")
      'shiftresnet'
    """
    return re.split(r"\d", architecture, maxsplit=1)[0]


def top1(release: Release) -> str:
    """Returns mean and spread of the test top-1 in percent.

    Example:
      >>> from shiftjax.manifest import Run
      >>> runs = (Run(0, {"top1": 0.9}), Run(1, {"top1": 0.91}))
      >>> top1(Release("a.b", "f", 1, "", 1, 1, "d", "", runs))
      '90.50 ± 0.71'
    """
    spread = release.spread()
    after = "" if spread is None else f" ± {100 * spread:.2f}"
    return f"{100 * release.mean():.2f}{after}"


def short_table(releases: Mapping[str, Release]) -> str:
    """Returns the README's table: a line for each release."""
    heading = ["weights", "parameters", "multiply-adds", "test top-1", "runs", "paper"]
    rows = []
    for release in _sorted(releases):
        published = find(release.name, release.recipe)
        rows.append(
            [
                f"`{release.name}`",
                f"{release.params:,}",
                f"{release.macs / 1e6:.1f} M",
                top1(release),
                str(len(release.runs)),
                f"{published.paper:.2f}" if published else "",
            ]
        )
    return grid(heading, rows, WORDS)


def page(releases: Mapping[str, Release]) -> str:
    """Returns docs/results.md."""
    lines = [INTRODUCTION]
    names = dict.fromkeys(dataset(release) for release in _sorted(releases))
    for name in names:
        some = [r for r in _sorted(releases) if dataset(r) == name]
        lines += ["", f"## {TITLES.get(name, name)}", "", _accuracies(some)]
    lines += ["", "## How they were trained", "", _origins(_sorted(releases))]
    return "\n".join(lines) + "\n"


def update(readme: str, releases: Mapping[str, Release]) -> str:
    """Returns the README with the table between its markers made anew."""
    table = short_table(releases)
    return MARKED.sub(lambda m: f"{m[1]}\n{table}\n\n{m[2]}", readme)


def draw(releases: Mapping[str, Release], path: Path) -> None:
    """Draws test top-1 against parameters and multiply-adds, a row a data set.

    Ours filled, with the spread; the paper's hollow.
    """
    from matplotlib.figure import Figure

    names = list(TITLES)
    figure = Figure(figsize=(10.4, 4.4 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False, sharey="row")
    for row, name in zip(panels, names, strict=True):
        some = [r for r in releases.values() if dataset(r) == name]
        for axes, count in zip(row, ("params", "macs"), strict=True):
            _panel(axes, some, name, count)
        row[0].set_ylabel(f"{TITLES[name]}, test top-1, %")
    panels[-1][0].set_xlabel("parameters")
    panels[-1][1].set_xlabel("multiply-adds for one image")
    panels[0][0].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)


def _panel(axes: "Axes", releases: list[Release], name: str, count: str) -> None:
    """Draws one data set against one cost."""
    axes.set_xscale("log")
    axes.grid(color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
    for kind, (label, colour) in FAMILIES.items():
        paper = [
            (getattr(figures, count), figures.paper)
            for model, figures in PUBLISHED.items()
            if figures.dataset == name and family(model) == kind
        ]
        if paper:
            axes.plot(*zip(*sorted(paper), strict=True), "o", mfc="none", color=colour)
            axes.plot([], [], "o", mfc="none", color=colour, label=f"{label}, paper")
        ours = [
            (getattr(r, count), 100 * r.mean(), 100 * (r.spread() or 0))
            for r in releases
            if family(r.architecture) == kind
        ]
        if ours:
            x, y, spread = zip(*sorted(ours), strict=True)
            axes.errorbar(
                x, y, spread, fmt="o", color=colour, label=f"{label}, this package"
            )


def _accuracies(releases: Sequence[Release]) -> str:
    """The table of one data set."""
    top5 = any("top5" in release.runs[0].test for release in releases)
    heading = ["weights", "parameters", "multiply-adds", "recipe", "test top-1"]
    heading += ["top-5"] * top5 + ["paper", "authors' later run"]
    rows = []
    for release in releases:
        published = find(release.name, release.recipe)
        later = published.later if published else None
        row = [
            f"`{release.name}`",
            f"{release.params:,}",
            f"{release.macs:,}",
            release.recipe,
            top1(release),
        ]
        if top5:
            row.append(f"{100 * release.mean('top5'):.2f}")
        row += [f"{published.paper:.2f}" if published else ""]
        rows.append([*row, "" if later is None else f"{later:.2f}"])
    return grid(heading, rows, WORDS)


def _origins(releases: Iterable[Release]) -> str:
    """The table of all runs: what made them, on what, and their records."""
    heading = ["weights", "seed", "test top-1", "hours", "hardware", "command", "log"]
    rows = [
        [
            f"`{release.name}`",
            str(run.seed),
            f"{100 * run.test['top1']:.2f}",
            f"{run.hours:.2f}",
            run.hardware,
            f"`{run.command}`",
            f"[log](../checkpoints/{run.log})",
        ]
        for release in releases
        for run in release.runs
    ]
    return grid(heading, rows, WORDS)


def _sorted(releases: Mapping[str, Release]) -> list[Release]:
    """The classifiers, by data set, family and size."""
    return sorted(
        (r for r in releases.values() if "top1" in r.runs[0].test),
        key=lambda r: (r.dataset, family(r.architecture), r.params, r.name),
    )
