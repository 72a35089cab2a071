"""Parsing of command lines with tyro, with one-line error messages."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import tyro

from shiftjax.errors import InputError


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
    parts = []
    for lines in filter(None, sections):
        if lines[0].startswith("Perhaps you meant"):
            names = [line.split()[0] for line in lines if line.startswith("--")]
            parts.append(f"did you mean {' or '.join(names[:3])}?")
        elif not lines[0].startswith(("For full helptext", "Argument helptext")):
            parts.append(" ".join(lines))
    return "; ".join(parts)
