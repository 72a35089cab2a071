"""The metrics of a run: `metrics.jsonl`, and its curves.

`metrics.jsonl` is authoritative. Each line is a strict JSON object with at least `step`
and `split`, and usually `epoch`, `loss`, `top1`, `learning_rate`, `images_per_second`
and `input_wait`. The first line after each start also has `compile_seconds`, a time
that no rate includes. A number that is not finite is written as null and read as NaN.
The curves, and what `train.logging.writers` write, hold the same numbers and can be
made again.
"""

import contextlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from shiftjax.errors import InputError, MissingFileError
from train import files
from train.logging import metric_names, writers
from train.logging.writers import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Value = Any  # a number of Python, NumPy or JAX, or a string

METRICS_FILE = "metrics.jsonl"

# The colors of Okabe and Ito, which color-blind readers can distinguish.
_COLORS = {"train": "#0072B2", "validation": "#D55E00", "test": "#009E73"}
_OTHER_COLORS = ["#000000", "#CC79A7", "#E69F00", "#56B4E9"]


class MetricsWriter:
    """Writes the metrics of a run, line by line, and passes them to other writers.

    Each line reaches the operating system at once: a killed process loses at most the
    line that it was writing. In an object store it may lose those since `flush`, see
    `train.files.Lines`.

    A run that resumes at step S keeps the lines up to S and drops later ones, which it
    will write again, so that the file has each line once. For this, write and flush the
    lines of a step before its checkpoint.

    Args:
      workdir: the directory of the run, which is created if needed.
      resume_step: the step at which the run resumes; None for a new run.
      keep_test: False to drop a test too: that of a run that had fewer epochs before,
        or one that is not whole.
      log_to: names of other writers, of the table `train.logging.writers.WRITERS`.

    Raises:
      InputError: if the files cannot be written, or another writer cannot start.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as workdir:
      ...     with MetricsWriter(workdir, resume_step=None) as writer:
      ...         writer.write({"step": 10, "split": "train", "loss": 2.5})
      ...     with MetricsWriter(workdir, resume_step=10) as writer:
      ...         writer.write({"step": 20, "split": "train", "loss": 2.25})
      ...     [line["loss"] for line in read_metrics(workdir)]
      [2.5, 2.25]
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        resume_step: int | None,
        keep_test: bool = True,
        log_to: Sequence[str] = ("tensorboard",),
    ) -> None:
        self._path = files.folder(workdir) / METRICS_FILE
        last = -1 if resume_step is None else resume_step
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            kept = [
                (text, record)
                for text, record in _until(self._path, last)
                if keep_test or not record["split"].startswith("test")
            ]
            opened = writers.open_writers(
                log_to, self._path.parent, [record for _, record in kept], last
            )
            with contextlib.ExitStack() as stack:
                self._lines = files.Lines(self._path, [text for text, _ in kept])
                stack.callback(self._lines.close)
                self._others = []
                for writer in opened:
                    stack.callback(writer.close)
                    self._others.append(writer)
                self._open = stack.pop_all()
        except OSError as error:
            raise self._explained(error) from error

    def write(self, record: Mapping[str, Value]) -> None:
        """Appends a line, and passes it to the other writers.

        Args:
          record: numbers and strings by name, including `step` and `split`.

        Raises:
          InputError: if the line cannot be written.
        """
        line = {name: _plain(value) for name, value in record.items()}
        try:
            self._lines.add(json.dumps(line, allow_nan=False))
            for writer in self._others:
                writer.write(_with_nan(line))
        except OSError as error:
            raise self._explained(error) from error

    def flush(self) -> None:
        """Writes the lines that are still in memory, in an object store.

        Raises:
          InputError: if they cannot be written.
        """
        try:
            self._lines.flush()
        except OSError as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Closes the files."""
        try:
            self._open.close()
        except OSError as error:
            raise self._explained(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _explained(self, error: OSError) -> InputError:
        """Converts an error of the file system."""
        return InputError(f"cannot write {self._path}: {error.strerror or error}")


def read_metrics(workdir: str | os.PathLike[str]) -> list[Record]:
    """Reads the metrics of a run, which may still be running.

    Args:
      workdir: the directory of the run.

    Returns:
      The lines, oldest first. A line that is not a JSON object with a step and a split
      is skipped with a warning, an incomplete last line without.

    Raises:
      MissingFileError: if the run has no metrics.
      InputError: if they cannot be read.
    """
    path = files.folder(workdir) / METRICS_FILE
    try:
        return [record for _, record in _lines(path)]
    except FileNotFoundError as error:
        raise MissingFileError(f"no {METRICS_FILE} in {workdir}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def read_test(workdir: str | os.PathLike[str]) -> Record | None:
    """Reads the test's line of a run.

    Args:
      workdir: the directory of the run.

    Returns:
      The line, or None if the run is not finished.

    Raises:
      InputError: if the metrics cannot be read.
    """
    if not (files.folder(workdir) / METRICS_FILE).exists():
        return None
    tests = [line for line in read_metrics(workdir) if line["split"] == "test"]
    return tests[-1] if tests else None


def plot_curves(
    workdir: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    metric: str = "top1",
    title: str | None = None,
) -> None:
    """Plots the loss, another metric and the learning rate against the epoch.

    Args:
      workdir: the directory of the run.
      path: the file of the plot; its suffix selects the format.
      metric: the name of the other metric.
      title: the title; None for the name of the directory.

    Raises:
      MissingFileError: if the run has no metrics.
      InputError: if there is nothing to plot, or the plot cannot be written.
    """
    # A `Figure` without pyplot does not change the global state of matplotlib.
    from matplotlib.figure import Figure

    lines = [line for line in read_metrics(workdir) if "epoch" in line]
    if not any(name in line for line in lines for name in ("loss", metric)):
        names = " or ".join(dict.fromkeys(("loss", metric)))
        raise InputError(
            f"{files.folder(workdir) / METRICS_FILE} has no {names} to draw"
        )
    figure = Figure(figsize=(7.2, 7.2), dpi=150, layout="constrained")
    name = Path(workdir).resolve().name  # also the last word of a store's path
    figure.suptitle(title or name, weight="bold")
    panels = figure.subplots(3, 1, sharex=True, height_ratios=[4, 4, 1.2])
    _draw(panels[0], lines, "loss", "loss", "{:.3f}")
    share = metric in metric_names.SHARES
    template = "{:.1%}" if share else "{:.3g}"
    _draw(panels[1], lines, metric, metric_names.title(metric), template)
    if share:
        panels[1].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    rates = [line | {"split": ""} for line in lines]
    _draw(panels[2], rates, "learning_rate", "learning rate", "{:.2g}")
    last = max(line["epoch"] for line in lines)
    panels[2].set(xlabel="epoch", ylim=(0, None), xlim=(0, last) if last > 0 else None)
    try:
        drawn = io.BytesIO()
        figure.savefig(drawn, format=Path(path).suffix[1:] or None)
        files.write(files.folder(path), drawn.getvalue())
    except (OSError, ValueError) as error:  # ValueError: the suffix is unknown
        raise InputError(f"cannot write the plot {path}: {error}") from error


def _plain(value: Value) -> Value:
    """Converts a value to one of JSON; a number that is not finite becomes None."""
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def _with_nan(line: Mapping[str, Value]) -> Record:
    """Returns a line as it is read: with NaN for None."""
    return {name: math.nan if x is None else x for name, x in line.items()}


def _lines(path: files.Folder) -> Iterator[tuple[str, Record]]:
    """Reads each line as text and as record; see `train.files.json_lines`."""
    for text, record in files.json_lines(path, "split"):
        yield text, _with_nan(record)


def _until(path: files.Folder, step: int) -> list[tuple[str, Record]]:
    """Reads the lines, as text and as record, without those of later steps."""
    if not path.exists():
        return []
    return [line for line in _lines(path) if line[1]["step"] <= step]


def _draw(
    axes: "Axes", lines: list[Record], name: str, title: str, template: str
) -> None:
    """Draws one metric against the epoch: a curve and its last value for each split."""
    others = iter(_OTHER_COLORS)
    lines = [line for line in lines if name in line]
    ends: list[tuple[float, str, str]] = []
    for split in dict.fromkeys(line["split"] for line in lines):
        curve = [line for line in lines if line["split"] == split]
        epochs, values = [x["epoch"] for x in curve], [x[name] for x in curve]
        color = _COLORS.get(split) or next(others)
        marker = "o" if len(curve) == 1 else None
        axes.plot(epochs, values, color=color, marker=marker, lw=1.3, clip_on=False)
        if split and math.isfinite(values[-1]):
            ends.append((values[-1], f"{split} {template.format(values[-1])}", color))
    low, high = axes.get_ylim()
    height = -math.inf
    for value, text, color in sorted(ends):  # beside the curve, above the last text
        height = max((value - low) / (high - low), height + 0.07)
        place = {"va": "center", "transform": axes.transAxes}
        axes.text(1.02, height, text, color=color, **place)
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
