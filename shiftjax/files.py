"""Paths that a user gives, and writing of files, whole or not at all."""

import contextlib
import os
from pathlib import Path

from shiftjax.errors import InputError


def user_path(path: str | os.PathLike[str]) -> Path:
    """Returns a path, with the home of the user in place of `~` at its start.

    Args:
      path: the path. It stays as it is if `~` begins the name of no user.

    Example:
      >>> user_path("images/~a.png").as_posix()
      'images/~a.png'
    """
    return Path(os.path.expanduser(path))


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file, which other programs see whole or not at all.

    Args:
      path: the file, in an existing folder.
      data: its content.

    Raises:
      InputError: if the file cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        reason = error.strerror or error
        raise InputError(f"{path} cannot be written: {reason}") from error
