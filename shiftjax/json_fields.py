"""Checks of JSON objects whose entries become the fields of a dataclass."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from shiftjax.errors import InputError, unknown_name


@dataclasses.dataclass(frozen=True)
class FieldKind:
    """A kind of JSON value.

    Attributes:
      text: what a value of it is, with an article, for errors.
      accepts: returns True for a value of it.
    """

    text: str
    accepts: Callable[[Any], bool]


def checked_fields(
    values: Any, required: Mapping[str, FieldKind], optional: Mapping[str, FieldKind]
) -> dict[str, Any]:
    """Checks a JSON object.

    Args:
      values: the value of the whole, which should be an object.
      required: the kinds of the entries that it must have.
      optional: the kinds of those that it may have.

    Returns:
      The entries.

    Raises:
      InputError: if it is no object, or an entry is missing, unknown or of another
        kind.

    Example:
      >>> checked_fields({"size": -1}, {"size": whole_number(1)}, {})
      Traceback (most recent call last):
      shiftjax.errors.InputError: size=-1: it must be a whole number of at least 1
    """
    if not isinstance(values, dict):
        raise InputError(f"{shown(values)} is not an object with fields")
    kinds = {**required, **optional}
    for name, value in values.items():
        if name not in kinds:
            raise unknown_name("field", name, kinds)
        if not kinds[name].accepts(value):
            raise InputError(f"{name}={shown(value)}: it must be {kinds[name].text}")
    for name in required:
        if name not in values:
            raise InputError(f"the field {name!r} is missing")
    return values


def shown(value: Any) -> str:
    """Returns the text of a value, cut after 40 characters.

    Example:
      >>> shown(["a" * 99])
      "['aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa..."
    """
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def is_number(value: Any) -> bool:
    """Returns True for an int or a float, but not for a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Returns True for a number that a float can hold."""
    try:
        return is_number(value) and math.isfinite(value)
    except OverflowError:
        return False


def is_text(value: Any) -> bool:
    """Returns True for a string."""
    return isinstance(value, str)


LARGEST = 2**53


def whole_number(low: int, high: int = LARGEST) -> FieldKind:
    """Returns the kind of integers of `low` to `high`."""
    return FieldKind(
        f"a whole number of at least {low}"
        if high == LARGEST
        else f"a whole number of {low} to {high}",
        lambda x: is_number(x) and isinstance(x, int) and low <= x <= high,
    )


def number(text: str, accepts: Callable[[float], bool]) -> FieldKind:
    """Returns the kind of finite numbers for which a function returns True."""
    return FieldKind(text, lambda x: is_finite(x) and accepts(x))


def sequence(text: str, accepts: Callable[[Any], bool]) -> FieldKind:
    """Returns the kind of lists whose elements a function accepts."""
    return FieldKind(text, lambda x: isinstance(x, list) and all(map(accepts, x)))


def table(text: str, accepts: Callable[[Any], bool]) -> FieldKind:
    """Returns the kind of objects whose values a function accepts."""
    return FieldKind(
        text, lambda x: isinstance(x, dict) and all(map(accepts, x.values()))
    )


def either(kind: FieldKind, other: FieldKind) -> FieldKind:
    """Returns a kind that has the values of two."""
    return FieldKind(
        f"{kind.text}, or {other.text}", lambda x: kind.accepts(x) or other.accepts(x)
    )


def pair(kind: FieldKind) -> FieldKind:
    """Returns the kind of lists of two values of a kind."""
    return FieldKind(
        "a list of two",
        lambda x: isinstance(x, list) and len(x) == 2 and all(map(kind.accepts, x)),
    )


def or_null(kind: FieldKind) -> FieldKind:
    """Returns a kind that has null too."""
    return FieldKind(f"{kind.text}, or null", lambda x: x is None or kind.accepts(x))


def _stays_inside(path: Any) -> bool:
    """Returns True for a relative path that does not leave its folder."""
    if not is_text(path) or not path or re.search(r"[\\:\0]", path):
        return False
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts


LIST = FieldKind("a list", lambda x: isinstance(x, list))
TEXT = FieldKind("a text", is_text)
NAME = FieldKind("a text that is not empty", lambda x: is_text(x) and x != "")
FILE = FieldKind("a file below the folder, with / between names", _stays_inside)
FILE_OR_NONE = FieldKind(
    "a file below the folder, or empty", lambda x: x == "" or _stays_inside(x)
)
SHA256 = FieldKind(
    "64 hexadecimal digits",
    lambda x: is_text(x) and re.fullmatch("[0-9a-f]{64}", x) is not None,
)
