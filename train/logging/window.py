"""The sums and the time of the steps since the last line of metrics.

Steps are dispatched before earlier ones have ended. Therefore the clock of a window
runs from the dispatch of its first step, or from the end of the previous window if that
is later, to the end of its last step. Windows follow each other without a gap, and
their times add up to the time of training, without compilation and pauses.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax


class Instant(NamedTuple):
    """A point in a run.

    Attributes:
      seconds: the time of the clock.
      waited: the seconds spent waiting for input until then.
    """

    seconds: float
    waited: float


@dataclasses.dataclass
class Dispatch:
    """Steps that were dispatched to the devices.

    Attributes:
      step: number of completed steps when they have ended.
      sums: their results.
      end: the first time at which they were seen to have ended, or None.
    """

    step: int
    sums: Any
    end: Instant | None = None

    def note(self, now: Instant) -> None:
        """Records the end if it has come: some backends compute within the dispatch."""
        if self.end is None and all(x.is_ready() for x in jax.tree.leaves(self.sums)):
            self.end = now


class Window:
    """Sums and time since the last line of metrics.

    Args:
      sums: sums of earlier steps by an interrupted process; none by default.
      began: the end of the previous window; by default the clock is stopped.

    Attributes:
      sums: sums of the steps so far, by name.

    Example:
      >>> window = Window()
      >>> window.start(Instant(10.0, 0.0))
      >>> window.add({"loss": 6.0, "examples": 4}, end=Instant(12.0, 0.5))
      >>> window.means()
      {'loss': 1.5, 'images_per_second': 2.0, 'input_wait': 0.25}
    """

    def __init__(
        self, sums: Mapping[str, float] | None = None, began: Instant | None = None
    ) -> None:
        self.sums = dict(sums or {})
        self._before = self.sums.get("examples", 0.0)
        self._began = self._end = began
        self._seconds = self._waited = 0.0

    def start(self, now: Instant) -> None:
        """Starts the clock before a dispatch, unless it is running."""
        self._began = self._began or now

    def add(self, sums: Mapping[str, Any], end: Instant) -> None:
        """Adds the sums of a dispatch, and the time of its end."""
        self._end = end
        for name in sums.keys() - {"bad_step"}:
            self.sums[name] = self.sums.get(name, 0.0) + float(sums[name])

    def stop(self) -> None:
        """Stops the clock at the end of the last step, for a pause."""
        self._seconds, self._waited = self._spent()
        self._began = self._end = None

    def means(self) -> dict[str, float]:
        """Returns the means over the examples, and the rates."""
        examples = self.sums["examples"]
        seconds, waited = self._spent()
        names = ["loss", *sorted(self.sums.keys() - {"loss", "examples"})]
        return {
            **{name: self.sums[name] / examples for name in names},
            "images_per_second": (examples - self._before) / seconds,
            "input_wait": waited / seconds,
        }

    def next(self) -> "Window":
        """Returns an empty window that begins at the end of this one."""
        return Window(began=self._end)

    def _spent(self) -> tuple[float, float]:
        """Returns the seconds up to the last step, and those spent waiting."""
        seconds, waited = self._seconds, self._waited
        if self._began is not None and self._end is not None:
            seconds += self._end.seconds - self._began.seconds
            waited += self._end.waited - self._began.waited
        return seconds, waited
