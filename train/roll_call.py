"""The processes that have come, for the message when another one does not.

While JAX waits for all processes of a run, it tells none of them which are missing. So
each sends its number to the first, by UDP to the port that has the number of the
coordinator's, and the first answers with the numbers it has heard. Nothing else depends
on these datagrams: where they are blocked, only the message at the timeout says less.
"""

import contextlib
import json
import socket
import threading
from collections.abc import Iterable

from train import coordination

PERIOD_SECONDS = 0.5  # between two datagrams of a process
NAMED = 8  # the largest number of processes that are named one by one


class RollCall:
    """A thread that learns which processes have come, until `close`."""

    def __init__(self) -> None:
        self._heard: frozenset[int] = frozenset()
        self._count = 0
        self._closed = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()

    def missing(self) -> str:
        """Says which processes have not come, as far as this one knows.

        Returns:
          A clause such as "processes 1 and 3 are missing"; empty if nothing is known.
        """
        heard = self._heard
        if not self._count:
            return ""  # the process does not know its own place yet
        if 0 not in heard:
            return "process 0 does not answer"
        return name_missing(n for n in range(self._count) if n not in heard)

    def _run(self) -> None:
        while (place := coordination.own_place()) is None:
            if self._closed.wait(PERIOD_SECONDS):
                return
        host, _, port = place.address.rpartition(":")
        self._count = place.count
        with contextlib.suppress(OSError):
            if place.index == 0:
                self._answer(int(port))
            else:
                self._ask(host.strip("[]"), int(port), place.index)

    def _answer(self, port: int) -> None:
        """Listens in the first process, and answers with the numbers that it heard."""
        self._heard = frozenset([0])
        with _listener(port) as listener:
            listener.settimeout(PERIOD_SECONDS)
            while not self._closed.is_set():
                with contextlib.suppress(TimeoutError, ValueError):
                    data, sender = listener.recvfrom(2**16)
                    self._heard |= {int(data)}
                    listener.sendto(json.dumps(sorted(self._heard)).encode(), sender)

    def _ask(self, host: str, port: int, index: int) -> None:
        """Sends this process's number to the first one, and reads the answers."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        while not self._closed.is_set():
            for family, kind, protocol, _, address in found:
                with (
                    contextlib.suppress(OSError, ValueError),
                    socket.socket(family, kind, protocol) as sender,
                ):
                    sender.settimeout(PERIOD_SECONDS)
                    sender.sendto(str(index).encode(), address)
                    self._heard = frozenset(json.loads(sender.recv(2**16)))
            self._closed.wait(PERIOD_SECONDS)


def name_missing(missing: Iterable[int]) -> str:
    """Names missing processes.

    Example:
      >>> name_missing([1]), name_missing([1, 3]), name_missing([])
      ('process 1 is missing', 'processes 1 and 3 are missing', '')
    """
    numbers = [str(n) for n in missing]
    if not numbers:
        return ""
    if len(numbers) == 1:
        return f"process {numbers[0]} is missing"
    if len(numbers) > NAMED:
        rest = f"{len(numbers) - NAMED + 1} more"
        numbers = [*numbers[: NAMED - 1], rest]
    return f"processes {', '.join(numbers[:-1])} and {numbers[-1]} are missing"


def _listener(port: int) -> socket.socket:
    """Opens the first process's port, for IPv6 and IPv4 where there are both."""
    both = socket.has_dualstack_ipv6()
    listener = socket.socket(
        socket.AF_INET6 if both else socket.AF_INET, socket.SOCK_DGRAM
    )
    try:
        if both:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("", port))
    except OSError:
        listener.close()
        raise
    return listener
