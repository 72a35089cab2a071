"""Timing on a GPU: cases in turns in one process, and the tables of what they took."""

import dataclasses
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

MOST_CALLS = 1000  # of a turn

Run = Callable[[], Any]
Cases = dict[str, Callable[[], Run]]
Measured = dict[str, tuple[list[float], float]]


@dataclasses.dataclass(frozen=True)
class Row:
    """The measurement of one case.

    Attributes:
      name: of the case.
      seconds: median of its turns.
      low: the fastest turn.
      high: the slowest turn.
      over: its time over that of the floor or of the base case.
      first: seconds to build it.
    """

    name: str
    seconds: float
    low: float
    high: float
    over: float
    first: float


def time_calls(run: Run, seconds: float, wait: Callable[[Any], Any]) -> float:
    """Returns the seconds of a call, of as many in a row as take so long."""
    wait(run())
    count = 1
    while True:
        start, out = time.perf_counter(), None
        for _ in range(count):
            out = run()
        wait(out)
        spent = time.perf_counter() - start
        if spent >= seconds or count >= MOST_CALLS:
            return spent / count
        needed = int(count * seconds / spent) + 1
        count = min(MOST_CALLS, max(2 * count, needed))


def in_turns(
    cases: Cases, per_call: dict[str, int], options: Any, deadline: float, say: Any
) -> Measured:
    """Times cases in turns.

    Args:
      cases: what builds each.
      per_call: how many of what is measured a call does.
      options: of the command.
      deadline: when to build no more cases.
      say: told what failed, and what was left out.

    Returns:
      The seconds of each turn, and those of building it, by case.
    """
    built: dict[str, tuple[Run, float]] = {}
    for name, build in cases.items():
        start = time.perf_counter()
        if start > deadline:
            say(f"left out, for time: {name}")
            continue
        try:
            run = build()
            wait_for(name)(run())
        except Exception as error:  # one form that fails must not end the others
            say(f"failed: {name}: {type(error).__name__}: {str(error)[:300]}")
            if options.traceback:
                traceback.print_exc()
            continue
        built[name] = run, time.perf_counter() - start
    turns: dict[str, list[float]] = {name: [] for name in built}
    for _ in range(options.rounds):
        for name, (run, _) in built.items():
            spent = time_calls(run, options.seconds, wait_for(name))
            turns[name].append(spent / per_call.get(name, 1))
    return {name: (turns[name], first) for name, (_, first) in built.items()}


def wait_for(name: str) -> Callable[[Any], Any]:
    """Returns what waits for a case: one of PyTorch's, or ours."""
    if name.startswith("PyTorch"):
        from benchmarks import gpu_torch

        return lambda _: gpu_torch.wait()
    return jax.block_until_ready


class Report:
    """The tables so far, on the console and in the file."""

    def __init__(self, options: Any) -> None:
        self.options, self.console = options, Console(width=100)
        self.start = time.perf_counter()
        command = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
        device = jax.devices()[0]
        self.data: dict[str, Any] = {
            "command": command,
            "device": device.device_kind,
            "jax": jax.__version__,
            "bandwidth": None,
            "tables": [],
        }

    def say(self, text: str) -> None:
        """Says, and keeps, what is no number."""
        self.console.print(f"[{time.perf_counter() - self.start:4.0f} s] {text}")
        self.data.setdefault("notes", []).append(text)

    def add(
        self,
        title: str,
        measured: Measured,
        unit: float | str,
        unit_name: str,
    ) -> None:
        """Adds a table.

        Args:
          title: of it.
          measured: what `in_turns` returns.
          unit: seconds, or the case, that others are compared with.
          unit_name: what to call that.
        """
        if not measured:
            return
        if isinstance(unit, str):
            base = statistics.median(measured[unit][0]) if unit in measured else 1.0
        else:
            base = unit
        rows = [
            Row(
                name,
                statistics.median(turns),
                min(turns),
                max(turns),
                statistics.median(turns) / base,
                first,
            )
            for name, (turns, first) in measured.items()
        ]
        table = Table(title=title)
        table.add_column("case")
        for heading in ("us", "fastest", "slowest", f"over {unit_name}", "build, s"):
            table.add_column(heading, justify="right")
        for row in rows:
            times = (f"{1e6 * t:.1f}" for t in (row.seconds, row.low, row.high))
            table.add_row(row.name, *times, f"{row.over:.2f}", f"{row.first:.1f}")
        self.console.print(table)
        self.data["tables"].append(
            {
                "title": title,
                "over": unit_name,
                "unit_seconds": base,
                "rows": [dataclasses.asdict(row) for row in rows],
            }
        )
        self.options.out.write_text(json.dumps(self.data, indent=1) + "\n")
