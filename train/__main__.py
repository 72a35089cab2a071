"""The program: `python -m train [experiment] [--options]`, and its other commands."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from shiftjax import arguments
from shiftjax.errors import InputError, unknown_name
from train import config, experiments

USER_MISTAKE = 2
PROGRAM = "python -m train"


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate a run's newest checkpoint on every example of a split."""

    workdir: str
    """Folder of the run."""
    split: str = "test"
    """test, validation, train or train+validation."""
    step: int | None = None
    """The checkpoint to take; by default the newest."""
    devices: int | None = None
    """How many of this machine's devices to use; by default all."""


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Write a TFDS directory of CIFAR-10 or CIFAR-100 from the official files."""

    name: tyro.conf.Positional[str]
    """cifar10 or cifar100."""
    source: tuple[str, ...] = ()
    """The official archive, or the files in it; by default it is downloaded."""
    data_dir: str | None = None
    """Where TFDS data sets are kept; by default where TFDS looks itself."""


COMMANDS = {"evaluate": Evaluate, "prepare": Prepare}


def main(given: Sequence[str] | None = None) -> int:
    """Runs an experiment or a command.

    Args:
      given: the arguments, by default those of the process.

    Returns:
      The exit code: 0, or 2 for a mistake of the user's, which is said in one line.
    """
    given = list(sys.argv[1:] if given is None else given)
    if given[:1] in (["-h"], ["--help"]):
        print(_overview())
        return 0
    try:
        command = parse(given)
        if isinstance(command, Evaluate):
            _evaluate(command)
        elif isinstance(command, Prepare):
            _prepare(command)
        else:
            _train(command)
    except InputError as error:
        print(f"train: {error}", file=sys.stderr)
        return USER_MISTAKE
    return 0


def parse(given: Sequence[str]) -> config.Config | Evaluate | Prepare:
    """Reads a command line: an experiment, or one of the other commands.

    Raises:
      UnknownNameError: if the first word is neither.
    """
    first, *rest = (
        given if given and not given[0].startswith("-") else ["digits", *given]
    )
    if first in COMMANDS:
        command = COMMANDS[first]
        return _parse(command, first, rest, description=command.__doc__)
    if first not in experiments.names():
        known = [*experiments.names(), *COMMANDS]
        raise unknown_name("experiment or command", first, known)
    return _parse(
        config.Config,
        first,
        rest,
        default=experiments.load(first),
        description=experiments.describe(first),
    )


def _parse(kind: Any, name: str, rest: list[str], **options: Any) -> Any:
    return arguments.parse(kind, f"{PROGRAM} {name}", rest, **options)


def _overview() -> str:
    lines = [f"usage: {PROGRAM} [experiment or command] [--options]", ""]
    lines += ["experiments, the first of which is what runs without a name:"]
    for name in sorted(experiments.names(), key=lambda name: name != "digits"):
        summary = experiments.describe(name).splitlines()[0]
        lines.append(f"  {name:<10} {summary}")
    lines += ["", "commands:"]
    lines += [f"  {name:<10} {kind.__doc__}" for name, kind in COMMANDS.items()]
    return "\n".join([*lines, "", f"{PROGRAM} NAME --help shows every option of it."])


def _prepare_process() -> None:
    """Settings that must come before the first array."""
    import jax

    from train.allocator import keep_freed_memory

    if jax.default_backend() == "cpu":
        keep_freed_memory()
    cache = os.environ.get("SHIFTJAX_CACHE", "~/.cache/shiftjax")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(cache).expanduser() / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _train(run: config.Config) -> None:
    _prepare_process()
    from train.loop import CURVES, train

    console = Console(soft_wrap=True)
    outcome = train(run, console)
    if not outcome.finished:
        console.print(
            f"stopped after step {outcome.steps:,}, saved in {run.workdir}: resume "
            "with the same command",
            highlight=False,
            markup=False,
        )
        return
    top1, examples = outcome.test["top1"], outcome.test["examples"]
    for line in (
        f"test top-1 {100 * top1:.2f}% of {examples:,.0f} examples",
        f"the run is in {run.workdir}, its curves in {run.workdir}/{CURVES}",
        f"next: {PROGRAM} evaluate --workdir {run.workdir}",
    ):
        console.print(line, highlight=False, markup=False)


def _evaluate(command: Evaluate) -> None:
    _prepare_process()
    from train.evaluation import evaluate_run

    result = evaluate_run(
        command.workdir, command.split, step=command.step, devices=command.devices
    )
    print(
        f"{command.split} top-1 {100 * result['top1']:.2f}%  "
        f"loss {result['loss']:.4f}  "
        f"{result['examples']:,.0f} examples, step {result['step']:,.0f}"
    )


def _prepare(command: Prepare) -> None:
    from train.data.prepare import prepare

    console = Console(soft_wrap=True)
    prepare(
        command.name, source=command.source, data_dir=command.data_dir, console=console
    )


if __name__ == "__main__":
    sys.exit(main())
