"""Programs for the workers of the tests, which compute nothing."""

import os
import signal
import time

from benchmarks.cases import Program


def sleep(seconds: float, **facts: int) -> Program:
    """Takes as long as it is told to."""
    return Program(lambda: time.sleep(seconds), lambda _: None, facts=facts)


def refuse(reason: str) -> Program:
    """Cannot be built."""
    raise ValueError(f"{reason}\nand more")


def tire(calls: int) -> Program:
    """Fails after so many calls."""
    left = calls

    def call() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise MemoryError("tired")

    return Program(call, lambda _: None)


def die() -> Program:
    """Takes its process with it."""
    os.write(2, b"killed by nobody\n")
    os._exit(3)


def be_killed() -> Program:
    """Ends as the kernel ends what needs too much memory, and says nothing of it."""
    os.write(2, b"a warning of before\n")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError
