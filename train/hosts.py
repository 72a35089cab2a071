"""The processes of a run on several hosts: joining, agreeing, stopping and failing.

Each host runs the same command. `join` finds the other processes: on TPU pods and under
SLURM and Open MPI from their environment, elsewhere from three options. `compare`
checks that all have the same options. The first process alone makes the folder and
writes the log, and the others learn of its errors. A process that loses another one
ends at once with the code `LOST`, for a restart.
"""

import contextlib
import ctypes
import importlib.util
import os
import random
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax

from shiftjax.errors import InputError
from train import coordination, exits, files
from train.config import Hosts
from train.exits import LOST, TemporaryError
from train.roll_call import RollCall

T = TypeVar("T")

LEAVE_SECONDS = 10  # that the first process waits for the last words of the others
_handlers: list[Any] = []  # that C calls, so they must not be collected
HEARTBEAT_SECONDS = 30  # a process that does not answer for so long is lost


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
    if options.coordinator is not None:
        _check_address(options.coordinator, serves=options.index == 0)
    # At its own timeout, JAX would end the process with a C++ stack trace.
    roll = RollCall()
    late = threading.Timer(options.timeout, _give_up, (options, roll))
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
        raise TemporaryError(
            f"the run's processes cannot connect (this is {_place(options)}): "
            f"{str(error).splitlines()[0]}"
        ) from error
    finally:
        late.cancel()
        roll.close()
    _end_aborts(LOST, f"{_last_line()}\n")


def _end_aborts(code: int, words: str) -> None:
    """Makes an abort by JAX end this process with an exit code and last words.

    JAX aborts from a thread of its own when the first process or a heartbeat is lost.
    Python would handle the signal in its main thread, which is too late.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def end(_: int) -> None:
        os.write(2, words.encode())
        os._exit(code)

    _handlers.append(end)
    ctypes.CDLL(None).signal(signal.SIGABRT, end)


def _last_line() -> str:
    return (
        f"train: process {coordination.index()} of {coordination.count()} stops: it "
        "failed, or lost another one; the same command on every host resumes the run"
    )


def _check_address(address: str, *, serves: bool) -> None:
    """Checks the coordinator's address, with which JAX would fail late or crash.

    Args:
      address: HOST:PORT.
      serves: True in the process that listens there.

    Raises:
      InputError: if it is not HOST:PORT.
      TemporaryError: if the name does not resolve, or the port is in use.
    """
    host, _, port = address.rpartition(":")
    named = host and (":" not in host or host.startswith("["))  # or an IPv6 address
    if not named or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(
            f"--hosts.coordinator {address}: it must be HOST:PORT with a port from 1 "
            f"to {2**16 - 1}, for example first.example.org:8476"
        )
    try:
        socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise TemporaryError(
            f"--hosts.coordinator {address}: the name {host} does not resolve "
            f"({getattr(error, 'strerror', None) or error})"
        ) from error
    if not serves:
        return
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(
            ("", int(port)), family=family, dualstack_ipv6=both
        ).close()
    except OSError as error:
        raise TemporaryError(
            f"--hosts.coordinator {address}: the first process cannot listen on port "
            f"{port} ({error.strerror}): choose another port, the same on every host"
        ) from error


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


def is_first() -> bool:
    """Returns True on the process that writes logs and checkpoints."""
    return coordination.index() == 0


def first_does(action: Callable[[], T]) -> T | None:
    """Runs an action on the first process while the others wait.

    Args:
      action: called without arguments, on the first process only.

    Returns:
      What the action returns; None on the others.

    Raises:
      InputError: on every process, if the action raises it; also TemporaryError.
    """
    result: T | None = None
    failure: InputError | None = None
    if is_first():
        try:
            result = action()
        except InputError as error:
            failure = error
    said, *_ = coordination.exchange(f"{_kind(failure)}: {failure}" if failure else "")
    if said and failure is None:
        kind, _, message = said.partition(": ")
        raise (TemporaryError if kind == "temporary" else InputError)(message)
    if failure is not None:
        raise failure
    return result


def all_do(action: Callable[[], T]) -> T:
    """Runs an action on every process, and fails on all of them if it fails on one.

    Args:
      action: called without arguments.

    Returns:
      What the action returns.

    Raises:
      InputError: if the action raises it; elsewhere with the number of that process.
        TemporaryError alike, if each process that failed has raised it.
    """
    result: Any = None
    failure: InputError | None = None
    try:
        result = action()
    except InputError as error:
        failure = error
    failed = coordination.exchange(_kind(failure))
    if any(failed) and failure is None:
        kinds = set(failed) - {""}
        first = next(i for i, kind in enumerate(failed) if kind)
        error = TemporaryError if kinds == {"temporary"} else InputError
        raise error(f"process {first} failed, see its output")
    if failure is not None:
        raise failure
    return result


def _kind(failure: InputError | None) -> str:
    """Returns "temporary" or "lasting", or "" if nothing has failed."""
    if failure is None:
        return ""
    return "temporary" if isinstance(failure, TemporaryError) else "lasting"


def agreed(value: bool) -> bool:
    """Returns the first process's value, on every process."""
    first, *_ = coordination.exchange("yes" if value else "")
    return first == "yes"


def check_shared(folder: files.Folder | Path) -> None:
    """Checks that every process sees the same folder.

    Raises:
      InputError: on every process, if one does not.
    """
    if coordination.count() == 1:
        return
    number, *_ = coordination.exchange(str(random.getrandbits(31)))
    mark = folder / f".shared-{number}"
    first_does(lambda: _touch(mark))
    seen = coordination.exchange("yes" if mark.exists() else "")
    if is_first():
        mark.unlink(missing_ok=True)
    if not all(seen):
        raise InputError(
            f"--workdir {folder} is not one folder for all hosts: process "
            f"{seen.index('')} does not see a file that the first process wrote "
            "there; put it on a shared file system"
        )


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends this process at once after an error within, if it is one of several.

    A regular exit would wait for processes that may have ended.
    """
    try:
        yield
    except Exception as error:
        if coordination.count() > 1:
            fail(error)
        raise


def fail(error: BaseException) -> NoReturn:
    """Prints an error and ends this process, one of several, at once."""
    if isinstance(error, InputError):
        print(f"train: {error}", file=sys.stderr)
        code = exits.code(error)
    else:
        traceback.print_exception(error)
        print(_last_line(), file=sys.stderr)
        code = LOST
    sys.stdout.flush()
    sys.stderr.flush()
    # The others end too, of which JAX would say more, and abort.
    _end_aborts(code, "")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    coordination.leave(LEAVE_SECONDS)
    os._exit(code)


def _give_up(options: Hosts, roll: RollCall) -> None:
    """Prints which processes did not come in time, and ends this one."""
    missing = roll.missing()
    error = TemporaryError(
        f"the run's processes did not connect within {options.timeout} s (this is "
        f"{_place(options)}): {f'{missing}; ' if missing else ''}start the same "
        "command on every host, and set --hosts.coordinator to an address of the "
        "first that all can reach"
    )
    print(f"train: {error}", file=sys.stderr, flush=True)
    os._exit(exits.code(error))


def _touch(mark: files.Folder | Path) -> None:
    try:
        mark.touch()
    except OSError as error:
        raise InputError(f"{mark.parent} cannot be written: {error}") from error


def _place(options: Hosts) -> str:
    if found := coordination.own_place():
        return f"process {found.index} of {found.count}"
    if options.index is None:
        return "one process of a cluster"
    return f"process {options.index} of {options.count}"
