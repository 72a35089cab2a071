"""A whole run in an object store: as in a local folder, to the bit."""

import dataclasses
import io
import json
import os
import queue
import shutil
import socket
import sys
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
import pytest

from shiftjax.errors import InputError
from tests.train import store as fake
from train import config as config_file
from train import files, store_lock
from train.assemble import set_up
from train.checkpointing import Checkpoints
from train.checkpointing import store as checkpoint_store
from train.evaluation import evaluate_run
from train.exits import TemporaryError
from train.logging.records import MetricsWriter, read_metrics
from train.machine import starts
from train.release import load_run
from train.store_lock import StoreLock

RUN = "gs://bucket/folder/run"


@pytest.fixture
def store(tmp_path, monkeypatch):
    return fake.mount(monkeypatch, tmp_path / "store")


@pytest.fixture
def hasty(monkeypatch):
    """Lets locks become stale soon."""
    monkeypatch.setattr(store_lock, "REFRESH_SECONDS", 0.05)
    monkeypatch.setattr(store_lock, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(store_lock, "LOOK_SECONDS", 0.01)


def newest(workdir):
    setup = set_up(config_file.load_config(workdir))
    with Checkpoints(files.folder(workdir) / "checkpoints") as checkpoints:
        return checkpoints.restore(jax.eval_shape(setup.initial_state))


def without_times(records):
    times = ("images_per_second", "input_wait", "compile_seconds")
    return [{k: x for k, x in r.items() if k not in times} for r in records]


def test_a_run_stops_resumes_and_is_read_there(
    tmp_path, store, finished, run, stop_at, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(
        finished.config, workdir=RUN, log_to=("tensorboard", "csv")
    )
    stop_at(9)
    outcome, text = run(config)
    assert (outcome.steps, outcome.finished) == (9, False)
    assert text.count("TensorBoard events are written to local folders only") == 1
    stop_at(0)  # never
    again, text = run(config)
    assert again.finished
    assert f"resuming {RUN} at step 9" in text
    jax.tree.map(
        np.testing.assert_array_equal,
        newest(RUN).state.variables,
        newest(finished.config.workdir).state.variables,
    )
    wanted = without_times(read_metrics(finished.config.workdir))
    assert without_times(read_metrics(RUN)) == wanted
    assert [start["step"] for start in starts(files.folder(RUN))] == [0, 9]
    test = evaluate_run(RUN, devices=4)
    assert test["top1"] == finished.outcome.test["top1"]
    assert load_run(RUN).card.architecture == config.model.name
    there = {path.name for path in Path(store.local(RUN)).iterdir()}
    assert there >= {"config.json", "metrics.jsonl", "starts.jsonl", "curves.png"}
    assert "tensorboard" not in there
    assert ".lock" not in there
    assert not (tmp_path / "gs:").exists()


def test_the_curves_there_have_the_test(store, finished, run, monkeypatch):
    """As after a kill before the test, whose line would stay in memory."""
    folder = Path(store.local(RUN))
    shutil.copytree(finished.config.workdir, folder)
    (folder / "curves.png").unlink()
    (folder / ".lock").unlink()
    metrics = folder / "metrics.jsonl"
    texts = [x for x in metrics.read_text().splitlines() if '"test"' not in x]
    metrics.write_text("".join(f"{text}\n" for text in texts))
    for step in (folder / "checkpoints").iterdir():
        (step / "commit_success.txt").touch()
    drawn = []

    def plot(workdir, *_, **__):
        drawn.extend(read_metrics(workdir))

    monkeypatch.setattr("train.loop.plot_curves", plot)
    outcome, _ = run(dataclasses.replace(finished.config, workdir=RUN))
    assert drawn[-1]["split"] == "test"
    assert drawn[-1]["top1"] == outcome.test["top1"]


def test_a_step_that_was_not_written_whole_is_no_checkpoint(store, tmp_path):
    state = {"a": np.arange(3.0)}
    with Checkpoints("gs://bucket/run/checkpoints") as checkpoints:
        assert checkpoints.restore(state) is None
        checkpoints.save(1, state, {})
        checkpoints.wait()
        checkpoints.save(2, state, {})
    folder = Path(store.local("gs://bucket/run/checkpoints"))
    (folder / "2" / "commit_success.txt").unlink()
    with Checkpoints("gs://bucket/run/checkpoints") as checkpoints:
        assert checkpoints.steps() == [1]
        assert checkpoints.restore(state).step == 1
        checkpoints.save(2, {"a": np.arange(3.0) + 1}, {})
    with Checkpoints("gs://bucket/run/checkpoints") as checkpoints:
        assert checkpoints.restore(state).state["a"].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(("failures", "step"), [(2, 5), (3, 3)])
def test_a_read_that_fails_for_a_moment_is_tried_again(
    store, monkeypatch, failures, step
):
    """After three failures the checkpoint counts as damaged."""
    state = {"bias": np.arange(3.0)}
    monkeypatch.setattr(checkpoint_store, "READ_PAUSES", (0.0, 0.0, 0.0))
    load, reads = checkpoint_store.v1.load_checkpointables, []

    def load_later(*args, **kwargs):
        reads.append(args)
        if len(reads) <= failures:
            raise ConnectionResetError("reset by peer")
        return load(*args, **kwargs)

    with Checkpoints(RUN) as checkpoints:
        checkpoints.save(3, state, {})
        checkpoints.save(5, state, {})
        checkpoints.wait()
        monkeypatch.setattr(checkpoint_store.v1, "load_checkpointables", load_later)
        assert checkpoints.restore(state).step == step


def test_lines_are_written_together_and_by_flush(store, monkeypatch):
    path = Path(store.local(RUN)) / "metrics.jsonl"
    with MetricsWriter(RUN, resume_step=None) as writer:
        writer.write({"step": 1, "split": "train"})
        assert not path.exists()
        writer.flush()
        assert len(path.read_text().splitlines()) == 1
        writer.write({"step": 2, "split": "train"})
        assert len(path.read_text().splitlines()) == 1
        monkeypatch.setattr(files, "REWRITE_SECONDS", 0)
        writer.write({"step": 3, "split": "train"})
        assert len(path.read_text().splitlines()) == 3
    with MetricsWriter(RUN, resume_step=2) as writer:
        writer.write({"step": 4, "split": "train"})
    assert [line["step"] for line in read_metrics(RUN)] == [1, 2, 4]


def test_a_held_lock_is_refused_and_a_left_one_taken(store, hasty):
    lock = files.folder("gs://bucket/run/.lock")
    with (
        closing(StoreLock(lock)),
        pytest.raises(TemporaryError, match="bucket/run is in use") as no,
    ):
        StoreLock(lock)
    assert socket.gethostname() in str(no.value)
    assert not lock.exists()
    left = {"host": "elsewhere", "process": 1, "token": "x", "time": 0}
    lock.write_text(json.dumps(left))
    with closing(StoreLock(lock)):
        assert json.loads(lock.read_text())["host"] == socket.gethostname()


def test_of_two_that_find_no_lock_the_last_to_write_it_trains(
    store, hasty, monkeypatch
):
    lock = files.folder("gs://bucket/run/.lock")
    other = {"host": "elsewhere", "process": 7, "token": "x", "time": 0}
    write = store_lock.files.write

    def overtaken(path, data):
        write(path, data)
        lock.write_text(json.dumps(other))

    monkeypatch.setattr(store_lock.files, "write", overtaken)
    with pytest.raises(TemporaryError, match="in use: process 7 on elsewhere trains"):
        StoreLock(lock)
    assert json.loads(lock.read_text()) == other


@pytest.mark.parametrize(
    ("taken", "told"),
    [
        ({"host": "elsewhere", "process": 7, "token": "x", "time": 0}, "process 7 on"),
        (None, "run is gone"),  # its next holder has already ended
    ],
)
def test_a_process_that_has_lost_its_lock_ends_and_leaves_it(
    store, hasty, monkeypatch, capfd, taken, told
):
    """As after a suspension. Two processes would train in the folder."""
    ended = queue.Queue()

    def end(code):
        ended.put(code)
        raise OSError  # the process goes on, so the thread looks again

    monkeypatch.setattr(os, "_exit", end)
    lock = files.folder("gs://bucket/run/.lock")
    with closing(StoreLock(lock)):
        if taken is None:
            lock.unlink()
        else:
            files.write(lock, json.dumps(taken).encode())
        assert ended.get(timeout=30) == 75
    line, *_ = capfd.readouterr().err.splitlines()
    assert line.startswith("train: the lock of gs://bucket/run is")
    assert told in line
    assert (json.loads(lock.read_text()) if lock.exists() else None) == taken


def test_the_lock_of_a_process_that_has_ended_here_is_taken_at_once(store):
    lock = files.folder("gs://bucket/run/.lock")
    mine = {"host": socket.gethostname(), "process": 2**22 + 1, "token": "x", "time": 0}
    lock.write_text(json.dumps(mine))
    with closing(StoreLock(lock)):
        pass


def test_another_run_in_a_store_is_refused(store, run, finished):
    shutil.copytree(finished.config.workdir, store.local(RUN))
    other = dataclasses.replace(finished.config, workdir=RUN, seed=5)
    with pytest.raises(InputError, match=r"gs://.* holds another run: --seed was 0"):
        run(other)


def test_a_store_that_cannot_be_used_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"gs://b/run needs .* pip install gcsfs"):
        files.folder("gs://b/run")
    with pytest.raises(InputError, match=r"s4://b/run: .* local folder or below gs://"):
        files.folder("s4://b/run")
    assert not list(tmp_path.iterdir())


def test_a_process_that_has_lost_its_lock_ends_also_if_it_cannot_say_so(monkeypatch):
    """With its terminal gone it would train on beside its successor."""

    class Gone(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit) as caught:
        store_lock._end(TemporaryError("the lock is gone"))
    assert caught.value.code == 75
