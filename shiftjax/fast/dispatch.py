"""The forms in which modules are computed, and the default of each platform.

A module means the same in every form: the same variables give the same results, to
rounding. The forms differ in speed::

    plain     the definition, as it stands in a module's `__call__`, compiled by XLA
    planes    the fast form on a CPU, in a layout of its own: `shiftjax.fast.cpu`
    kernel    the fast form on a TPU, shift blocks in one kernel: `shiftjax.fast.tpu`;
              on an NVIDIA GPU, if asked for by name, `shiftjax.fast.gpu`

A module has a field `form`: one of these, or "auto" for the platform's default.
"""

from collections.abc import Sequence
from typing import Any

import jax

from shiftjax.errors import unknown_name

FORMS = ("plain", "planes", "kernel")
DEFAULT_FORM = {"cpu": "planes", "tpu": "kernel"}  # elsewhere the plain one


def resolve(form: str, shape: Sequence[Any], forms: Sequence[str] = FORMS) -> str:
    """Returns the form that arrays of a shape are computed in.

    Args:
      form: one of `FORMS`, or "auto" for the default of `jax.default_backend()`.
      shape: of the input, `[batch, height, width, channels]`.
      forms: those that the module has.

    Returns:
      One of `FORMS`: "plain" where the module lacks the form, or the shape is of other
      axes, empty, or free (as in programs exported for any batch).

    Raises:
      UnknownNameError: if there is no such form.

    Example:
      >>> resolve("planes", (2, 32, 32, 3)), resolve("planes", (0, 32, 32, 3))
      ('planes', 'plain')
    """
    if form not in ("auto", *FORMS):
        raise unknown_name("form", form, ("auto", *FORMS))
    if form == "auto":
        form = DEFAULT_FORM.get(jax.default_backend(), "plain")
    is_batch = len(shape) == 4 and all(isinstance(n, int) and n > 0 for n in shape)
    return form if is_batch and form in forms else "plain"
