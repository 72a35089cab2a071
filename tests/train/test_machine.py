"""Facts about the machine and the versions, and the log of a run's starts."""

import json
import re
import subprocess
import sys
import types
from subprocess import PIPE

from train import machine


def test_the_machine_is_described():
    facts = machine.machine()
    assert facts["cores"] >= 1
    assert facts["cpu"]
    for package in ("jax", "flax"):
        assert facts[package] == __import__(package).__version__


def test_the_commit_is_that_of_the_project(monkeypatch):
    """Marked where the sources are changed; none outside a checkout."""
    done = subprocess.run(
        ["git", "-C", str(machine.ROOT), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    expected = done.stdout.strip() or None
    assert (machine.commit() or "").removesuffix("-dirty") == (expected or "")
    answers = {"ls-files": "shiftjax/shift.py", "rev-parse": "abc", "status": " M x"}
    monkeypatch.setattr(machine, "git", lambda word, *_: answers[word])
    assert machine.commit() == "abc-dirty"
    answers["ls-files"] = None
    assert machine.commit() is None


def test_starts_are_noted_and_told(tmp_path):
    """Each kind of machine once, in order."""
    assert machine.hardware(tmp_path) == []
    kinds = {"cpu": 1, "NVIDIA H200": 1, "TPU v5e": 4}
    for step, kind in enumerate(["cpu", "NVIDIA H200", "NVIDIA H200", "TPU v5e"]):
        devices = [types.SimpleNamespace(device_kind=kind)] * kinds[kind]
        machine.note_start(tmp_path, step, devices)
    first, *others = machine.hardware(tmp_path)
    assert re.fullmatch(r"\d+ cores? of .+", first)
    assert others == ["1 NVIDIA H200", "4 TPU v5e"]
    lines = (tmp_path / machine.STARTS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]


def test_a_broken_start_is_skipped_with_a_warning(tmp_path, caplog):
    devices = [types.SimpleNamespace(device_kind="cpu")]
    machine.note_start(tmp_path, 0, devices)
    with (tmp_path / machine.STARTS).open("a") as file:
        file.write('{"step": 3, "dev\n')
    machine.note_start(tmp_path, 7, devices)
    assert [start["step"] for start in machine.starts(tmp_path)] == [0, 7]
    assert not caplog.messages  # it was the last line, as of a process that was killed
    path = tmp_path / machine.STARTS
    path.write_text("\0\n" + path.read_text())
    assert [start["step"] for start in machine.starts(tmp_path)] == [0, 7]
    assert caplog.messages == [
        f"line 1 of {path} is skipped: it is not a JSON object with a step"
    ]


def test_a_process_runs_until_it_has_ended():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=PIPE) as process:
        assert machine.is_running(process.pid)
        process.communicate(b"\n")
        assert not machine.is_running(process.pid)
    assert machine.is_running(1)  # maybe of another user
