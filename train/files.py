"""The files of a run, in a local folder or in an object store.

A store has no folders, and an object in it can neither grow nor be renamed, but it is
written whole or not at all. A local file is written under another name first.
"""

import errno
import functools
import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from shiftjax.errors import InputError

# The package that reads and writes each kind of store, by the scheme of its paths.
STORES = {"gs": "gcsfs"}
REWRITE_SECONDS = 30  # between two writes of an object whose lines become more

Folder = epath.Path

_LOG = logging.getLogger(__name__)


def folder(path: str | os.PathLike[str]) -> Folder:
    """Returns the path of a folder, local or in a store; "~" is the home folder.

    Raises:
      InputError: if no such store is known, the package for it is not installed, or a
        local path has another name for Python than for the libraries in C++.

    Example:
      >>> folder("runs/digits") / "config.json"
      PosixGPath('runs/digits/config.json')
    """
    scheme, mark, _ = str(path).partition("://")
    if mark and scheme not in STORES:
        allowed = " or ".join(f"{name}://" for name in STORES)
        raise InputError(
            f"{path}: files of a run are in a local folder or below {allowed}"
        )
    if mark and importlib.util.find_spec(STORES[scheme]) is None:
        raise InputError(
            f"{path} needs the package {STORES[scheme]}: pip install {STORES[scheme]}"
        )
    if not mark and not _is_utf8(os.fspath(path)):
        raise InputError(
            f"{str(path)!a} cannot be named here, where file names are encoded as "
            f"{sys.getfilesystemencoding()}: set LC_ALL=C.UTF-8, or use ASCII letters"
        )
    return epath.Path(path) if mark else epath.Path(path).expanduser()


def _is_utf8(path: str) -> bool:
    """Returns True if Python encodes a path as UTF-8, as Orbax's libraries do."""
    try:
        return os.fsencode(path) == path.encode()
    except UnicodeEncodeError:
        return False


def in_store(path: str | os.PathLike[str]) -> bool:
    """Returns True for a path in an object store."""
    return "://" in str(path)


def write(path: Folder, data: bytes) -> None:
    """Writes a file whole: its readers see the old one or the new one.

    Raises:
      OSError: if it cannot be written; the error of a local file names it.
    """
    if in_store(path):
        try:
            path.write_bytes(data)
        except OSError:
            raise
        except Exception as error:  # each store has its own
            raise OSError(f"{type(error).__name__}: {error}") from error
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # none if the disk is full
        raise
    os.replace(partial, path)


def json_lines(path: Folder, *fields: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads the lines of a file, each a JSON object with a step and other fields.

    Each other line is skipped, with a warning that is logged once. An incomplete last
    line is skipped without.

    Args:
      path: the file.
      *fields: names that each object has beside "step".

    Yields:
      The text of a line, and its object.

    Raises:
      OSError: if it cannot be read.
    """
    texts = path.read_bytes().decode(errors="replace").rstrip("\n").split("\n")
    for number, text in enumerate(texts, 1):
        found = _parse(text, fields)
        if found is not None:
            yield text, found
        elif number < len(texts):
            _warn(f"{path}", number, " and ".join(f"a {x}" for x in ("step", *fields)))


def _parse(text: str, fields: tuple[str, ...]) -> dict[str, Any] | None:
    """Returns the object in a line; None if it is broken."""
    try:
        found = json.loads(text)
        found["step"] = int(found["step"])
        return found if found.keys() >= set(fields) else None
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


@functools.cache  # once for each line
def _warn(path: str, number: int, fields: str) -> None:
    """Logs that a line is skipped."""
    _LOG.warning(
        "line %d of %s is skipped: it is not a JSON object with %s",
        number,
        path,
        fields,
    )


class Lines:
    """A file that becomes longer by lines.

    In a local folder, each line reaches the operating system at once. In a store, the
    lines are kept in memory and written together, at most every `REWRITE_SECONDS`
    seconds, by `flush` and by `close`.

    Args:
      path: the file.
      kept: the lines that it begins with, in place of those that are there.

    Raises:
      OSError: if it cannot be written.
    """

    def __init__(self, path: Folder, kept: list[str]) -> None:
        self._path = path
        self._data = b"".join(f"{line}\n".encode() for line in kept)
        self._pending, self._written = False, time.monotonic()
        if kept or path.exists():
            write(path, self._data)
        self._file = None
        if not in_store(path):
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    def add(self, line: str) -> None:
        """Adds a line.

        Raises:
          OSError: if it cannot be written.
        """
        data = f"{line}\n".encode()
        if self._file is not None:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return
        self._data, self._pending = self._data + data, True
        if time.monotonic() - self._written >= REWRITE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the lines that are only in memory.

        Raises:
          OSError: if they cannot be written.
        """
        if self._pending:
            write(self._path, self._data)
            self._pending, self._written = False, time.monotonic()

    def close(self) -> None:
        """Writes what is left, and closes the file."""
        self.flush()
        if self._file is not None:
            self._file.close()
