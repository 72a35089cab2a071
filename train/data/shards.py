"""Sorts the files of a data set into splits by their names."""

import re
from collections.abc import Iterable
from pathlib import Path

from shiftjax.errors import InputError
from train.data import splits

# A word of the name that begins with the name of a split.
_SPLIT = re.compile(r"(?:^|[^a-z])(train|test|val)")


def by_split(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Sorts files into splits, such as `train-000.tar` or `mnist-test-000.tar`.

    Args:
      files: the files of one folder.

    Returns:
      The files of each split, by name; all are of "train" if no name has a split.

    Raises:
      InputError: if only some of the names have a split.

    Example:
      >>> by_split([Path("b_val.tar"), Path("train-1.tar"), Path("train-0.tar")])
      {'validation': [PosixPath('b_val.tar')], 'train': [PosixPath('train-0.tar'), \
PosixPath('train-1.tar')]}
    """
    found: dict[str, list[Path]] = {}
    others = []
    for file in sorted(files):
        word = _SPLIT.search(file.name.lower())
        if word is None:
            others.append(file)
        else:
            name = "validation" if word[1] == "val" else word[1]
            found.setdefault(name, []).append(file)
    if found and others:
        raise InputError(
            f"{others[0]} is of no split, unlike {next(iter(found.values()))[0].name}: "
            f"its name needs one of {', '.join(splits.SPLIT_NAMES)}"
        )
    return found or {"train": others}
