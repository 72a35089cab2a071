"""The lock of a run's folder in an object store: an object that is kept fresh.

A store cannot lock. The process that trains writes the object again and again, with a
new time. One that finds it waits: if the object changes, the folder is in use, and if
it does not, its writer was killed. No clocks of different machines are compared.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from types import TracebackType
from typing import Any, Self

from shiftjax.errors import InputError
from train import files

REFRESH_SECONDS = 10.0
STALE_SECONDS = 45.0  # without a change, after which the writer is taken for dead


class StoreLock:
    """A lock, held until `close`.

    Args:
      path: the object.

    Raises:
      InputError: if another process holds it.
      OSError: if it cannot be written.
    """

    def __init__(self, path: files.Folder) -> None:
        self._path, self._token = path, secrets.token_hex(8)
        _wait_until_free(path)
        self._refresh()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Releases the lock."""
        self._released.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # a later process waits, as after a kill
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _keep_fresh(self) -> None:
        while not self._released.wait(REFRESH_SECONDS):
            with contextlib.suppress(OSError):  # the next one may succeed
                self._refresh()

    def _refresh(self) -> None:
        facts = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "token": self._token,
            "time": time.time(),
        }
        files.write(self._path, json.dumps(facts).encode())


def _wait_until_free(path: files.Folder) -> None:
    """Returns when no process keeps the object fresh.

    Raises:
      InputError: if one does.
    """
    found, end = _read(path), time.monotonic() + STALE_SECONDS
    while found is not None and not _has_ended(found) and time.monotonic() < end:
        time.sleep(STALE_SECONDS / 45)
        again = _read(path)
        if again is not None and again != found:
            raise InputError(
                f"{path.parent} is in use: process {again.get('process')} on "
                f"{again.get('host')} trains in it"
            )
        found = again


def _read(path: files.Folder) -> dict[str, Any] | None:
    """Returns the contents of the object; None if there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def _has_ended(holder: dict[str, Any]) -> bool:
    """Returns True if the holder was a process of this machine that has ended."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(holder["process"]), 0)  # signal 0 only checks that it exists
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
