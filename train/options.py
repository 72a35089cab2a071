"""Fields of a configuration with bounds, and those that a resume may change."""

import dataclasses
from typing import Any, TypeVar, cast

T = TypeVar("T")


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
        """Returns True for an allowed value; never for NaN, if there is a limit."""
        return (
            (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
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
) -> T:
    """Declares a field of a configuration that has bounds, or that a resume may change.

    Args:
      default: the field's default value.
      low: the lowest value allowed.
      above: a number that the value must be above.
      high: the highest value allowed.
      free: True if the value changes no result but for rounding. A resumed run may
        change it, and the command line that reproduces a run leaves it out.
      per_host: True if the hosts of a run may have different values. Such an option is
        also free.

    Returns:
      The dataclass field, typed as its default so that the default is type-checked.
    """
    metadata = {"bounds": Bounds(low, above, high), "free": free or per_host}
    metadata["per_host"] = per_host
    return cast(T, dataclasses.field(default=default, metadata=metadata))
