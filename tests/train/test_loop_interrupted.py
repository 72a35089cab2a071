"""Interrupted runs end as if they had not been interrupted."""

import dataclasses
import os
import pty
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from shiftjax.errors import InputError
from tests.train.runs import (
    EPOCH,
    STEPS,
    checkpoint,
    copy_of,
    lines,
    places,
    raw,
    saved_steps,
)
from train.config import Schedule
from train.evaluation import evaluate_run
from train.loop import StopRequest

pytestmark = pytest.mark.usefixtures("quick")

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds for what takes ten on a quiet machine


@pytest.fixture
def _interruptible():
    """SIGINT as in a terminal: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_a_signal_is_noted_and_a_second_one_is_not_held_up():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert stop.signal is None
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def _terminal():
    """SIGHUP as in a terminal, not as under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_terminal", "capfd")
def test_a_closed_terminal_is_noted_and_may_be_told_of_again():
    """By the kernel and by the shell, within a moment."""
    with StopRequest() as stop:
        handler = signal.getsignal(signal.SIGHUP)
        assert callable(handler)  # by default it would end the process
        for _ in range(2):
            signal.raise_signal(signal.SIGHUP)
            assert stop.signal == signal.SIGHUP
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


@pytest.mark.usefixtures("_terminal")
def test_under_nohup_a_closed_terminal_is_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.signal is None


@pytest.mark.parametrize("open_output", [pty.openpty, os.pipe])
def test_output_that_nobody_reads_any_more_is_no_error(open_output):
    """Else a run would end before it has saved, at a line that cannot be printed."""
    code = (
        "import signal; from train.stopping import StopRequest\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may be under nohup\n"
        "with StopRequest() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while not stop.reached(): signal.sigtimedwait([], 0.1)\n"
        "print('saved', flush=True)"
    )
    ours, theirs = open_output()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=theirs, stderr=theirs, cwd=ROOT
    )
    os.close(theirs)
    try:
        assert b"ready" in os.read(ours, 100)
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def test_outside_the_main_thread_no_signal_is_noted():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def enter() -> None:
        with StopRequest() as stop:
            found.append((stop.signal, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(None, before)]


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 7), (signal.SIGINT, 11)])
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(
    finished, run, tmp_path, stop_at, number, step
):
    """In the middle of an epoch (of 2.5 steps) and of a line of the record."""
    config = dataclasses.replace(finished.config, workdir=str(tmp_path / "run"))
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    stop_at(step, number)
    outcome, _ = run(config)
    assert not outcome.finished
    assert outcome.steps == int(outcome.state.step) == step
    assert outcome.test == {}
    assert max(saved_steps(config.workdir)) == step
    assert raw(checkpoint(config.workdir)) == raw(outcome.state)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert not [t for t in threading.enumerate() if "_work)" in t.name]  # Prefetch's

    stop_at(0)  # never
    outcome, text = run(config)
    assert f"resuming {config.workdir} at step {step}" in text
    assert outcome.finished
    assert raw(outcome.state) == raw(finished.outcome.state)
    assert outcome.test == finished.outcome.test
    assert places(config.workdir) == places(finished.config.workdir)
    assert lines(config.workdir) == lines(finished.config.workdir)


def wait_until(condition, process) -> bool:
    """Returns True if a condition holds before a process ends."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.001)
    return False


def test_a_run_that_is_killed_at_any_moment_ends_with_the_same_bits(
    finished, command_line, start, tmp_path
):
    """SIGKILL at random, while a checkpoint is written, and after another random time;
    then SIGTERM, which saves and ends well; each time the same command again.
    """
    config = dataclasses.replace(
        finished.config,
        workdir=str(tmp_path / "run"),
        log_steps=1,
        save_epochs=1 / EPOCH,
    )
    words = command_line(config)
    workdir = Path(config.workdir)
    record, checkpoints = workdir / "metrics.jsonl", workdir / "checkpoints"
    numbers = random.Random(0)

    def size() -> int:
        return record.stat().st_size if record.exists() else 0

    def is_saving() -> bool:
        return checkpoints.exists() and any(
            "tmp" in name for name in os.listdir(checkpoints)
        )

    def interrupt(number: int, condition, pause: float) -> tuple[int, str, str]:
        process = start(*words)
        try:
            assert wait_until(condition, process), process.communicate()
            time.sleep(pause)
            process.send_signal(number)
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        return process.returncode, out, err

    for condition in ("grows", is_saving, "grows"):
        before = size()
        grows = lambda before=before: size() not in (0, before)  # noqa: E731
        pause = numbers.uniform(0, 0.1) if condition == "grows" else 0
        condition = grows if condition == "grows" else condition
        code, out, err = interrupt(signal.SIGKILL, condition, pause)
        assert code == -signal.SIGKILL, (out, err)

    before = size()
    code, out, err = interrupt(signal.SIGTERM, lambda: size() not in (0, before), 0)
    assert (code, err) == (0, "")
    stopped = re.search(r"stopped after step (\d+), saved in", out)
    assert stopped
    assert int(stopped[1]) == max(saved_steps(config.workdir)) < STEPS

    last = start(*words)
    out, err = last.communicate(timeout=PATIENCE)
    assert (last.returncode, err) == (0, "")
    assert f"resuming {config.workdir} at step {stopped[1]}" in out
    assert raw(checkpoint(config.workdir)) == raw(finished.outcome.state)
    wanted = [(step, "train") for step in range(1, STEPS + 1)]
    wanted += [(10, "validation"), (20, "validation"), (20, "test")]
    assert sorted(places(config.workdir)) == sorted(wanted)  # each of them once
    for split in ("validation", "test"):
        assert lines(config.workdir, split) == lines(finished.config.workdir, split)


def test_a_damaged_checkpoint_is_passed_over_and_said(finished, run, tmp_path):
    """The run goes on from the one before, to the same bits and the same record."""
    config = copy_of(finished, tmp_path / "run")
    files = (tmp_path / "run" / "checkpoints" / "20" / "state").rglob("*/d/*")
    path = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    skipped: list[str] = []
    result = evaluate_run(config.workdir, on_skip=skipped.append)
    assert result["step"] == 15
    assert "checkpoint of step 20 is damaged" in "".join(skipped)
    outcome, text = run(config)
    assert "checkpoint of step 20 is damaged" in text
    assert "at step 15" in text
    assert raw(outcome.state) == raw(finished.outcome.state)
    assert outcome.test == finished.outcome.test
    assert lines(config.workdir, "validation", "test") == lines(
        finished.config.workdir, "validation", "test"
    )
    assert places(config.workdir) == places(finished.config.workdir)


def test_a_test_that_was_half_written_is_written_once(finished, run, tmp_path):
    """As after a kill between its line for the raw variables and its own."""
    config = copy_of(finished, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"test"', '"test_raw"'))
    assert places(config.workdir)[-1] == (STEPS, "test_raw")
    run(config)
    assert places(config.workdir) == places(finished.config.workdir)


def test_a_run_may_go_on_with_another_number_of_devices(
    finished, run, tmp_path, stop_at
):
    """From four to one and back to four, to the same result but rounding.

    The seven steps on one device are rounded otherwise than on four, by some 1e-7 of
    each number. The steps after them would amplify that at a high learning rate; at one
    of 0.001 it stays below 1e-5. Other examples give other statistics, by more than
    0.01.
    """
    schedule = Schedule("constant", 1e-3)
    whole = dataclasses.replace(
        finished.config, schedule=schedule, workdir=str(tmp_path / "whole")
    )
    four = dataclasses.replace(whole, workdir=str(tmp_path / "run"))
    one = dataclasses.replace(four, devices=1)
    wanted, _ = run(whole)
    stop_at(6)
    assert run(four)[0].steps == 6
    stop_at(7)
    outcome, text = run(one)
    assert outcome.steps == 13
    assert "1 cpu device" in text
    stop_at(0)
    outcome, text = run(four)
    assert "at step 13" in text
    for name in ("params", "batch_stats"):
        pairs = zip(
            jax.tree.leaves(getattr(outcome.state, name)),
            jax.tree.leaves(getattr(wanted.state, name)),
            strict=True,
        )
        for x, y in pairs:
            scale = float(np.abs(y).max())
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * max(scale, 0.1))
    assert outcome.test["loss"] == pytest.approx(wanted.test["loss"], rel=1e-5)


def test_a_run_that_diverges_stops_and_keeps_what_was_good(tiny, run, tmp_path):
    """Rate 0 in the first step of the warm-up, far too high in the second.

    The loss of the second is still that of the first params.
    """
    schedule = Schedule("cosine", 1e30, warmup_epochs=1)
    config = tiny(tmp_path / "run", schedule=schedule, save_epochs=1 / EPOCH)
    for _ in range(2):  # the same command again meets the same end
        with pytest.raises(InputError, match=r"step 2 .*finite.* of step 1"):
            run(config)
        assert saved_steps(config.workdir) == [1]
        state = checkpoint(config.workdir)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
        assert max(np.abs(x).max() for x in jax.tree.leaves(state.params)) < 10
        assert not [t for t in threading.enumerate() if "_work)" in t.name]
