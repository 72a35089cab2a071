"""The lock of a run's folder in an object store: an object that is kept fresh.

A store cannot lock. The process that trains writes the object again and again, with a
new time. One that finds it waits: if the object changes, the folder is in use, and if
it does not, its writer was killed. No clocks of different machines are compared. Of
processes that find no object at the same time, the last one to write it has the lock.
A process that finds that another one has its lock, as after a suspension, ends.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from typing import Any

from train import exits, files
from train.exits import TemporaryError
from train.machine import is_running

REFRESH_SECONDS = 10.0
STALE_SECONDS = 45.0  # without a change, after which the writer is taken for dead
LOOK_SECONDS = 1.0  # between two looks at the object
ABANDONED_SECONDS = 300.0  # by the clocks, after which a lock is not displayed


class StoreLock:
    """A lock, held until `close`. The process ends if another one takes it.

    Args:
      path: the object.

    Raises:
      TemporaryError: if another process holds it.
      OSError: if it cannot be written.
    """

    def __init__(self, path: files.Folder) -> None:
        self._path, self._token = path, secrets.token_hex(8)
        _wait_until_free(path)
        self._refresh()
        time.sleep(LOOK_SECONDS)  # another process may have found it free too
        found = _read(path)
        if found is not None and not self._is_own(found):
            raise _in_use(path, found)
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Releases the lock."""
        self._released.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # a later process waits, as after a kill
            if self._is_own(_read(self._path)):
                self._path.unlink(missing_ok=True)

    def _keep_fresh(self) -> None:
        while not self._released.wait(REFRESH_SECONDS):
            with contextlib.suppress(Exception):  # the next one may succeed
                found = _read(self._path)
                if not self._is_own(found):
                    _end(_lost(self._path, found))
                self._refresh()

    def _is_own(self, found: dict[str, Any] | None) -> bool:
        """Returns True if the object is still what this process wrote."""
        return found is not None and found.get("token") == self._token

    def _refresh(self) -> None:
        facts = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "parent": os.getppid(),
            "token": self._token,
            "time": time.time(),
        }
        files.write(self._path, json.dumps(facts).encode())


def holder_facts(path: files.Folder) -> dict[str, Any] | None:
    """Returns what the holder of a lock wrote about itself, without waiting.

    This is for display and for the choice of the next run. The process that then trains
    compares no clocks.

    Args:
      path: the object.

    Returns:
      None if there is no lock, or its holder has ended, as far as can be seen at once.
    """
    found = _read(path)
    if found is None or _has_ended(found):
        return None
    return None if time.time() - found["time"] > ABANDONED_SECONDS else found


def _wait_until_free(path: files.Folder) -> None:
    """Returns when no process keeps the object fresh.

    Raises:
      TemporaryError: if one does.
    """
    found, end = _read(path), time.monotonic() + STALE_SECONDS
    while found is not None and not _has_ended(found) and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
        again = _read(path)
        if again is not None and again != found:
            raise _in_use(path, again)
        found = again


def _in_use(path: files.Folder, holder: dict[str, Any]) -> TemporaryError:
    """Builds the error for a folder in which another process trains."""
    return TemporaryError(
        f"{path.parent} is in use: process {holder.get('process')} on "
        f"{holder.get('host')} trains in it"
    )


def _lost(path: files.Folder, holder: dict[str, Any] | None) -> TemporaryError:
    """Builds the error for a lock that another process has taken."""
    by = "is gone"
    if holder is not None:
        by = f"is that of process {holder.get('process')} on {holder.get('host')}"
    return TemporaryError(
        f"the lock of {path.parent} {by}, as after {STALE_SECONDS:.0f} s in which this "
        "process was suspended or could not reach the store: it stops without saving, "
        "and the same command resumes the run"
    )


def _end(error: TemporaryError) -> None:
    """Prints an error and ends this process at once, before it writes anything."""
    try:
        print(f"train: {error}", file=sys.stderr, flush=True)
    finally:  # also if nobody can read it any more
        os._exit(exits.code(error))


def _read(path: files.Folder) -> dict[str, Any] | None:
    """Returns the contents of the object; None if there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def _has_ended(holder: dict[str, Any]) -> bool:
    """Returns True if the holder was a process of this machine that has ended."""
    here = holder.get("host") == socket.gethostname()
    return here and not is_running(int(holder["process"]))
