"""Requests to stop: a signal, or a notice of preemption from the scheduler."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Records SIGTERM, Ctrl-C and SIGHUP, so that the loop can save and stop by itself.

    A second signal ends the process at once. Outside the main thread, where Python
    allows no signal handlers, signals are not recorded.

    A terminal that is closed sends SIGHUP, often more than once, which has no further
    effect. Where it is ignored, as under nohup, it stays ignored.

    In a run of several processes, a signal to one stops all after the same dispatch.
    They agree through JAX's preemption service, which receives SIGTERM and the notices
    of cloud providers; the other signals are sent to it as SIGTERM.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        # jax.process_count() would start the accelerators, so it is not called.
        self._several = jax.distributed.is_initialized()
        self._asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            own = [signal.SIGINT] if self._several else [signal.SIGTERM, signal.SIGINT]
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
                own.append(signal.SIGHUP)
            for number in own:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def reached(self) -> bool:
        """Returns True to stop now; every process calls it once after each dispatch."""
        if not self._several:
            return self.signal is not None
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
            _leave_terminal()
        else:
            signal.signal(number, self._before[number])
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)


def _leave_terminal() -> None:
    """Discards the output from now on, but for files.

    A write to a terminal that is gone fails, and one to a pipe whose reader has ended.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        if not os.path.isfile(f"/dev/fd/{output}"):
            os.dup2(nowhere, output)
    os.close(nowhere)


def stop_with_input(say: Callable[[str], None]) -> None:
    """Sends this process SIGTERM when its standard input ends.

    If that is a pipe, it ends when the parent process closes it or ends, even if the
    parent is killed.

    Args:
      say: called with a message before the signal.
    """

    def watch() -> None:
        while os.read(0, 1024):  # not sys.stdin, whose lock a waiting thread would hold
            pass
        say("standard input has ended: saving the state and stopping")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="stop_with_input", daemon=True).start()
