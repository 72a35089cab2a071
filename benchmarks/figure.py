"""Draws docs/speed.png from the results, with a row of panels per platform."""

import re
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.report import (
    DEPTH,
    PLATFORMS,
    Report,
    Result,
    load_report,
    machine_name,
)
from benchmarks.turns import ratio

SHIFT, RESNET, DEPTHWISE, FRAME = "#1f6fb4", "#333333", "#c8641e", "#999999"
GRID = "#eeeeee"
SHADES = {3: "#8fc1e8", 5: "#3d8fd1", 7: "#134a7c"}  # by kernel size

# Rows of the training tables: label, color, and True for shiftjax (a filled marker).
SERIES = {
    "shiftjax": ("shift", SHIFT, True),
    "the same in PyTorch": ("shift", SHIFT, False),
    f"ResNet-{DEPTH}": (f"ResNet-{DEPTH}", RESNET, True),
    f"ResNet-{DEPTH} in PyTorch": (f"ResNet-{DEPTH}", RESNET, False),
    f"depthwise ResNet-{DEPTH}": ("depthwise", DEPTHWISE, True),
    f"depthwise ResNet-{DEPTH} in PyTorch": ("depthwise", DEPTHWISE, False),
}


def draw_speed_figure(folder: Path, path: Path) -> bool:
    """Draws the results of training and of the operation.

    Args:
      folder: folder of the results.
      path: path of the figure.

    Returns:
      True if there was anything to draw.
    """
    found = [
        (
            load_report(folder, "training", platform),
            load_report(folder, "shift", platform),
        )
        for platform in PLATFORMS
    ]
    found = [pair for pair in found if pair != (None, None)]
    if not found:
        return False
    figure = Figure(figsize=(10.4, 4.6 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), 2, squeeze=False, width_ratios=(1.1, 1))
    for (left, right), (training, shift) in zip(panels, found, strict=True):
        for axes, report in ((left, training), (right, shift)):
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color(FRAME)
            axes.tick_params(color=FRAME, which="both", labelsize=9)
            axes.set_visible(report is not None)
        if training is not None:
            draw_training(left, training)
        if shift is not None:
            draw_operation(right, shift)
    figure.savefig(path, dpi=150)
    return True


def draw_training(axes: Axes, report: Report) -> None:
    """Draws the time of a step against the size of the network."""
    tables = report.find(depth=DEPTH)
    tables = [t for t in tables if t.facts["dtype"] == tables[0].facts["dtype"]]
    unit = next(
        name
        for name in (f"ResNet-{DEPTH} in PyTorch", f"ResNet-{DEPTH}", "shiftjax")
        if all(table.row(name) for table in tables)
    )
    for name, (label, color, ours) in SERIES.items():
        points = sorted(
            (row.facts["params"] / 1e3, ratio(row, base).median, t.facts["expansion"])
            for t in tables
            if (row := t.row(name)) and (base := t.row(unit))
        )
        if not points:
            continue
        if label == f"ResNet-{DEPTH}":  # the same in every table
            middle = sorted(time for _, time, _ in points)[len(points) // 2]
            points = [(points[0][0], middle, 0)]
        axes.plot(
            [size for size, _, _ in points],
            [time for _, time, _ in points],
            color=color,
            marker="o",
            markersize=7,
            linewidth=1.5,
            linestyle="-" if ours else (0, (4, 2)),
            markerfacecolor=color if ours else "white",
            zorder=3,
        )
        if name == "shiftjax":
            for x, y, expansion in points:
                axes.annotate(
                    f"E = {expansion}",
                    (x, y),
                    (7, -11),
                    textcoords="offset points",
                    fontsize=9,
                    color=color,
                )
    logarithmic(axes, "y")
    axes.set_ylim(bottom=axes.get_ylim()[0] / 1.25)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.1)  # for the last label
    axes.set_xlabel("parameters, thousands")
    kinds = {label: color for label, color, _ in SERIES.values()}
    handles = [Line2D([], [], color=color, linewidth=3) for color in kinds.values()]
    handles += [
        Line2D([], [], color=FRAME, marker="o", markersize=7),
        Line2D(
            [],
            [],
            color=FRAME,
            marker="o",
            markersize=7,
            markerfacecolor="white",
            linestyle=(0, (4, 2)),
        ),
    ]
    labels = [*kinds, "shiftjax", "PyTorch"]
    finish(
        axes, report, f"Time of a training step, relative to {unit}", handles, labels
    )


def draw_operation(axes: Axes, report: Report) -> None:
    """Draws the time of each lowering relative to a memory copy."""
    first = {name: report.tables[0].facts[name] for name in ("shape", "dtype")}
    lanes: dict[str, list[tuple[int | None, bool, float]]] = {}
    for passes in ("forward", "forward + backward"):
        for table in report.find(**first, passes=passes):
            for name, compared in table.ratios().items():
                label, kernel_size = lane(name)
                if name != table.base:
                    point = kernel_size, passes == "forward", compared.median
                    lanes.setdefault(label, []).append(point)
    order = sorted(lanes, key=lambda label: rank(label, lanes[label]))
    for y, label in enumerate(order):
        axes.axhline(y, color=GRID, linewidth=1, zorder=0)
        if y and rank(label, [])[0] != rank(order[y - 1], [])[0]:
            axes.axhline(y - 0.5, color=FRAME, linewidth=0.8)
        for kernel_size, forward, time in lanes[label]:
            color = SHADES.get(kernel_size or 0, RESNET)
            axes.plot(
                time,
                y + (-0.17 if forward else 0.17),
                marker="o",
                markersize=7,
                color=color,
                markerfacecolor=color if forward else "white",
                markeredgewidth=1.6,
            )
    axes.axvline(1, color=FRAME, linewidth=1)
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(len(order) - 0.5, -0.6)
    axes.tick_params(axis="y", length=0)
    logarithmic(axes, "x")
    axes.set_xlabel(operation_label(report.find(**first)))
    dot = {"linestyle": "", "marker": "o", "markersize": 7}
    handles = [Line2D([], [], color=color, **dot) for color in SHADES.values()]
    handles += [
        Line2D([], [], color=FRAME, **dot),
        Line2D([], [], color=FRAME, markerfacecolor="white", **dot),
    ]
    labels = [*(f"K = {size}" for size in SHADES), "forward", "forward + backward"]
    title = "Time of the operation, relative to a memory copy"
    finish(axes, report, title, handles, labels)


def rank(label: str, points: list[tuple[int | None, bool, float]]) -> tuple[int, float]:
    """Returns the key that sorts lines by library and kind, the fastest first."""
    group = 2 if "PyTorch" in label else int("3x3" in label)
    return group, min((time for _, _, time in points), default=0.0)


def lane(name: str) -> tuple[str, int | None]:
    """Returns the line of a row, and its kernel size.

    Example:
      >>> lane("K = 3, select (default)"), lane("dense 3x3 convolution")
      (('select (default)', 3), ('dense 3x3', None))
    """
    found = re.fullmatch(r"K = (\d+), (.*)", name)
    if found is None:
        return name.replace(" convolution", ""), None
    label = re.sub("^(depthwise|one-hot)", "one-hot depthwise", found[2])
    return label, int(found[1])


def operation_label(tables: list[Result]) -> str:
    """Returns the shape and the dtype of the operation."""
    shape = " x ".join(map(str, tables[0].facts["shape"]))
    return f"{shape}, {tables[0].facts['dtype']}"


def logarithmic(axes: Axes, which: str) -> None:
    """Makes an axis logarithmic, with plain numbers at 1, 2 and 5."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axes.grid(axis=which, color=GRID, linewidth=1, zorder=0)  # pyright: ignore


def finish(
    axes: Axes, report: Report, title: str, handles: list[Line2D], labels: list[str]
) -> None:
    """Adds title and legend above a panel, and the machine below it."""
    axes.set_title(title, loc="left", fontsize=11, pad=24)
    legend = axes.legend(
        handles,
        labels,
        ncols=len(labels),
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0.2,
        borderpad=0.2,
        columnspacing=1.1,
        handlelength=1.2,
        handletextpad=0.4,
        fontsize=9,
        frameon=False,
    )
    legend.set_in_layout(False)  # it may reach over the labels of the axis
    axes.annotate(
        machine_name(report),
        (1, 0),
        (0, -32),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color=FRAME,
    )
