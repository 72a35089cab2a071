"""The command `shiftjax`, with the library's commands and those of other packages.

Another package adds commands as entry points of the group "shiftjax.commands". Each is
a dataclass like those of `shiftjax.cli.commands`. The trainer adds its commands so.
"""

import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, Any, Union

import tyro

from shiftjax.cli import commands, convert_command, face_commands, style_commands
from shiftjax.cli.arguments import open_console, parse_command_line
from shiftjax.errors import InputError, named_if_denied, unknown_name
from shiftjax.version import __version__

USER_MISTAKE = 2
DESCRIPTION = (
    "Vision networks built on the shift operation, and their weights. "
    "`shiftjax --version` prints the version."
)
GROUP = "shiftjax.commands"
OWN = {
    "list": commands.ListModels,
    "summary": commands.Summarize,
    "predict": commands.Predict,
    "verify": commands.Verify,
    "analyze": commands.Analyze,
    "export": commands.Export,
    "convert": convert_command.Convert,
    "hub": commands.Hub,
    "stylize": style_commands.Stylize,
    "verify-faces": face_commands.VerifyFaces,
    "verify-pairs": face_commands.VerifyPairs,
    "draw-pairs": face_commands.DrawPairs,
    "embed": face_commands.Embed,
}


def every_command() -> Any:
    """Returns the union of the classes of all commands, each with its name."""
    others = {entry.name: entry.load() for entry in metadata.entry_points(group=GROUP)}
    kinds = (others | OWN).items()
    named = [Annotated[kind, tyro.conf.subcommand(name)] for name, kind in kinds]
    return Union[tuple(named)]  # noqa: UP007


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      arguments: the arguments after the program's name; by default `sys.argv[1:]`.

    Returns:
      The exit code: 0, or 2 for a mistake of the user, which is printed in one line.
      A command that has skipped a part of its work, with a line for each, returns 1.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if list(given) == ["--version"]:
        print(f"shiftjax {__version__}")
        return 0
    try:
        known = {entry.name for entry in metadata.entry_points(group=GROUP)} | {*OWN}
        if given and given[0] not in known and not given[0].startswith("-"):
            raise unknown_name("command", given[0], known)
        command = parse_command_line(
            every_command(), "shiftjax", given, description=DESCRIPTION
        )
        console = open_console(width=None if sys.stdout.isatty() else 120)
        with named_if_denied():
            code = command.run(console)
    except InputError as error:
        print(f"shiftjax: {error}", file=sys.stderr)
        return USER_MISTAKE
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
