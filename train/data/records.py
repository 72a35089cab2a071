"""The interface of encoded images with random access, which sources implement."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np


class Records(Protocol):
    """Encoded images with labels, which can be read in any order by several threads."""

    def __len__(self) -> int: ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, in the order of the labels."""
        ...

    @property
    def upright(self) -> bool:
        """True if images are to be turned upright by their EXIF orientation."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """The labels of all records, int32 `[records]`."""
        ...

    def name(self, number: int) -> str:
        """Returns the name of a record, for errors."""
        ...

    def read(self, numbers: Sequence[int]) -> list[tuple[bytes | Path, int]]:
        """Returns encoded images, or the paths of their files, with their labels."""
        ...


@dataclasses.dataclass(frozen=True)
class Joined:
    """Records of two splits of a source, one after the other."""

    first: Records
    second: Records

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, the same in both."""
        return self.first.class_names

    @property
    def upright(self) -> bool:
        """True if images are turned upright, the same in both."""
        return self.first.upright

    @property
    def labels(self) -> np.ndarray:
        """The labels of both."""
        return np.concatenate([self.first.labels, self.second.labels])

    def name(self, number: int) -> str:
        """Returns the name of a record, for errors."""
        size = len(self.first)
        return (
            self.first.name(number)
            if number < size
            else self.second.name(number - size)
        )

    def read(self, numbers: Sequence[int]) -> list[tuple[bytes | Path, int]]:
        """Reads records of each."""
        size = len(self.first)
        one = [number for number in numbers if number < size]
        other = [number for number in numbers if number >= size]
        found = dict(zip(one, self.first.read(one), strict=True))
        rest = self.second.read([number - size for number in other])
        found |= dict(zip(other, rest, strict=True))
        return [found[number] for number in numbers]
