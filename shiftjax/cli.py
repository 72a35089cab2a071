"""The command `shiftjax`: what the library offers from a shell.

Commands import what they need when they run, so that `--help` is quick.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.console import Console

from shiftjax.arguments import parse
from shiftjax.errors import InputError

USER_MISTAKE = 2


@dataclasses.dataclass(frozen=True)
class ListModels:
    """List the networks by name."""

    pattern: tyro.conf.Positional[str] = "*"
    """Shell wildcards that a name must match, quoted: 'shiftresnet*_e3'."""
    pretrained: tyro.conf.FlagCreatePairsOff[bool] = False
    """List released weights, as architecture.tag, instead."""

    def run(self, console: Console) -> None:
        """Prints one name a line."""
        from shiftjax.registry import list_models

        names = list_models(self.pattern, pretrained=self.pretrained)
        if not names:
            raise InputError(f"no model matches {self.pattern!r}: see `shiftjax list`")
        for name in names:
            console.print(name, highlight=False)


@dataclasses.dataclass(frozen=True)
class Summarize:
    """Show parameters, multiply-adds and activation bytes of a network, by layer."""

    model: tyro.conf.Positional[str]
    """A name of `shiftjax list`."""
    image_size: int | None = None
    """Height and width of the image; by default the network's own."""
    channels: int = 3
    """Channels of the image."""

    def run(self, console: Console) -> None:
        """Prints a table."""
        from shiftjax.summary import summarize

        console.print(
            summarize(self.model, image_size=self.image_size, channels=self.channels)
        )


Command = (
    Annotated[ListModels, tyro.conf.subcommand("list")]
    | Annotated[Summarize, tyro.conf.subcommand("summary")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      arguments: those of the command line, by default the process's own.

    Returns:
      The exit code: 0, or 2 for a mistake of the user's, which is said in one line.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        command = parse(Command, "shiftjax", given, description=__doc__)
        command.run(Console(width=None if sys.stdout.isatty() else 120))
    except InputError as error:
        print(f"shiftjax: {error}", file=sys.stderr)
        return USER_MISTAKE
    return 0


if __name__ == "__main__":
    sys.exit(main())
