"""Timing that a noisy machine cannot bias: cases in turns, ratios within a round.

Cases live in processes of their own, all with the same allocator settings. One runs at
a time, so that load from elsewhere hits all alike; ratios are taken within a round, and
their median and quartiles are reported.
"""

import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import ROOT
from benchmarks.cases import Case, Table

Say = Callable[[str], None]
QUIET: Say = lambda _: None  # noqa: E731 (a default, with its type)


@dataclasses.dataclass(frozen=True)
class Row:
    """The measurement of one case.

    Attributes:
      name: of the case.
      times: seconds of a call, the median of each turn.
      first_call: seconds from building to the end of the first call; on an
        accelerator, where several cases are built at once, of them together.
      memory_bytes: what a call needs beside its arguments: the compiler's count, what
        the library says, or the growth of the process; None where several cases share
        one and nothing else tells.
      peak_bytes: the most memory that the device gave out, where it says, to a process
        with this case alone.
      facts: about the case: parameters, multiply-adds.
    """

    name: str
    times: tuple[float, ...]
    first_call: float
    memory_bytes: int | None
    peak_bytes: int | None
    facts: dict[str, Any]

    @property
    def seconds(self) -> float:
        """The median time of a call."""
        return statistics.median(self.times)


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How two rows compare.

    Attributes:
      median: of the ratios within a round; of cases that took no turns, the ratio of
        their medians.
      low: the lower quartile; None without turns.
      high: the upper quartile; None without turns.
    """

    median: float
    low: float | None
    high: float | None


def ratio(row: Row, base: Row, *, in_turns: bool = True) -> Ratio:
    """Returns the time of a row over that of another.

    Example:
      >>> a, b = (Row("", t, 0, 0, 0, {}) for t in ((2.0, 6.0, 9.0), (1.0, 2.0, 3.0)))
      >>> ratio(a, b)
      Ratio(median=3.0, low=2.5, high=3.0)
    """
    if not in_turns:
        return Ratio(row.seconds / base.seconds, None, None)
    ratios = [a / b for a, b in zip(row.times, base.times, strict=True)]
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, method="inclusive")
    return Ratio(median, low, high)


class WorkerError(RuntimeError):
    """A worker has ended; the message says what it wrote last."""


class Worker:
    """A process that runs `benchmarks.worker`."""

    def __init__(self, platform: str | None = None) -> None:
        environment = dict(os.environ)
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # first calls compile
        if platform == "gpu":  # which two libraries share
            environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with it)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def ask(self, **request: Any) -> Any:
        """Returns the answer to a request.

        Raises:
          WorkerError: if there is none.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        if code < 0:  # as by the kernel, for want of memory
            raise WorkerError(f"killed by {signal.Signals(-code).name}")
        raise WorkerError(lines[-1] if lines else f"ended with code {code}")

    def close(self) -> None:
        """Ends the process, and waits for that."""
        try:
            self._process.communicate()
        except BrokenPipeError:
            self._process.wait()
        self._errors.close()


class Workers:
    """The processes of a benchmark, started as they are needed.

    Args:
      platform: JAX's.
      jobs: how many cases a process builds at once.
    """

    def __init__(self, platform: str, jobs: int = 1) -> None:
        self._platform = platform
        self._jobs = jobs
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, key: str, **request: Any) -> Any:
        """Returns a process's answer, or the error that ended it."""
        if key not in self._workers:
            self._workers[key] = Worker(self._platform)
        try:
            return self._workers[key].ask(**request)
        except WorkerError as error:
            self._workers.pop(key).close()
            return {"error": str(error)}

    def build(self, key: str, cases: Sequence[Case]) -> dict[str, Any]:
        """Returns each case's facts, or its error."""
        listed = [dataclasses.asdict(case) for case in cases]
        jobs = self._jobs if cases[0].library == "jax" else 1  # torch counts memory
        answer = self.ask(key, build=listed, jobs=jobs)
        return {case.name: answer.get(case.name, answer) for case in cases}

    def forget(self) -> None:
        """Drops all cases, and keeps the processes."""
        for key in list(self._workers):
            self.ask(key, forget=True)

    def close(self) -> None:
        """Ends all processes."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()


@dataclasses.dataclass(frozen=True)
class Measured:
    """A table, measured.

    Attributes:
      rows: one a case.
      left_out: why, by the name of each case that has no row.
    """

    rows: list[Row]
    left_out: dict[str, str]


def measure(
    table: Table,
    workers: Workers,
    *,
    rounds: int,
    seconds: float = 0.5,
    deadline: float | None = None,
    say: Say = QUIET,
) -> Measured:
    """Times the cases of a table in turns.

    Args:
      table: the cases.
      workers: where they run.
      rounds: how many turns each case has, at most.
      seconds: how long a turn takes, at least.
      deadline: by `time.monotonic()`, when no other round is begun.
      say: told what is going on.

    Returns:
      One row a case, in order; a case that fails is left out, and said.
    """
    if table.processes != "alone":
        return _in_turns(table, workers, rounds, seconds, deadline, say)
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    for i, case in enumerate(table.cases):
        share = None
        if deadline is not None:
            left = deadline - time.monotonic()
            share = time.monotonic() + left / (len(table.cases) - i)
        single = dataclasses.replace(table, cases=(case,))
        measured = _in_turns(single, workers, rounds, seconds, share, say)
        rows += measured.rows
        left_out |= measured.left_out
    return Measured(rows, left_out)


def _in_turns(
    table: Table,
    workers: Workers,
    rounds: int,
    seconds: float,
    deadline: float | None,
    say: Say,
) -> Measured:
    """Builds all cases, then times one after the other, round by round."""
    shared = table.processes == "library"
    keys = {case.name: case.library if shared else case.name for case in table.cases}
    built: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for key in dict.fromkeys(keys.values()):
        say(f"building {key}")
        cases = [case for case in table.cases if keys[case.name] == key]
        built |= workers.build(key, cases)

    def leave_out(name: str, reason: str) -> None:
        say(f"left out {name}: {reason}")
        left_out[name] = reason

    for name, facts in built.items():
        if "error" in facts:
            leave_out(name, facts["error"])
    times: dict[str, list[float]] = {name: [] for name in keys if name not in left_out}
    longest = 0.0
    for index in range(rounds):
        start = time.monotonic()
        if index and deadline is not None and start + longest > deadline:
            say(f"no time for more than {index} of {rounds} rounds")
            break
        say(f"round {index + 1} of {rounds}")
        for name in [name for name in times if name not in left_out]:
            answer = workers.ask(keys[name], time=name, seconds=seconds)
            if isinstance(answer, float):
                times[name].append(answer)
            else:
                leave_out(name, answer["error"])
        longest = max(longest, time.monotonic() - start)
    if shared:
        workers.forget()
    else:  # else the next case's memory would not make the process grow
        workers.close()
    rows = [
        _row(name, times[name], built[name], table.processes)
        for name in keys
        if name not in left_out
    ]
    return Measured(rows, left_out)


def _row(name: str, times: list[float], facts: dict[str, Any], processes: str) -> Row:
    memory = facts["memory_bytes"]
    if memory is None and processes != "library":
        memory = facts["grown_bytes"]
    peak = facts["peak_bytes"] if processes == "alone" else None
    return Row(name, tuple(times), facts["first_call"], memory, peak, facts["facts"])
