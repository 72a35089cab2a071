"""The processes of a run on several hosts: how they meet, agree, stop and fail.

Each host runs the same command. `join` finds the others: on TPU pods, under SLURM and
Open MPI by what these tell, elsewhere by three options. What only one may do - to write
the record, to make the folder - the first does, and the others learn how it went. A
process that loses its peers ends at once with `LOST`, which asks to be restarted.
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

MISTAKE = 2  # a user's
LOST = 75  # sysexits.h's EX_TEMPFAIL: the same command may succeed
HEARTBEAT_SECONDS = 30  # after which a process that does not answer is given up
MESSAGE_BYTES = 4096


def join(options: Hosts) -> None:
    """Meets the run's other processes, if there are any; call it before any array.

    Args:
      options: where they meet; nothing where the cluster says it.

    Raises:
      InputError: if the options do not fit together, or name no place to meet. If not
        all come in time, the process says so and ends.
    """
    given = {
        "--hosts.coordinator": options.coordinator,
        "--hosts.count": options.count,
        "--hosts.index": options.index,
    }
    missing = [flag for flag, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise InputError(f"{missing[0]} is missing: {', '.join(given)} go together")
    told = in_cluster(os.environ)
    if options.index is not None and options.count is not None:
        if not 0 <= options.index < options.count:
            raise InputError(
                f"--hosts.index {options.index}: of {options.count} processes it must "
                f"be 0 to {options.count - 1}"
            )
    elif not (told or on_tpu(Path("/dev"))):
        return
    if jax.distributed.is_initialized():
        return
    # JAX would end the process by itself, with a stack of C++.
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
        if isinstance(error, ValueError) and missing and not told:
            return  # a host of TPUs by itself, as in a notebook
        raise InputError(
            f"the run's processes cannot meet (this is {_place(options)}): "
            f"{str(error).splitlines()[0]}"
        ) from error
    finally:
        late.cancel()


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether the environment tells of several processes, in words that JAX reads.

    Example:
      >>> in_cluster({}), in_cluster({"TPU_WORKER_HOSTNAMES": "a,b,c,d"})
      (False, True)
    """
    sizes = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
    if any(environment.get(name, "1") not in ("", "0", "1") for name in sizes):
        return True
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def on_tpu(devices: Path) -> bool:
    """Whether this is a host of TPUs: its peers are known to the metadata server."""
    found = [*devices.glob("accel[0-9]*"), *devices.glob("vfio/[0-9]*")]
    return bool(found) and importlib.util.find_spec("libtpu") is not None


def count() -> int:
    """Returns how many processes there are."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this is the process that writes what there is one of."""
    return jax.process_index() == 0


def first_does(action: Callable[[], object]) -> None:
    """Has the first process do something while the others wait.

    Raises:
      InputError: on every host, if it is raised on the first.
    """
    failure: InputError | None = None
    if is_first():
        try:
            action()
        except InputError as error:
            failure = error
    if count() > 1:
        said = _share(str(failure).encode() if failure else b"")
        if said and failure is None:
            raise InputError(said.decode(errors="replace"))
    if failure is not None:
        raise failure


def all_do(action: Callable[[], object]) -> None:
    """Has every process do something, and fails on each if it fails on one.

    Raises:
      InputError: with the number of the process, if there are several.
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
            raise InputError(f"process {process} failed, see what it says")
    if failure is not None:
        raise failure


def agreed(value: bool) -> bool:
    """Returns what the first process holds to be true."""
    if count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def check_shared(folder: Path) -> None:
    """Checks that every process sees the same folder.

    Raises:
      InputError: if one does not, on all.
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
            f"{int(seen.argmin())} does not see what the first has written there; put "
            "it on a shared file system"
        )


def fail(error: BaseException) -> NoReturn:
    """Ends this process, one of several, at once.

    To leave in good order would be to wait for those that are gone.
    """
    if isinstance(error, InputError):
        print(f"train: {error}", file=sys.stderr)
        code = MISTAKE
    else:
        traceback.print_exception(error)
        print(
            f"train: process {jax.process_index()} of {count()} stops: it failed, or "
            "lost another; the same command on every host resumes",
            file=sys.stderr,
        )
        code = LOST
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _give_up(options: Hosts) -> None:
    """Ends the process, which waits for others in vain."""
    error = InputError(
        f"the run's processes did not meet within {options.timeout} s (this is "
        f"{_place(options)}): start the same command on every host, and let "
        "--hosts.coordinator be an address of the first that all can reach"
    )
    print(f"train: {error}", file=sys.stderr, flush=True)
    os._exit(MISTAKE)


def _touch(mark: Path) -> None:
    try:
        mark.touch()
    except OSError as error:
        raise InputError(f"{mark.parent} cannot be written: {error}") from error


def _share(message: bytes) -> bytes:
    """Returns the first process's message."""
    buffer = np.zeros(MESSAGE_BYTES, np.uint8)
    kept = np.frombuffer(message[:MESSAGE_BYTES], np.uint8)
    buffer[: len(kept)] = kept
    shared = np.asarray(multihost_utils.broadcast_one_to_all(buffer))
    return shared.astype(np.uint8).tobytes().rstrip(b"\0")


def _place(options: Hosts) -> str:
    if options.index is None:
        return "one of a cluster's"
    return f"process {options.index} of {options.count}"
