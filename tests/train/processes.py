"""The processes of a run on several hosts: their port, and their ends."""

import random
import re
import socket
import subprocess
from collections.abc import Sequence

from train.config import Hosts

TIMEOUT = 240  # seconds, also of a busy machine


def free_port() -> int:
    """Returns a free port, below those that Linux gives to outgoing connections.

    So it stays free while the processes of a run are started again and again.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError("no free port was found")


def words_of(hosts: Hosts) -> list[str]:
    """Returns the flags of a process by hand."""
    return [
        *("--hosts.coordinator", str(hosts.coordinator)),
        *("--hosts.count", str(hosts.count)),
        *("--hosts.index", str(hosts.index)),
        *("--hosts.timeout", str(hosts.timeout)),
    ]


def wait(
    processes: Sequence[subprocess.Popen], seconds: float = TIMEOUT
) -> tuple[list[int], list[tuple[str, str]]]:
    """Returns the exit codes, and the output and the errors of each process.

    The output is without the lines of Gloo, by which JAX connects CPUs. Its threads
    write them piece by piece, so that one may begin or end within another.
    """
    try:
        texts = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    gloo = re.compile(r"(?m)^(?:.*(?:\[Gloo\]|peer ranks).*|\d*)\n")
    said = [(gloo.sub("", out), err) for out, err in texts]
    return [process.returncode for process in processes], said
