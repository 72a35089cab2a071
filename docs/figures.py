"""Draws the figures of the documentation: `python docs/figures.py`."""

import io
import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image

import shiftjax
from shiftjax import list_models
from shiftjax.apps.analysis import agreement, analyze
from shiftjax.apps.heatmaps import draw_heatmaps
from shiftjax.apps.stylize import Stylizer
from shiftjax.apps.thumbnails import decode_thumbnail
from shiftjax.weights import open_pretrained
from train.data.sources import load_source
from train.logging.records import read_metrics

FOLDER = Path(__file__).parent
SIZE = 5
FRAME = "#999999"
IMAGENETTE = {
    "shiftnet_c": "ShiftNet-C",
    "shiftresnet50": "ShiftResNet-50",
    "resnet50": "ResNet-50",
}
COLORS = ("#56b4e9", "#0072b2", "#d55e00")


def letter() -> np.ndarray:
    """Returns a small image of an arrow, 0 or 1, which shows where it was moved."""
    rows = ("..#..", ".###.", "#####", "..#..", "..#..")
    return np.array([[c == "#" for c in row] for row in rows], np.float32)


def draw_grid(axes: Axes, picture: np.ndarray, title: str) -> None:
    """Draws one channel."""
    axes.imshow(picture, cmap="Blues", vmin=0, vmax=1.4)
    axes.set_xticks(np.arange(SIZE + 1) - 0.5, labels=[])
    axes.set_yticks(np.arange(SIZE + 1) - 0.5, labels=[])
    axes.grid(color=FRAME, linewidth=0.5)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=10, pad=4)


def shift_figure() -> Figure:
    """Draws one channel before a shift with K = 3, and nine after it."""
    figure = Figure(figsize=(7.2, 4.1), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.5))
    draw_grid(left.subplots(), letter(), "one channel before")
    moved = shiftjax.shift(np.repeat(letter()[:, :, None], 9, 2), 3)
    grid = right.subplots(3, 3)
    for channel, (dy, dx) in enumerate(shiftjax.displacements(9, 3)):
        draw_grid(
            grid[dy + 1, dx + 1],
            np.asarray(moved[:, :, channel]),
            f"({dy:+d}, {dx:+d})".replace("+0", "0").replace("-", "\N{MINUS SIGN}"),
        )
    right.suptitle(
        "nine channels after, at their (dy, dx):\n"
        "out[y, x] = in[y + dy, x + dx],\n"
        "so the arrow moves by (\N{MINUS SIGN}dy, \N{MINUS SIGN}dx)",
        fontsize=11,
    )
    return figure


def draw_displacements(path: Path) -> None:
    """Draws what each displacement contributes to a network of digits."""
    pretrained = open_pretrained("shiftresnet20_e3.digits")
    test = load_source("digits", "test", image_size=pretrained.card.image_size)
    images, _ = test.batch(np.arange(len(test)))
    kept = agreement(pretrained, images)
    draw_heatmaps(analyze(pretrained, images), kept, str(path))


def draw_styles(path: Path) -> None:
    """Draws a photograph and, with each painting, its version by the released style."""
    photo = load_sample_image("china.jpg")
    names = list_models("shift_stylizer.*", pretrained=True)
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    first, *others = figure.subplots(2, math.ceil((len(names) + 1) / 2)).flat
    first.imshow(photo)
    first.set_title("photograph: danielbuechele, CC BY 2.0", fontsize=10)
    first.set_axis_off()
    for axes in others:
        axes.set_axis_off()
    for axes, name in zip(others, names, strict=False):
        pretrained = open_pretrained(name)
        axes.imshow(Stylizer(pretrained)(photo))
        axes.set_title(f"{name}\n{pretrained.card.painting_source}", fontsize=10)
        inset = axes.inset_axes((0.0, 0.0, 0.28, 0.42))
        inset.imshow(decode_thumbnail(pretrained.card.painting))
        inset.set_anchor("SW")
        inset.set_axis_off()
    image = io.BytesIO()
    figure.savefig(image, dpi=110)
    Image.open(image).convert("RGB").save(path, quality=88)


def draw_imagenette(path: Path) -> None:
    """Draws the training loss and the validation accuracy of the runs."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, title), color in zip(IMAGENETTE.items(), COLORS, strict=True):
        lines = read_metrics(FOLDER / "imagenette" / name)
        for axes, split, metric, scale in (
            (left, "train", "loss", 1),
            (right, "validation", "top1", 100),
        ):
            of_split = [line for line in lines if line["split"] == split]
            # A run ends a step after its last whole epoch, with a line of that step.
            by_epoch = {round(line["epoch"]): line for line in reversed(of_split)}
            values = [scale * line[metric] for line in by_epoch.values()]
            axes.plot(list(by_epoch), values, color=color, label=title)
    left.set(xlabel="epoch", ylabel="training loss", xlim=(0, None))
    right.set(xlabel="epoch", ylabel="validation top-1, %", xlim=(0, None))
    left.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    shift_figure().savefig(FOLDER / "shift.png", dpi=140)
    draw_displacements(FOLDER / "displacements.png")
    draw_styles(FOLDER / "styles.jpg")
    draw_imagenette(FOLDER / "imagenette.png")
