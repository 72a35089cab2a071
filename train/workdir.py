"""The folder of a run, in which one process at a time trains one run."""

import contextlib
import dataclasses
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import Any

from shiftjax.errors import InputError
from train import config as config_file
from train import files, store_lock
from train.config import Config
from train.exits import TemporaryError
from train.logging.records import read_test
from train.machine import is_running

LOCK = ".lock"
CHECKPOINTS = "checkpoints"
TRIES, PAUSE_SECONDS = 5, 0.1


def open_workdir(config: Config) -> contextlib.AbstractContextManager[Any]:
    """Makes the folder of a run, or checks that it holds this run, and locks it.

    The run may have more epochs than before, if these change no learning rate.

    Args:
      config: the run's configuration, which is written to the folder.

    Returns:
      A context in which the folder is locked. Its value is None if the folder cannot be
      written and holds the finished run, which can still be read.

    Raises:
      InputError: if it holds another run or cannot be written.
      TemporaryError: if it is in use. A file server may keep the lock of a host that
        was lost for a while.
    """
    workdir = files.folder(config.workdir)
    with contextlib.ExitStack() as stack:
        try:
            _check(workdir, config)
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_lock(workdir))
            _check(workdir, config)  # another process may have written it since
            config_file.save_config(config, workdir)
            return stack.pop_all()
        except InputError:
            raise
        except Exception as error:
            if not (isinstance(error, OSError) or files.in_store(workdir)):
                raise
            if _is_finished(workdir, config):
                return contextlib.nullcontext()
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"--workdir {workdir} cannot be written: {reason}"
            ) from error


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that trains in a folder.

    Attributes:
      machine: the host name; empty if it is not known.
      parent: the id of the parent process; 0 if it is not known.
    """

    machine: str = ""
    parent: int = 0

    def is_orphan(self) -> bool:
        """Returns True if it runs on this machine and its parent has ended."""
        here = self.machine == socket.gethostname() and self.parent > 0
        return here and not is_running(self.parent)


def holder(workdir: files.Folder | Path) -> Holder | None:
    """Returns the process that trains in a folder; None if none does."""
    path = files.folder(workdir) / LOCK
    if files.in_store(path):
        facts = store_lock.holder_facts(path)
        return None if facts is None else Holder(facts["host"], facts.get("parent", 0))
    if not path.exists():
        return None
    with Path(path).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            machine, _, parent = file.read().partition(" ")
            return Holder(machine, int(parent)) if parent else Holder()
    return None


def _check(workdir: files.Folder, new: Config) -> None:
    """Checks that a folder holds no run, or one that can resume with a configuration.

    Raises:
      InputError: if another option than the number of epochs differs, or if a larger
        number of epochs changes the learning rate of the steps that are done.
    """
    if not (workdir / config_file.FILE).exists():
        return
    old = config_file.load_config(workdir)
    changed = config_file.differences(old, dataclasses.replace(new, epochs=old.epochs))
    if not changed and new.epochs > old.epochs:
        if new.schedule.is_open_ended:
            return
        raise InputError(
            f"--epochs {new.epochs}: the {new.schedule.kind} schedule of the run in "
            f"{new.workdir} ends after {old.epochs}; release its weights by `python -m "
            "train release`, and begin a run in another --workdir with --init"
        )
    if changed := config_file.differences(old, new):
        raise InputError(
            f"{new.workdir} holds another run: {'; '.join(changed)}. Give the same "
            "options to resume it, or another --workdir"
        )


def _is_finished(workdir: files.Folder, config: Config) -> bool:
    """Returns True if a folder holds a finished run of this length."""
    if not (workdir / config_file.FILE).exists() or read_test(workdir) is None:
        return False
    return config_file.load_config(workdir).epochs == config.epochs


def _lock(workdir: files.Folder) -> contextlib.AbstractContextManager[Any]:
    """Locks the folder for a context; raises if it is locked."""
    if files.in_store(workdir):
        return contextlib.closing(store_lock.StoreLock(workdir / LOCK))
    path = Path(workdir / LOCK)
    file = path.open("a")
    for _ in range(TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(PAUSE_SECONDS)  # `holder` locks it for a moment too
            continue
        file.truncate(0)
        file.write(f"{socket.gethostname()} {os.getppid()}")
        file.flush()
        return file
    file.close()
    raise TemporaryError(f"{workdir} is in use: another process trains in it")
