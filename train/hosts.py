"""The processes of a run on several hosts: joining, agreeing, stopping and failing.

Each host runs the same command. `join` finds the other processes: on TPU pods and under
SLURM and Open MPI from their environment, elsewhere from three options. The first
process alone makes the folder and writes the log, and the others learn of its errors. A
process that loses another one ends at once with the code `LOST`, for a restart.
"""

import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from shiftjax.errors import InputError
from train.config import Hosts

MISTAKE = 2  # the exit code after a user's mistake
LOST = 75  # sysexits.h's EX_TEMPFAIL: the same command may succeed
HEARTBEAT_SECONDS = 30  # a process that does not answer for so long is lost
MESSAGE_BYTES = 4096


def join(options: Hosts) -> None:
    """Joins the run's other processes, if any; to be called before the first array.

    Args:
      options: the address and number of this process; empty in a known cluster.

    Raises:
      InputError: if the options contradict each other, or the processes cannot connect.
        After the timeout, the process prints an error and exits.
    """
    given = {
        "--hosts.coordinator": options.coordinator,
        "--hosts.count": options.count,
        "--hosts.index": options.index,
    }
    missing = [flag for flag, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise InputError(f"{missing[0]} is missing: {', '.join(given)} go together")
    clustered = in_cluster(os.environ)
    if options.index is not None and options.count is not None:
        if not 0 <= options.index < options.count:
            raise InputError(
                f"--hosts.index {options.index}: of {options.count} processes it must "
                f"be 0 to {options.count - 1}"
            )
    elif not (clustered or on_tpu(Path("/dev"))):
        return
    if jax.distributed.is_initialized():
        return
    # At its own timeout, JAX would end the process with a C++ stack trace.
    late = threading.Timer(options.timeout, _give_up, (options,))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            options.coordinator,
            options.count,
            options.index,
            initialization_timeout=options.timeout + HEARTBEAT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ValueError) and missing and not clustered:
            return  # a single TPU host, as in a notebook
        raise InputError(
            f"the run's processes cannot connect (this is {_place(options)}): "
            f"{str(error).splitlines()[0]}"
        ) from error
    finally:
        late.cancel()


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Returns True if environment variables that JAX reads name several processes.

    Example:
      >>> in_cluster({}), in_cluster({"TPU_WORKER_HOSTNAMES": "a,b,c,d"})
      (False, True)
    """
    sizes = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
    if any(environment.get(name, "1") not in ("", "0", "1") for name in sizes):
        return True
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def on_tpu(devices: Path) -> bool:
    """Returns True on a TPU host, whose peers the metadata server knows."""
    found = [*devices.glob("accel[0-9]*"), *devices.glob("vfio/[0-9]*")]
    return bool(found) and importlib.util.find_spec("libtpu") is not None


def count() -> int:
    """Returns the number of processes."""
    return jax.process_count()


def is_first() -> bool:
    """Returns True on the process that writes logs and checkpoints."""
    return jax.process_index() == 0


def first_does(action: Callable[[], object]) -> None:
    """Runs an action on the first process while the others wait.

    Args:
      action: called without arguments, on the first process only.

    Raises:
      InputError: on every process, if the action raises it.
    """
    failure: InputError | None = None
    if is_first():
        try:
            action()
        except InputError as error:
            failure = error
    if count() > 1:
        message = _share(str(failure).encode() if failure else b"")
        if message and failure is None:
            raise InputError(message.decode(errors="replace"))
    if failure is not None:
        raise failure


def all_do(action: Callable[[], object]) -> None:
    """Runs an action on every process, and fails on all of them if it fails on one.

    Args:
      action: called without arguments.

    Raises:
      InputError: if the action raises it; elsewhere with the number of that process.
    """
    failure: InputError | None = None
    try:
        action()
    except InputError as error:
        failure = error
    if count() > 1:
        failed = np.asarray(multihost_utils.process_allgather(failure is not None))
        if failed.any() and failure is None:
            process = int(failed.argmax())
            raise InputError(f"process {process} failed, see its output")
    if failure is not None:
        raise failure


def agreed(value: bool) -> bool:
    """Returns the first process's value, on every process."""
    if count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def check_shared(folder: Path) -> None:
    """Checks that every process sees the same folder.

    Raises:
      InputError: on every process, if one does not.
    """
    if count() == 1:
        return
    number = np.random.default_rng().integers(2**31)
    number = int(multihost_utils.broadcast_one_to_all(number))
    mark = folder / f".shared-{number}"
    first_does(lambda: _touch(mark))
    seen = np.asarray(multihost_utils.process_allgather(mark.exists())).ravel()
    if is_first():
        mark.unlink(missing_ok=True)
    if not seen.all():
        raise InputError(
            f"--workdir {folder} is not one folder for all hosts: process "
            f"{int(seen.argmin())} does not see a file that the first process wrote "
            "there; put it on a shared file system"
        )


def fail(error: BaseException) -> NoReturn:
    """Prints an error and ends this process, one of several, at once.

    A regular exit would wait for processes that may have ended.
    """
    if isinstance(error, InputError):
        print(f"train: {error}", file=sys.stderr)
        code = MISTAKE
    else:
        traceback.print_exception(error)
        print(
            f"train: process {jax.process_index()} of {count()} stops: it failed, or "
            "lost another one; the same command on every host resumes the run",
            file=sys.stderr,
        )
        code = LOST
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _give_up(options: Hosts) -> None:
    """Prints that other processes did not come in time, and ends this one."""
    error = InputError(
        f"the run's processes did not connect within {options.timeout} s (this is "
        f"{_place(options)}): start the same command on every host, and set "
        "--hosts.coordinator to an address of the first that all can reach"
    )
    print(f"train: {error}", file=sys.stderr, flush=True)
    os._exit(MISTAKE)


def _touch(mark: Path) -> None:
    try:
        mark.touch()
    except OSError as error:
        raise InputError(f"{mark.parent} cannot be written: {error}") from error


def _share(message: bytes) -> bytes:
    """Returns the first process's message, on every process."""
    buffer = np.zeros(MESSAGE_BYTES, np.uint8)
    kept = np.frombuffer(message[:MESSAGE_BYTES], np.uint8)
    buffer[: len(kept)] = kept
    shared = np.asarray(multihost_utils.broadcast_one_to_all(buffer))
    return shared.astype(np.uint8).tobytes().rstrip(b"\0")


def _place(options: Hosts) -> str:
    if options.index is None:
        return "one process of a cluster"
    return f"process {options.index} of {options.count}"
