"""Timing in turns, which a noisy machine does not bias.

Cases run in separate processes with the same allocator settings. They take turns, one
at a time, so other load on the machine affects all alike. Ratios are computed within a
round, and their median and quartiles are reported.
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

Log = Callable[[str], None]
QUIET: Log = lambda _: None  # noqa: E731 (a default, with its type)


@dataclasses.dataclass(frozen=True)
class Row:
    """The measurement of one case.

    Attributes:
      name: name of the case.
      times: median seconds of a call in each turn.
      first_call: seconds from building to the end of the first call; on an accelerator,
        where several cases are built at once, of all of them.
      memory_bytes: memory that a call needs besides its arguments, according to the
        compiler, the library or the growth of the process; None if it is unknown.
      peak_bytes: peak memory of the device in a process with this case alone, or None.
      facts: facts about the case: parameters, multiply-adds.
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
    """The ratio of the times of two rows.

    Attributes:
      median: median of the ratios within a round; without turns, the ratio of medians.
      low: the lower quartile; None without turns.
      high: the upper quartile; None without turns.
    """

    median: float
    low: float | None
    high: float | None


def ratio(row: Row, base: Row, *, in_turns: bool = True) -> Ratio:
    """Returns the time of a row relative to another.

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
    """The error of a worker that has ended; the message is its last output."""


class Worker:
    """A process that runs `benchmarks.worker`."""

    def __init__(self, platform: str | None = None) -> None:
        environment = dict(os.environ)
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # first calls compile
        if platform == "gpu":  # two libraries share it
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
          WorkerError: if the process ends without one.
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
        if code < 0:  # e.g. by the system, out of memory
            raise WorkerError(f"killed by {signal.Signals(-code).name}")
        raise WorkerError(lines[-1] if lines else f"ended with code {code}")

    def close(self) -> None:
        """Ends the process, and waits for its end."""
        try:
            self._process.communicate()
        except BrokenPipeError:
            self._process.wait()
        self._errors.close()


class Workers:
    """The processes of a benchmark, which are started when needed.

    Args:
      platform: platform of JAX.
      jobs: number of cases that a process builds at once.
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
        """Returns the answer of a process, or the error that ended it."""
        if key not in self._workers:
            self._workers[key] = Worker(self._platform)
        try:
            return self._workers[key].ask(**request)
        except WorkerError as error:
            self._workers.pop(key).close()
            return {"error": str(error)}

    def build(self, key: str, cases: Sequence[Case]) -> dict[str, Any]:
        """Returns the facts of each case, or its error."""
        listed = [dataclasses.asdict(case) for case in cases]
        jobs = self._jobs if cases[0].library == "jax" else 1  # torch measures memory
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
    """The measurement of a table.

    Attributes:
      rows: a row per case.
      left_out: the reasons, by the name of each case that has no row.
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
    log: Log = QUIET,
) -> Measured:
    """Times the cases of a table in turns.

    Args:
      table: the cases.
      workers: the processes of the cases.
      rounds: largest number of turns of a case.
      seconds: shortest time of a turn.
      deadline: time of `time.monotonic()` after which no round is started.
      log: called with messages about the progress.

    Returns:
      A row per case, in order; a case that fails is left out, with its reason.
    """
    if table.processes != "alone":
        return _in_turns(table, workers, rounds, seconds, deadline, log)
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    for i, case in enumerate(table.cases):
        share = None
        if deadline is not None:
            left = deadline - time.monotonic()
            share = time.monotonic() + left / (len(table.cases) - i)
        single = dataclasses.replace(table, cases=(case,))
        measured = _in_turns(single, workers, rounds, seconds, share, log)
        rows += measured.rows
        left_out |= measured.left_out
    return Measured(rows, left_out)


def _in_turns(
    table: Table,
    workers: Workers,
    rounds: int,
    seconds: float,
    deadline: float | None,
    log: Log,
) -> Measured:
    """Builds all cases, then times one after the other, round by round."""
    shared = table.processes == "library"
    keys = {case.name: case.library if shared else case.name for case in table.cases}
    built: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for key in dict.fromkeys(keys.values()):
        log(f"building {key}")
        cases = [case for case in table.cases if keys[case.name] == key]
        built |= workers.build(key, cases)

    def leave_out(name: str, reason: str) -> None:
        log(f"left out {name}: {reason}")
        left_out[name] = reason

    for name, facts in built.items():
        if "error" in facts:
            leave_out(name, facts["error"])
    times: dict[str, list[float]] = {name: [] for name in keys if name not in left_out}
    longest = 0.0
    for index in range(rounds):
        start = time.monotonic()
        if index and deadline is not None and start + longest > deadline:
            log(f"no time for more than {index} of {rounds} rounds")
            break
        log(f"round {index + 1} of {rounds}")
        for name in [name for name in times if name not in left_out]:
            answer = workers.ask(keys[name], time=name, seconds=seconds)
            if isinstance(answer, float):
                times[name].append(answer)
            else:
                leave_out(name, answer["error"])
        longest = max(longest, time.monotonic() - start)
    if shared:
        workers.forget()
    else:  # so that the memory of the next case makes its process grow
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
