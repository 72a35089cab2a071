"""The exit codes of `python -m train`, by which a scheduler decides to restart it."""

from shiftjax.errors import InputError

MISTAKE = 2  # the same command fails again
LOST = 75  # sysexits.h's EX_TEMPFAIL: the same command may succeed


class TemporaryError(InputError):
    """An error that a restart may mend, such as a port that is still in use."""


def code(error: InputError) -> int:
    """Returns the exit code for an error.

    Example:
      >>> code(InputError("no such model")), code(TemporaryError("port in use"))
      (2, 75)
    """
    return LOST if isinstance(error, TemporaryError) else MISTAKE
