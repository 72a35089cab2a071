"""Fields of a configuration: bounds, paths, and those that a resume may change."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

T = TypeVar("T")

# Values of options that name a file or a folder, with its path as the group.
PATH = "(.+)"
SOURCE = "(?:folder|npz|tar|hf):(.+)"  # of images
WEIGHTS = r"(.+\.safetensors)"  # any other value is the name of a release


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The numbers that an option allows; None for no limit.

    Example:
      >>> 0 in Bounds(low=0, high=1), 0 in Bounds(above=0)
      (True, False)
      >>> str(Bounds(low=0, high=1))
      '0 to 1'
    """

    low: float | None = None
    """The lowest number allowed."""
    above: float | None = None
    """A number that all allowed ones are above."""
    high: float | None = None
    """The highest number allowed."""

    def __contains__(self, value: Any) -> bool:
        """Returns True for allowed values; never for NaN, if there is a limit."""
        return all(
            (self.low is None or x >= self.low)
            and (self.above is None or x > self.above)
            and (self.high is None or x <= self.high)
            for x in (value if isinstance(value, tuple) else (value,))
        )

    def __str__(self) -> str:
        """Returns the limits in words."""
        if self.low is not None and self.high is not None:
            return f"{self.low} to {self.high}"
        limits = {"at least": self.low, "above": self.above, "at most": self.high}
        return " and ".join(f"{k} {v}" for k, v in limits.items() if v is not None)


def option(
    default: T,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    free: bool = False,
    per_host: bool = False,
    path: str | None = None,
) -> T:
    """Declares a field of a configuration, and what the trainer must know of it.

    Args:
      default: the field's default value.
      low: the lowest value allowed.
      above: a number that the value must be above.
      high: the highest value allowed.
      free: True if the value changes no result but for rounding. A resumed run may
        change it, and the command line that reproduces a run leaves it out.
      per_host: True if the hosts of a run may have different values. Such an option is
        also free.
      path: for files and folders, the regular expression of a value that names one; its
        group is the path, to the end of the value. See `map_paths`.

    Returns:
      The dataclass field, typed as its default so that the default is type-checked.
    """
    metadata = {"bounds": Bounds(low, above, high), "free": free or per_host}
    metadata |= {"per_host": per_host, "path": path}
    return cast(T, dataclasses.field(default=default, metadata=metadata))


def map_paths(group: T, change: Callable[[str], str]) -> T:
    """Changes the paths in the options of a group, and of the groups inside it.

    Args:
      group: a dataclass of options.
      change: function from a path to a path.

    Returns:
      A group in which only the paths differ.

    Example:
      >>> @dataclasses.dataclass
      ... class Images:
      ...     source: str = option("folder:photos", path=SOURCE)
      >>> map_paths(Images(), str.upper).source, map_paths(Images("cifar"), str.upper)
      ('folder:PHOTOS', Images(source='cifar'))
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(cast(Any, group)):
        value, pattern = getattr(group, field.name), field.metadata.get("path")
        if dataclasses.is_dataclass(value):
            changes[field.name] = map_paths(value, change)
        elif pattern and value and (found := re.fullmatch(pattern, value)):
            changes[field.name] = value[: found.start(1)] + change(found[1])
    return dataclasses.replace(cast(Any, group), **changes)
