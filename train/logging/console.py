"""The display of a run: a progress bar, or lines of text without a terminal."""

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from train.logging import metric_names

PLAIN_SECONDS = 10.0  # between two lines
SLOW = 2.0  # images per second below which the time of an image is shown instead


class Reporter:
    """Displays the progress of a run.

    Args:
      total: number of steps of the run.
      done: number of completed steps.
      console: the console to write to; by default standard output.

    Example:
      >>> with Reporter(total=10, done=0, console=Console(force_terminal=False)) as r:
      ...     r.advance(10, {"loss": 0.25, "top1": 0.5, "images_per_second": 100})
      step 10/10  loss 0.250  top-1 50.0%  100 images/s
    """

    def __init__(self, total: int, done: int, console: Console | None = None) -> None:
        self.console = console or Console(soft_wrap=True)
        self.total = total
        self._last_line = -float("inf")
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("compiling", total=total, completed=done)

    def __enter__(self) -> "Reporter":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, step: int, record: Mapping[str, float]) -> None:
        """Displays the step, and a line of training metrics."""
        text = describe_metrics(record)
        self._bar.update(self._task, completed=step, description=text)
        now = time.monotonic()
        late = now - self._last_line >= PLAIN_SECONDS or step == self.total
        if not self.console.is_terminal and late:
            self._last_line = now
            self.message(f"step {step}/{self.total}  {text}")

    def message(self, text: str) -> None:
        """Prints a permanent line."""
        self.console.print(text, highlight=False, markup=False)


def describe_metrics(record: Mapping[str, float]) -> str:
    """Returns the metrics of a record as text.

    Example:
      >>> describe_metrics({"loss": 1.5, "top1": 0.25})
      'loss 1.500  top-1 25.0%'
    """
    names = metric_names.displayed(record)
    parts = [
        f"{metric_names.title(n)} {metric_names.text(n, record[n])}" for n in names
    ]
    if "images_per_second" in record:
        parts.append(describe_rate(record["images_per_second"]))
    return "  ".join(parts)


def describe_rate(rate: float) -> str:
    """Returns a rate in images per second as text; a low one as its inverse.

    Example:
      >>> describe_rate(1234.5), describe_rate(0.125)
      ('1,234 images/s', '8.0 s/image')
    """
    if 0 < rate < SLOW:
        return f"{1 / rate:.1f} s/image"
    return f"{rate:,.0f} images/s"
