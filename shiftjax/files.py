"""Writing of files, whole or not at all."""

import contextlib
from pathlib import Path

from shiftjax.errors import InputError


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
