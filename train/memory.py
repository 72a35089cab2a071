"""One line in place of a traceback when the memory of a device is too small."""

import contextlib
from collections.abc import Iterator

import jax

from shiftjax.errors import InputError

SMALLER = (
    "a smaller --batch-size or --eval-batch-size",
    "--accumulate 2",
    "--model.remat",
    "--model.dtype bfloat16",
    "--data.resident-bytes 0",
)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Names the options that need less memory, if a device has not enough within.

    Raises:
      InputError: in place of XLA's error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        *first, last = SMALLER
        raise InputError(
            "the memory of a device is too small for this run: try "
            f"{', '.join(first)} or {last}"
        ) from error
