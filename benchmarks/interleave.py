"""Timing that a noisy machine cannot bias: cases in turns, ratios within a round.

Each case lives in a process of its own, all with the same allocator settings. One runs
at a time, so that load from elsewhere hits all alike; ratios are taken within a round,
and their median and quartiles are reported.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

ALLOCATOR = {  # glibc's defaults return each step's memory to the kernel
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_ARENA_MAX": "1",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """The measurement of one case.

    Attributes:
      name: of the case.
      seconds: median time of a call.
      ratio: median over the rounds of its time over that of the base case.
      low: their lower quartile.
      high: their upper quartile.
      first_call: seconds from building to the end of the first call.
      memory_bytes: what a call needs beside its arguments: what `run` says itself, or
        the growth of the process's peak memory.
    """

    name: str
    seconds: float
    ratio: float
    low: float
    high: float
    first_call: float
    memory_bytes: int


class Worker:
    """A process that times one case when asked to."""

    def __init__(self, name: str, case: Mapping[str, Any]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks", "--worker", json.dumps(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | ALLOCATOR,
        )
        self.facts = self._read()

    def time(self, calls: int) -> float:
        """Returns the median seconds of at least so many calls."""
        assert self._process.stdin is not None
        print(calls, file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            error = self._process.communicate()[1].strip().splitlines()
            raise RuntimeError(f"{self.name}: {error[-1] if error else 'ended'}")
        return json.loads(line)


def serve(build: Callable[..., Callable[[], Any]], case: dict[str, Any]) -> None:
    """Runs in a worker: times as many calls as each line of the input says.

    Args:
      build: makes, from a case, a function that computes once and waits for it.
      case: its arguments.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    start = time.perf_counter()
    run = build(**case)
    before = _peak_bytes()
    run()
    first = time.perf_counter() - start
    run()
    memory = getattr(run, "temporary_bytes", None) or _peak_bytes() - before
    facts = {"first_call": first, "memory_bytes": memory}
    print(json.dumps(facts), file=out, flush=True)
    for line in sys.stdin:
        _times(run, 1, seconds=0.1)  # caches, even memory, may hold another case's data
        times = _times(run, int(line), seconds=0.2)
        print(json.dumps(statistics.median(times)), file=out, flush=True)


def _times(run: Callable[[], Any], calls: int, seconds: float) -> list[float]:
    """Times at least so many calls, for at least so many seconds."""
    times: list[float] = []
    while len(times) < calls or sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def compare(
    cases: Mapping[str, Mapping[str, Any]],
    base: str,
    *,
    rounds: int = 5,
    calls: int = 3,
    together: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Times cases in turns.

    Args:
      cases: arguments of the worker's `build`, by name.
      base: the case that the others are compared with.
      rounds: how many turns each case has.
      calls: how many calls a turn has at least.
      together: whether all cases are held in memory, to take turns; else they run one
        after the other.
      say: told what is going on.

    Returns:
      One row a case, in order; a case that cannot be built is left out, and said.
    """
    if not together:
        rows = [
            compare({name: case}, name, rounds=rounds, calls=calls, say=say)
            for name, case in cases.items()
        ]
        return _relative([row for group in rows for row in group], base)
    workers: list[Worker] = []
    try:
        for name, case in cases.items():
            try:
                workers.append(Worker(name, case))
            except RuntimeError as error:
                say(f"left out {error}")
        times: dict[str, list[float]] = {worker.name: [] for worker in workers}
        for index in range(rounds):
            say(f"round {index + 1} of {rounds}")
            for worker in workers:
                times[worker.name].append(worker.time(calls))
    finally:
        for worker in workers:
            worker.close()
    return [_row(worker, times[worker.name], times[base]) for worker in workers]


def _relative(rows: list[Row], base: str) -> list[Row]:
    """Compares medians of cases that did not take turns."""
    (unit,) = (row.seconds for row in rows if row.name == base)
    ratios = [row.seconds / unit for row in rows]
    return [
        dataclasses.replace(row, ratio=ratio, low=ratio, high=ratio)
        for row, ratio in zip(rows, ratios, strict=True)
    ]


def _row(worker: Worker, times: list[float], base: list[float]) -> Row:
    ratios = [a / b for a, b in zip(times, base, strict=True)]
    low, middle, high = statistics.quantiles(ratios, method="inclusive")
    return Row(worker.name, statistics.median(times), middle, low, high, **worker.facts)


def _peak_bytes() -> int:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
