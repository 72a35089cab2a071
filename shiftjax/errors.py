"""Errors that a user can mend: one sentence with the value, what is allowed, a hint.

The commands print these as one line and exit with 2; any other exception is a fault of
the program and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A value from outside (argument, flag, file) that cannot be used."""


class UnknownNameError(InputError, KeyError):
    """A name that is not among the known ones."""

    def __str__(self) -> str:
        """Returns the message as it is, where KeyError would quote it."""
        return str(self.args[0])


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that is needed and not there."""

    def __str__(self) -> str:
        """Returns the message as it is, where OSError would look for an errno."""
        return str(self.args[0])


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> UnknownNameError:
    """Builds the error for an unknown name, with the nearest known ones.

    Args:
      kind: what the name is of, e.g. `"model"`.
      name: the name received.
      allowed: the known names.

    Returns:
      The error, to be raised.

    Example:
      >>> print(unknown_name("model", "resnet2O", ["resnet20", "vgg"]))
      unknown model 'resnet2O': did you mean 'resnet20'? (known: resnet20, vgg)
    """
    known = sorted(allowed)
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return UnknownNameError(
        f"unknown {kind} {name!r}: {hint}(known: {listed or 'none'})"
    )
