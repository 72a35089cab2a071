"""Being asked to stop, by a signal or by the scheduler's notice of preemption."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Notes SIGTERM and Ctrl-C, so that the loop can save and stop by itself.

    A second signal ends the process at once. Outside the main thread, where Python
    allows no handlers, it notes nothing.

    Of processes that have met, a signal to one stops all after the same dispatch: they
    agree on it by JAX's service, to which SIGTERM and the notices of cloud providers
    come. Ctrl-C is handed to it as SIGTERM.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        # Whether there are several is not asked: that would start the accelerators.
        self._several = jax.distributed.is_initialized()
        self._asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            own = [signal.SIGINT] if self._several else [signal.SIGTERM, signal.SIGINT]
            for number in own:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def reached(self) -> bool:
        """Whether to stop now; every process asks once after each dispatch."""
        if not self._several:
            return self.signal is not None
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._before[number])
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)


def stop_with_input(say: Callable[[str], None]) -> None:
    """Sends this process SIGTERM when its standard input ends.

    That of a process that was started with a pipe ends when the pipe is closed, also by
    the end of the process that holds it, however it ended.

    Args:
      say: called with a line before the signal.
    """

    def watch() -> None:
        while os.read(0, 1024):  # not sys.stdin, which a waiting thread would lock
            pass
        say("standard input has ended: the run saves its state and stops")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="stop_with_input", daemon=True).start()
