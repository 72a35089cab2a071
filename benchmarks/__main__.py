"""Measures speed against the alternatives: `python -m benchmarks NAME`.

`training`: a step of ShiftResNet-20 beside PyTorch's and beside plain ResNet-20s.
`memory`: the same for ShiftResNet-110, whole and in chunks of 8 images.
`shift`: every lowering of the operation beside a copy of the same bytes.

Each prints a table and writes it, with the machine and the versions, to
benchmarks/results/NAME.json.
"""

import dataclasses
import importlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.interleave import Row, compare, serve

NAMES = ("training", "memory", "shift")
RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Time cases in turns, and report ratios."""

    name: tyro.conf.Positional[str]
    """training, memory or shift."""
    expansions: tuple[int, ...] = (3, 9)
    """Expansions E of the training steps."""
    batch_size: int = 128
    """Images in a training step."""
    compile_torch: bool = False
    """Also time torch.compile (needs a C++ compiler)."""
    rounds: int = 7
    """Turns that each case has."""


def training_cases(options: Benchmark, expansion: int) -> dict[str, dict[str, Any]]:
    """Steps of training, ours and others'."""
    ours = {"kind": "jax_nets.training_step", "batch_size": options.batch_size}
    theirs = {
        "kind": "torch_nets.training_step",
        "batch_size": options.batch_size,
        "depth": 20,
    }
    shift_net = ours | {"model": f"shiftresnet20_e{expansion}"}
    cases = {
        "PyTorch ShiftResNet-20": theirs | {"expansion": expansion},
        "shiftjax": shift_net,
        "shiftjax, NHWC": shift_net | {"form": "plain"},
        "PyTorch ResNet-20": theirs | {"expansion": None},
        "shiftjax ResNet-20": ours | {"model": "resnet20"},
        "Flax ResNet-20, NHWC": ours | {"model": "resnet20", "form": "plain"},
    }
    if options.compile_torch:
        compiled = theirs | {"expansion": expansion, "compiled": True}
        cases["PyTorch ShiftResNet-20, compiled"] = compiled
    return cases


def memory_cases(options: Benchmark) -> dict[str, dict[str, Any]]:
    """Steps of the deepest network, whose memory should not grow with E."""
    cases: dict[str, dict[str, Any]] = {}
    for expansion in options.expansions:
        theirs = {"kind": "torch_nets.training_step", "depth": 110}
        ours = {"kind": "jax_nets.training_step"}
        ours |= {"model": f"shiftresnet110_e{expansion}"}
        cases |= {
            f"PyTorch, E = {expansion}": theirs | {"expansion": expansion},
            f"shiftjax, E = {expansion}": ours,
            f"shiftjax, E = {expansion}, chunk = 8": ours | {"chunk": 8},
        }
    return {
        name: case | {"batch_size": options.batch_size} for name, case in cases.items()
    }


def shift_cases(
    shape: tuple[int, ...], kernel_size: int, dtype: str, backward: bool
) -> dict[str, dict[str, Any]]:
    """Every lowering of the shift, beside a copy."""
    case = {"kind": "jax_nets.shift", "shape": shape, "kernel_size": kernel_size}
    case |= {"dtype": dtype, "backward": backward}
    names = ("copy", "pad", "select", "slice", "gather", "roll")
    return {name: case | {"lowering": name} for name in names}


def plan(options: Benchmark) -> list[tuple[str, str, dict[str, dict[str, Any]]]]:
    """The tables of a benchmark: title, base case and cases."""
    if options.name == "training":
        return [
            (
                f"training step, E = {e}, {options.batch_size} images, float32",
                "PyTorch ShiftResNet-20",
                training_cases(options, e),
            )
            for e in options.expansions
        ]
    if options.name == "memory":
        title = f"training step, ShiftResNet-110, {options.batch_size} images, float32"
        return [
            (title, f"PyTorch, E = {options.expansions[-1]}", memory_cases(options))
        ]
    tables = []
    for dtype in ("float32", "bfloat16"):
        for kernel_size, shape in ((3, (128, 32, 32, 48)), (5, (16, 56, 56, 256))):
            for backward in (False, True):
                passes = "forward + backward" if backward else "forward"
                title = f"shift K = {kernel_size}, {shape}, {dtype}, {passes}"
                cases = shift_cases(shape, kernel_size, dtype, backward)
                tables.append((title, "copy", cases))
    return tables


def show(console: Console, title: str, base: str, rows: list[Row]) -> None:
    """Prints one table."""
    table = Table(title=title)
    table.add_column("case")
    for column in (
        "ms",
        f"time over {base}",
        "quartiles",
        "first call, s",
        "memory, MB",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            f"{1e3 * row.seconds:.1f}",
            f"{row.ratio:.2f}",
            f"{row.low:.2f} - {row.high:.2f}",
            f"{row.first_call:.1f}",
            f"{row.memory_bytes / 1e6:.0f}",
        )
    console.print(table)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    versions = {}
    for package in ("jax", "flax", "torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cpu = platform.processor() or platform.machine()
    with open("/proc/cpuinfo") as info:
        lines = [line.split(":")[1].strip() for line in info if "model name" in line]
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip() or None,
        "cpu": lines[0] if lines else cpu,
        "cores": len(lines),
        "python": platform.python_version(),
        **versions,
    }


def main() -> int:
    """Runs one benchmark, or one worker of it."""
    if sys.argv[1:2] == ["--worker"]:
        case = json.loads(sys.argv[2])
        module, function = case.pop("kind").split(".")
        serve(getattr(importlib.import_module(f"benchmarks.{module}"), function), case)
        return 0
    options = tyro.cli(Benchmark, prog="python -m benchmarks", description=__doc__)
    if options.name not in NAMES:
        names = ", ".join(NAMES)
        print(f"unknown benchmark {options.name!r}: one of {names}", file=sys.stderr)
        return 2
    console = Console()
    results = []
    for title, base, cases in plan(options):
        rows = compare(
            cases,
            base,
            rounds=options.rounds,
            together=options.name != "memory",  # which not every machine has
            say=console.log,
        )
        show(console, title, base, rows)
        rows_json = [dataclasses.asdict(row) for row in rows]
        results.append({"title": title, "base": base, "rows": rows_json})
    RESULTS.mkdir(exist_ok=True)
    report = {"command": " ".join(["python -m benchmarks", *sys.argv[1:]])}
    report |= {"machine": machine(), "tables": results}
    (RESULTS / f"{options.name}.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
