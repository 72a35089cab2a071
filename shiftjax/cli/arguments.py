"""Command lines: tyro's, with a mistake told in one line."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import tyro

from shiftjax.errors import InputError


def parse(kind: Any, prog: str, arguments: Sequence[str], **options: Any) -> Any:
    """Reads a command line into a dataclass.

    Args:
      kind: a dataclass, or a union of them as subcommands.
      prog: what the user typed before the arguments.
      arguments: what came after it.
      **options: of `tyro.cli`.

    Returns:
      An instance of `kind`.

    Raises:
      InputError: if the arguments do not fit.
      SystemExit: with code 0, after `--help`.
    """
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(kind, prog=prog, args=list(arguments), **options)
    except SystemExit as exit_:
        if not exit_.code:
            raise
    raise InputError(f"{one_line(told.getvalue())} (see {prog} --help)")


def one_line(box: str) -> str:
    """Makes one sentence of the box in which tyro tells a mistake.

    Args:
      box: sections of text between rules, within a frame.

    Returns:
      What is wrong, and the options that are like it.

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
    told = []
    for lines in filter(None, sections):
        if lines[0].startswith("Perhaps you meant"):
            names = [line.split()[0] for line in lines if line.startswith("--")]
            told.append(f"did you mean {' or '.join(names[:3])}?")
        elif not lines[0].startswith(("For full helptext", "Argument helptext")):
            told.append(" ".join(lines))
    return "; ".join(told)
