"""A process that builds cases and times them: `python -m benchmarks.worker`.

Each line of its input is a request in JSON, and each line of its output the answer:

    {"devices": true}                            the devices of JAX and PyTorch
    {"build": [case, ...], "jobs": n}            the facts of each case, or its error
    {"time": name, "seconds": s}                 median seconds of a call
    {"forget": true}                             nothing; drops all cases
"""

import ctypes
import gc
import importlib
import importlib.util
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.cases import Case, Program
from shiftjax.allocator import keep_freed_memory

WARM_SECONDS = 0.1  # to fill caches, which may hold data of another case
RUNS = (
    3  # the fewest, because a run in which the heap grows takes several times as long
)
LONGEST_TURN = 10  # times the given seconds, for fewer than three runs
QUEUE_SECONDS = 0.02  # of asynchronous work to queue at once
LONGEST_QUEUE = 200


def time_calls(program: Program, calls: int = 1) -> float:
    """Returns the seconds that a number of calls take."""
    start = time.perf_counter()
    result = None
    for _ in range(calls):
        result = program.call()
    program.wait(result)
    return time.perf_counter() - start


def median_time(program: Program, seconds: float) -> float:
    """Returns the median seconds of a step.

    Args:
      program: the program to time.
      seconds: shortest time of all runs together. There are at least three runs, unless
        they take ten times as long.
    """
    calls, spent = 1, 0.0
    while spent < min(WARM_SECONDS, seconds):
        spent += time_calls(program, calls)
    while program.queued and calls < LONGEST_QUEUE:
        if time_calls(program, calls) > QUEUE_SECONDS:
            break
        calls *= 2
    times = [time_calls(program, calls)]
    while sum(times) < (seconds if len(times) >= RUNS else LONGEST_TURN * seconds):
        times.append(time_calls(program, calls))
    return statistics.median(times) / (calls * program.steps)


def build(case: Case) -> tuple[Program, dict[str, Any]]:
    """Builds a case and runs it twice.

    Returns:
      The program, and for its row "first_call" (seconds from building to the end of the
      first call), "memory_bytes", "grown_bytes" (growth of the process), "peak_bytes"
      and "facts".
    """
    module, function = case.build.split(":")
    start = time.perf_counter()
    program = getattr(importlib.import_module(module), function)(**case.options)
    before = _resident_peak()
    time_calls(program)
    first_call = time.perf_counter() - start
    time_calls(program)
    return program, {
        "first_call": first_call,
        "memory_bytes": program.memory_bytes,
        "grown_bytes": _resident_peak() - before,
        "peak_bytes": program.peak_bytes(),
        "facts": dict(program.facts),
    }


LIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


class Server:
    """The cases of a process, and the answers to requests."""

    def __init__(self) -> None:
        self._built: dict[str, Program] = {}

    def answer(self, request: Mapping[str, Any]) -> Any:
        """Returns the answer to a request, and releases unused memory.

        Ten processes with waiting cases would otherwise fill 24 GiB with memory that
        they needed to compile and to run.
        """
        answer = self._answer(request)
        gc.collect()
        if LIBC is not None and hasattr(LIBC, "malloc_trim"):
            LIBC.malloc_trim(0)
        return answer

    def _answer(self, request: Mapping[str, Any]) -> Any:
        if "devices" in request:
            return devices()
        if "build" in request:
            cases = [Case(**case) for case in request["build"]]
            with ThreadPoolExecutor(request["jobs"]) as pool:
                answers = pool.map(self._build, cases)
                return {
                    case.name: facts for case, facts in zip(cases, answers, strict=True)
                }
        if "time" in request:
            return self._time(request["time"], request["seconds"])
        self._built.clear()
        return None

    def _build(self, case: Case) -> dict[str, Any]:
        try:
            self._built[case.name], facts = build(case)
        except Exception as error:  # of any library, e.g. out of memory
            return {"error": summary(error)}
        return facts

    def _time(self, name: str, seconds: float) -> Any:
        if name not in self._built:
            return {"error": "its process ended, with another case"}
        try:
            return median_time(self._built[name], seconds)
        except Exception as error:
            return {"error": summary(error)}


def devices() -> dict[str, Any]:
    """Returns the devices of JAX and PyTorch, and starts both.

    Returns:
      "platform" and "device" of JAX; "torch", PyTorch's platform, if it is installed.
    """
    import jax

    device = jax.devices()[0]
    found = {"platform": device.platform, "device": device.device_kind}
    if importlib.util.find_spec("torch"):
        import torch  # pyright: ignore[reportMissingImports]

        found["torch"] = "gpu" if torch.cuda.is_available() else "cpu"
    return found


def summary(error: Exception) -> str:
    """Returns the first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}".rstrip(": ")


def _resident_peak() -> int:
    """Returns the peak memory of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _main() -> None:
    """Answers requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries is no answer
    keep_freed_memory("cpu")  # as in the trainer; JAX must not start yet
    server = Server()
    for line in sys.stdin:
        print(json.dumps(server.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    _main()
