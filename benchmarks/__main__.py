"""Measures speed against the alternatives: `python -m benchmarks NAME ...`.

shift: every lowering of the operation, compared with a memory copy and convolutions.
block: the shift block in every lowering and implementation, compared with the block
without its shift, and with a depthwise or a dense convolution in its place.
training, inference: whole networks, compared with PyTorch and with the networks that
they replace.
memory: training steps of ShiftResNet-110.
style: restyling of an image, compared with PyTorch.
input: decoding of JPEG files to random-resized crops, compared with PyTorch.
report: writes the results into README.md, docs/speed.md and docs/speed.png.

The benchmarks run on the platform of JAX. They include PyTorch if it is installed and
runs on the same platform. On a GPU, cases of `shift` and `block` run on several inputs,
which no cache can hold. There the time of a block is also given relative to its floor:
the larger of its bytes over the bandwidth of the copy, and its products over
`--tflops`.

Each benchmark prints its tables and writes them, with the machine and the versions, to
BENCHMARK-PLATFORM.json and .md. The files are updated after each table.
"""

import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from benchmarks import RESULTS, ROOT, block, images, nets, shift, style
from benchmarks.cases import Options, Table
from benchmarks.console import print_table
from benchmarks.report import (
    Report,
    Result,
    result_cells,
    speed_page,
    speed_summary,
    update_section,
)
from benchmarks.turns import Worker, WorkerError, Workers, measure
from shiftjax.errors import InputError
from train.machine import machine

BENCHMARKS: dict[str, Callable[[Options, dict[str, Any]], list[Table]]] = {
    "shift": shift.shift_tables,
    "block": block.block_tables,
    "training": nets.training_tables,
    "inference": nets.inference_tables,
    "memory": nets.memory_tables,
    "input": images.input_tables,
    "style": style.style_tables,
}
QUICK = ROOT / "runs" / "quick"


def probe() -> dict[str, Any]:
    """Returns facts about the machine and its devices.

    A separate process finds them and ends, because only one process can hold a TPU.
    """
    worker = Worker()
    try:
        found = worker.ask(devices=True)
    finally:
        worker.close()
    theirs = found.pop("torch", None)
    facts = machine() | {"date": f"{datetime.now(UTC):%Y-%m-%d}"} | found
    if theirs != found["platform"]:  # rows of another platform would compare machines
        facts.pop("torch", None)
    return facts


def _measure_benchmarks(
    options: Options, arguments: Sequence[str], console: Console
) -> None:
    """Measures the chosen benchmarks, and writes the results."""
    start = time.monotonic()
    facts = probe()
    platform = facts["platform"]
    plans = {
        name: BENCHMARKS[name](options, facts)
        for name in dict.fromkeys(options.names)
        if name in BENCHMARKS
    }
    left = sum(map(len, plans.values()))
    command = shlex.join(["python", "-m", "benchmarks", *arguments])
    jobs = 1 if platform == "cpu" else min(8, os.cpu_count() or 1)
    for name, tables in plans.items():
        results: list[Result] = []
        with Workers(platform, jobs) as workers:
            for table in tables:
                deadline = None
                if options.minutes is not None:
                    now = time.monotonic()
                    rest = start + 60 * options.minutes - now
                    deadline = now + rest / left
                left -= 1
                console.log(table.title)
                measured = measure(
                    table,
                    workers,
                    rounds=min(options.rounds, 2) if options.quick else options.rounds,
                    seconds=0.01 if options.quick else 0.5,
                    deadline=deadline,
                    log=console.log,
                )
                results.append(Result.of(table, measured))
                print_table(console, table.title, *result_cells(results[-1]))
                report = Report(name, command, facts, tuple(results))
                report.save(_results_folder(options))
        console.log(
            f"wrote {name}-{platform}.json and .md in {_results_folder(options)}"
        )


def _results_folder(options: Options) -> Path:
    """Returns the folder of the results."""
    return options.results or (QUICK if options.quick else RESULTS)


def write_report(options: Options, console: Console) -> None:
    """Writes the results into README.md, docs/speed.md and docs/speed.png."""
    from benchmarks.figure import draw_speed_figure  # needs matplotlib

    results = _results_folder(options)
    pages = {"README.md": speed_summary(results), "docs/speed.md": speed_page(results)}
    for name, body in pages.items():
        path = ROOT / name
        if path.is_file():
            path.write_text(update_section(path.read_text(), body))
            console.log(f"wrote {path}")
    figure = ROOT / "docs" / "speed.png"
    drawn = draw_speed_figure(results, figure)
    console.log(f"wrote {figure}" if drawn else f"nothing to draw in {figure}")


def run_benchmarks(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmarks named on the command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = tyro.cli(
        Options, args=arguments, prog="python -m benchmarks", description=__doc__
    )
    console = Console()
    console.width = max(
        console.width, 112
    )  # wide enough for the tables, also in a pipe
    try:
        if not options.names:
            raise InputError(f"name a benchmark: {', '.join([*BENCHMARKS, 'report'])}")
        if options.rounds < 1:
            raise InputError(f"--rounds {options.rounds}: it must be at least 1")
        _measure_benchmarks(options, arguments, console)
        if "report" in options.names:
            write_report(options, console)
    except (InputError, WorkerError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run_benchmarks())
