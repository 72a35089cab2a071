"""Being asked to stop, by a signal."""

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Notes SIGTERM and Ctrl-C, so that the loop can save and stop by itself.

    A second signal ends the process at once. Outside the main thread, where Python
    allows no handlers, it notes nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._before[number])
