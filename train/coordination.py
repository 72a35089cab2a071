"""Messages between the processes of a run, without their devices.

A collective needs equal programs on equally many devices of each process. These
messages are how this is checked first, so they go through the coordination service to
which the processes connect in `jax.distributed.initialize`. JAX has no public name for
its store of keys and values; this is the one module that uses the private one.
"""

import contextlib
import dataclasses
import itertools
import time
from typing import Any

import jax
from jax._src import distributed

WAIT_SECONDS = 3600.0  # for a process that is slow; a lost one is noticed before

_calls = itertools.count()  # equal in all processes, which make the same calls


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of this process in a run that it joins.

    Attributes:
      address: HOST:PORT of the coordination service.
      count: the number of processes.
      index: the number of this process.
    """

    address: str
    count: int
    index: int


def own_place() -> Place | None:
    """Returns this process's place, also while it waits for others; None before."""
    state = distributed.global_state
    if state.client is None or state.coordinator_address is None:
        return None
    return Place(state.coordinator_address, state.num_processes, state.process_id)


def count() -> int:
    """Returns the number of connected processes, without starting the devices."""
    return distributed.global_state.num_processes


def index() -> int:
    """Returns the number of this process, without starting the devices."""
    return distributed.global_state.process_id


def exchange(text: str, seconds: float = WAIT_SECONDS) -> list[str]:
    """Returns the texts of all processes, by their number.

    Args:
      text: the text of this process.
      seconds: the longest time to wait for the others.
    """
    if count() == 1:
        return [text]
    client, name = _client(), f"shiftjax/{next(_calls)}"
    client.key_value_set(f"{name}/{index()}", text)
    names = [f"{name}/{process}" for process in range(count())]
    return [client.blocking_key_value_get(name, round(1e3 * seconds)) for name in names]


def meet(seconds: float = WAIT_SECONDS) -> None:
    """Waits until every process has called it.

    Args:
      seconds: the longest time to wait for the others.
    """
    if count() > 1:
        name = f"shiftjax/{next(_calls)}"
        _client().wait_at_barrier(name, round(1e3 * seconds))


def leave(seconds: float) -> None:
    """Keeps the first process, which hosts the service, until the others leave.

    JAX aborts a process that loses the service, whatever that process has to print.

    Args:
      seconds: the longest time to wait for the others.
    """
    client, end = _client(), time.monotonic() + seconds
    if client is None:
        return
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if index() > 0:
            client.key_value_set(f"shiftjax/left/{index()}", "")
            return
        for process in range(1, count()):
            left = max(end - time.monotonic(), 0.001)
            name = f"shiftjax/left/{process}"
            client.blocking_key_value_get(name, round(1e3 * left))


def _client() -> Any:
    """Returns JAX's client of the service; None without one."""
    return distributed.global_state.client
