"""Periods of the actions of the training loop, in steps."""


def every(period: float, step: int) -> int:
    """Returns the first step after `step` at which an action with a period is due.

    The period may be a fraction: each of its multiples is rounded to a step.

    Example:
      >>> every(2.5, 0), every(2.5, 3), every(2.5, 5)
      (3, 5, 8)
    """
    period = min(max(period, 1.0), 2.0**53)  # an infinite period means never
    multiple = int(step / period)
    while int(multiple * period + 0.5) <= step:
        multiple += 1
    return int(multiple * period + 0.5)
