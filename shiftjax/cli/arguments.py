"""Parsing of command lines with tyro, with one-line errors, and the console."""

import ast
import contextlib
import io
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import Annotated, Any

import tyro
from rich.console import Console

from shiftjax.errors import InputError

Flag = tyro.conf.FlagCreatePairsOff[bool]
# Types of arguments, each with the word that stands for its value in `--help`.
Images = Annotated[
    tyro.conf.Positional[tuple[str, ...]],
    tyro.conf.arg(metavar="IMAGE...", help_behavior_hint="(required)"),
]
Image = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="IMAGE")]
Weights = Annotated[str, tyro.conf.arg(metavar="WEIGHTS")]
Network = Annotated[str, tyro.conf.arg(metavar="NETWORK")]
File = Annotated[str | None, tyro.conf.arg(metavar="FILE")]
Folder = Annotated[str | None, tyro.conf.arg(metavar="FOLDER")]
Folders = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FOLDER...")]
Numbers = Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="NUMBER...")]
Output = Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
Pixels = Annotated[int | None, tyro.conf.arg(metavar="PIXELS")]
Options = Annotated[
    tuple[str, ...],
    tyro.conf.arg(metavar="NAME=VALUE...", help_behavior_hint="(default: none)"),
]


def parse_options(network: str, given: Sequence[str]) -> dict[str, Any]:
    """Parses options of a network from a command line.

    Args:
      network: name of the network.
      given: texts "name=value". A value that is no Python literal is a string.

    Returns:
      The values by name.

    Raises:
      InputError: if a text has no name or no "=", or a family lacks its option.
      UnknownNameError: if the network or an option is unknown.

    Example:
      >>> parse_options("shiftresnet20", ["expansion=4", "implementation=cpu"])
      {'expansion': 4, 'implementation': 'cpu'}
    """
    from shiftjax.registry import FAMILIES, build_model, list_models

    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"--options {text}: write it as NAME=VALUE")
        try:
            options[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            options[name] = value
    if network in FAMILIES and FAMILIES[network] not in options:
        raise InputError(
            f"{network} needs --options {FAMILIES[network]}=NUMBER; or use "
            + ", ".join(list_models(f"{network}_*"))
        )
    build_model(network, options)  # raises for what is none of its options
    return options


def parse_command_line(
    kind: Any, prog: str, arguments: Sequence[str], **options: Any
) -> Any:
    """Parses a command line into a dataclass.

    Args:
      kind: a dataclass, or a union of dataclasses as subcommands.
      prog: name of the program, as the user typed it.
      arguments: the arguments after it.
      **options: further options of `tyro.cli`.

    Returns:
      An instance of `kind`.

    Raises:
      InputError: if an argument is unknown, missing or invalid.
      SystemExit: with code 0, after `--help`.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, prog=prog, args=list(arguments), **options)
    except SystemExit as exit_:
        if not exit_.code:
            raise
    raise InputError(f"{one_line(errors.getvalue())} (see {prog} --help)")


def one_line(box: str) -> str:
    """Shortens the framed error message of tyro to one line.

    Args:
      box: the message: sections of text between rules, inside a frame.

    Returns:
      The mistake and the nearest options.

    Example:
      >>> one_line('''
      ... | Unrecognized options: --epoch  |
      ... | ------------------------------ |
      ... | Perhaps you meant:             |
      ... |     --epochs FLOAT             |
      ... |         How often. (default: 1)|
      ... ''')
      'Unrecognized options: --epoch; did you mean --epochs?'
    """
    sections: list[list[str]] = [[]]
    for framed in box.splitlines():
        line = framed.strip().strip("│|").strip()
        if line and not line.strip("─-"):
            sections.append([])
        elif line and line[0] not in "╭╰":
            sections[-1].append(line)
    if not box.lstrip().startswith(("╭", "|")):
        del sections[0]  # the title, which an output without UTF-8 has on its own line
    parts = []
    for lines in filter(None, sections):
        if lines[0].startswith("Perhaps you meant"):
            names = [line.split()[0] for line in lines if line.startswith("--")]
            parts.append(f"did you mean {' or '.join(names[:3])}?")
        elif not lines[0].startswith(("For full helptext", "Argument helptext")):
            # What each type of a union says is left out; they are named before.
            parts.append(" ".join(takewhile(lambda line: line != "Got errors:", lines)))
    return "; ".join(parts)


def open_console(**options: Any) -> Console:
    """Opens the console of a program, which prints the name of any file.

    Rich would print `:dog:` as a picture, and Python refuses to print a byte of a name
    that is no UTF-8; it becomes an escape, as on the standard error.

    Args:
      options: options of `rich.console.Console`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(emoji=False, **options)
