"""Reads CIFAR's pickles without running code.

Python's own unpickler calls any function that a pickle names. CIFAR's pickles name
three, which rebuild a NumPy array. This module replaces them by classes that only take
bytes.
"""

import io
import pickle
from typing import Any

import numpy as np

from shiftjax.errors import InputError


class _PickledArray:
    """Stands in for `numpy.ndarray` while a pickle is read."""

    value: np.ndarray

    def __setstate__(
        self, state: tuple[int, tuple[int, ...], object, bool, bytes]
    ) -> None:
        _, shape, _, fortran, data = state
        if fortran:
            raise InputError(
                "an array in the pickle is in column order, CIFAR's are not"
            )
        self.value = np.frombuffer(data, np.uint8).reshape(shape)


class _PickledDtype:
    """Stands in for `numpy.dtype`: CIFAR has bytes only."""

    def __init__(self, code: bytes, *_: object) -> None:
        if code != b"u1":
            raise InputError(
                f"an array in the pickle has dtype {code!r}, CIFAR's are u1"
            )

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """Ignores the byte order, which bytes do not have."""


class _Unpickler(pickle.Unpickler):
    """Rebuilds containers, strings, numbers and byte arrays, and runs no code."""

    _KNOWN = {  # noqa: RUF012 (a table, never written)
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: _PickledArray(),
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledDtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Rejects every name that a CIFAR pickle does not have."""
        if (module, name) not in self._KNOWN:
            raise InputError(
                f"the pickle asks for {module}.{name}, which no CIFAR file does; "
                "refused, none of its code has been run"
            )
        return self._KNOWN[module, name]


def load_pickle(data: bytes) -> dict[str, Any]:
    """Reads an official CIFAR pickle without running code.

    Args:
      data: the contents of the file.

    Returns:
      The dictionary, with text as `str` and pixels as uint8 arrays.

    Raises:
      InputError: if the data are not a pickle, or hold anything but containers, text,
        numbers and byte arrays.

    Example:
      >>> load_pickle(pickle.dumps({"labels": [3, 8]}, protocol=2))
      {'labels': [3, 8]}
      >>> load_pickle(pickle.dumps(print))  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      shiftjax.errors.InputError: the pickle asks for builtins.print, which no CIFAR ...
    """
    try:
        # Python 2 wrote text and bytes alike; only the pixels are bytes.
        contents = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except (
        pickle.UnpicklingError,
        EOFError,
        AttributeError,
        IndexError,
        TypeError,
    ) as e:
        raise InputError(f"not a CIFAR pickle: {e}") from e
    if not isinstance(contents, dict):
        raise InputError(f"not a CIFAR pickle: it holds a {type(contents).__name__}")
    return {_text(key): _plain(value) for key, value in contents.items()}


def _plain(value: object) -> object:
    """Unwraps arrays and turns bytes into text."""
    if isinstance(value, _PickledArray):
        return value.value
    if isinstance(value, list):
        return [_text(item) for item in value]
    return _text(value)


def _text(value: object) -> Any:
    """Turns bytes into text, and returns other values unchanged."""
    return value.decode() if isinstance(value, bytes) else value
