"""The message about processes that do not come."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.processes import free_port, wait
from train import coordination, roll_call
from train.coordination import Place
from train.exits import LOST
from train.roll_call import RollCall, name_missing

ROOT = Path(__file__).parents[2]
JOIN = """
import sys
from train import hosts
from train.config import Hosts

address, count, index, seconds = sys.argv[1:]
hosts.join(Hosts(address, int(count), int(index), int(seconds)))
print("joined")
"""


def start(address, count, index, seconds):
    words = [sys.executable, "-c", JOIN, address, *map(str, (count, index, seconds))]
    return subprocess.Popen(
        words,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_all_that_came_name_those_that_did_not():
    address = f"localhost:{free_port()}"
    codes, texts = wait([start(address, 5, index, 25) for index in (0, 2, 4)])
    assert codes == [LOST, LOST, LOST] == [75, 75, 75], texts
    for index, (_, errors) in zip((0, 2, 4), texts, strict=True):
        assert errors == (
            f"train: the run's processes did not connect within 25 s (this is process "
            f"{index} of 5): processes 1 and 3 are missing; start the same command on "
            "every host, and set --hosts.coordinator to an address of the first that "
            "all can reach\n"
        )


def test_a_first_process_that_did_not_come_is_named():
    codes, texts = wait([start(f"localhost:{free_port()}", 3, 1, 15)])
    assert codes == [LOST]
    wanted = "15 s (this is process 1 of 3): process 0 does not answer; start the same"
    assert wanted in texts[0][1]


@pytest.fixture
def place(monkeypatch):
    """Returns a function that makes a roll call of a process at a place."""
    calls = []
    monkeypatch.setattr(roll_call, "PERIOD_SECONDS", 0.02)

    def make(index, count, port):
        found = Place(f"localhost:{port}", count, index)
        monkeypatch.setattr(coordination, "own_place", lambda: found)
        call = RollCall()
        calls.append(call)
        while not call.missing():  # until its thread has read the place
            pass
        return call

    yield make
    for call in calls:
        call.close()


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_processes_are_crossed_out_as_they_come(place):
    port = free_port()
    first = place(0, 4, port)
    assert first.missing() == "processes 1, 2 and 3 are missing"
    third = place(2, 4, port)
    wait_until(
        lambda: first.missing() == third.missing() == "processes 1 and 3 are missing"
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.sendto(b"not a number", ("127.0.0.1", port))  # of another program
    place(1, 4, port)
    wait_until(lambda: first.missing() == third.missing() == "process 3 is missing")


def test_a_port_that_is_taken_only_shortens_the_message(place):
    port = free_port()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as taken:
        taken.bind(("", port))
        assert place(0, 2, port).missing() == "process 1 is missing"


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ([3], "process 3 is missing"),
        (range(1, 9), "processes 1, 2, 3, 4, 5, 6, 7 and 8 are missing"),
        (range(1, 256), "processes 1, 2, 3, 4, 5, 6, 7 and 248 more are missing"),
    ],
)
def test_many_are_not_named_one_by_one(missing, text):
    assert name_missing(missing) == text
