"""Checks of labels that are numbers in a file, and the names of their classes."""

from collections.abc import Mapping, Sequence

import numpy as np

from shiftjax.errors import InputError

_MOST = 10**6  # classes without names; a label beyond them is taken for an identifier


def name_classes(
    labels: Mapping[str, np.ndarray], names: Sequence[str] | None
) -> tuple[str, ...]:
    """Checks the labels of a source and names its classes.

    Args:
      labels: integers `[examples]` of each split, by the place that errors name.
      names: one name per class; None for numbers, up to the highest label.

    Returns:
      One name per class.

    Raises:
      InputError: for a label that is no class.

    Example:
      >>> name_classes({"train": np.array([0, 2])}, None)
      ('0', '1', '2')
      >>> name_classes({"train": np.array([0, 2])}, ["cat", "dog"])
      Traceback (most recent call last):
      shiftjax.errors.InputError: train has the label 2, and 2 classes have names
    """
    highest = -1
    for place, numbers in labels.items():
        if not numbers.size:
            continue
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0:
            raise InputError(f"{place} has the label {low}: labels count from 0")
        if names is not None and high >= len(names):
            raise InputError(
                f"{place} has the label {high}, and {len(names)} classes have names"
            )
        highest = max(highest, high)
        if names is None and high >= _MOST:
            raise InputError(
                f"{place} has the label {high}: without names of classes labels must "
                f"be below {_MOST}"
            )
    return tuple(map(str, range(highest + 1))) if names is None else tuple(names)
