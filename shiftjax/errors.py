"""Errors that a user can correct, with one-line messages.

A message has the given value, the allowed ones and the nearest name. The commands print
it as one line and exit with code 2. Any other exception is a fault of the program and
keeps its traceback.
"""

import contextlib
import difflib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence

_DENIED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.ENAMETOOLONG,
)


class InputError(ValueError):
    """An invalid value of an argument, an option or a file."""


class UnknownNameError(InputError, KeyError):
    """A name that is not among the known ones."""

    def __str__(self) -> str:
        """Returns the message without the quotes that KeyError adds."""
        return str(self.args[0])


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that is required but does not exist."""

    def __str__(self) -> str:
        """Returns the message alone; OSError would look for an errno."""
        return str(self.args[0])


OWN = ("shiftjax", "train")  # packages whose absence is a fault of the program


@contextlib.contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Creates a context in which a missing package is an InputError.

    Args:
      what: the name of what needs it, for the message.
      extra: the optional dependencies of shiftjax that have the package.

    Yields:
      None.

    Raises:
      InputError: if an import of another package fails because it is not installed.

    Example:
      >>> with needs_extra("a plot", "train"):
      ...     import plots
      Traceback (most recent call last):
      shiftjax.errors.InputError: a plot needs plots: pip install 'shiftjax[train]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package in OWN:
            raise
        raise InputError(
            f"{what} needs {package}: pip install 'shiftjax[{extra}]'"
        ) from error


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Creates a context in which a file or folder is read, or an InputError names it.

    Args:
      path: the file or folder.

    Yields:
      None.

    Raises:
      InputError: if the system cannot read it, or it is no text where one is read.

    Example:
      >>> with reading("no.txt"):
      ...     text = open("no.txt").read()
      Traceback (most recent call last):
      shiftjax.errors.InputError: no.txt cannot be read: No such file or directory
    """
    try:
        yield
    except InputError:  # a MissingFileError is an OSError too
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


SHOWN = 8  # problems listed in one message


def listed(problems: Sequence[str]) -> str:
    """Joins the first eight problems of a message, and counts the others.

    Example:
      >>> listed(["a is missing", "b is unknown"])
      'a is missing; b is unknown'
      >>> listed(["no"] * 10)
      'no; no; no; no; no; no; no; no; and 2 more'
    """
    more = len(problems) - SHOWN
    return "; ".join([*problems[:SHOWN], *([f"and {more} more"] if more > 0 else [])])


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> UnknownNameError:
    """Builds the error for an unknown name, with the nearest known ones.

    Args:
      kind: kind of object that is named, e.g. `"model"`.
      name: the given name.
      allowed: the known names.

    Returns:
      The error, for the caller to raise.

    Example:
      >>> print(unknown_name("model", "resnet2O", ["resnet20", "vgg"]))
      unknown model 'resnet2O': did you mean 'resnet20'? (known: resnet20, vgg)
    """
    known = sorted(allowed)
    near = difflib.get_close_matches(str(name), known, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return UnknownNameError(
        f"unknown {kind} {name!r}: {hint}(known: {listed or 'none'})"
    )


@contextlib.contextmanager
def named_if_denied() -> Iterator[None]:
    """Creates a context in which an InputError names a file that the system denies.

    Yields:
      None.

    Raises:
      InputError: if a permission is missing, the file system is read-only or full, or a
        name is too long for it.

    Example:
      >>> with named_if_denied():
      ...     raise PermissionError(13, "Permission denied", "/data/images")
      Traceback (most recent call last):
      shiftjax.errors.InputError: /data/images: Permission denied
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DENIED or error.filename is None:
            raise
        raise InputError(f"{error.filename}: {error.strerror}") from error
