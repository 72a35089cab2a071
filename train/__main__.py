"""The program: `python -m train [experiment] [--options]`, and its other commands."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

from shiftjax.cli import arguments
from shiftjax.errors import InputError, named_if_denied, needs_extra, unknown_name
from train import commands, config, exits, experiments

COMMANDS = {
    "compile": commands.Compile,
    "evaluate": commands.Evaluate,
    "folds": commands.Folds,
    "prepare": commands.Prepare,
    "release": commands.ReleaseRuns,
    "results": commands.Results,
    "resume": commands.Resume,
    "zoo": commands.Zoo,
}

# Flags of experiments in earlier versions, and the words that replaced them.
RENAMED = {
    "--tensorboard": ["--log-to", "tensorboard"],
    "--no-tensorboard": ["--log-to"],
}


def run_command(given: Sequence[str] | None = None) -> int:
    """Runs an experiment or a command.

    Args:
      given: the arguments; by default those of the process.

    Returns:
      The exit code: 0, or that of a run that was asked to stop, or that of a user's
      mistake, which is printed in one line.
    """
    given = list(sys.argv[1:] if given is None else given)
    if given[:1] in (["-h"], ["--help"]):
        print(_overview())
        return 0
    try:
        logging.basicConfig(format="train: %(message)s")  # of warnings
        with needs_extra(f"`{commands.PROGRAM}`", "train"), named_if_denied():
            command = parse(given)
            console = arguments.open_console(soft_wrap=True)
            if isinstance(command, config.Config):
                return commands.train_run(command, console)
            return command.run(console) or 0
    except InputError as error:
        print(f"train: {error}", file=sys.stderr)
        return exits.code(error)


def parse(given: Sequence[str]) -> Any:
    """Reads a command line: an experiment, or one of the other commands.

    Raises:
      UnknownNameError: if the first word is neither.
    """
    first, *rest = (
        given if given and not given[0].startswith("-") else ["digits", *given]
    )
    if first == "compile":
        return _compile(rest)
    if first in COMMANDS:
        command = COMMANDS[first]
        return _parse(command, first, rest, description=command.__doc__)
    if first not in experiments.names():
        known = [*experiments.names(), *COMMANDS]
        raise unknown_name("experiment or command", first, known)
    description = experiments.describe(first)
    if not {"-h", "--help"}.isdisjoint(rest):
        from train.tasks import TASKS  # seconds, which other command lines spare

        description += f"\n\nTasks, for --task: {', '.join(TASKS)}."
    return _parse(
        config.Config,
        first,
        _renamed(rest),
        default=experiments.load(first),
        description=description,
    )


def _compile(given: Sequence[str]) -> commands.Compile:
    """Reads an experiment, and options of it and of its compilation."""
    name, *rest = (
        given if given and not given[0].startswith("-") else ["digits", *given]
    )
    return _parse(
        commands.Compile,
        f"compile {name}",
        _renamed(rest),
        default=commands.Compile(experiments.load(name)),
        description=commands.Compile.__doc__,
    )


def _renamed(given: Sequence[str]) -> list[str]:
    """Replaces the flags of earlier versions."""
    return [new for word in given for new in RENAMED.get(word, [word])]


def _parse(kind: Any, name: str, rest: list[str], **options: Any) -> Any:
    return arguments.parse_command_line(
        kind, f"{commands.PROGRAM} {name}", rest, **options
    )


def _overview() -> str:
    named = sorted(experiments.names(), key=lambda name: name != "digits")
    summaries = {name: experiments.describe(name).splitlines()[0] for name in named}
    described = {name: str(kind.__doc__) for name, kind in COMMANDS.items()}
    width = max(map(len, [*summaries, *described]))
    lines = [f"usage: {commands.PROGRAM} [experiment or command] [--options]", ""]
    lines += ["experiments (without a name, the first one runs):"]
    lines += [f"  {name:<{width}} {text}" for name, text in summaries.items()]
    lines += ["", "commands:"]
    lines += [f"  {name:<{width}} {text}" for name, text in described.items()]
    return "\n".join([*lines, "", f"{commands.PROGRAM} NAME --help shows its options."])


if __name__ == "__main__":
    sys.exit(run_command())
