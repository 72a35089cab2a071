"""Working off a list of two small runs: side by side, stopped, killed, gone on with."""

import dataclasses
import fcntl
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from shiftjax import InputError
from shiftjax.releases import manifest
from train import config as config_file
from train.logging.records import read_metrics
from train.workdir import LOCK
from train.zoo.entries import Entry
from train.zoo.jobs import WorkerOptions, ZooWorker, look, on_share, show
from train.zoo.output import Output

MODEL, SEEDS = "shiftresnet20_e1", (0, 1)
NETWORK = {"depth": 8, "implementation": "reference"}  # which compiles quickly
PATIENCE = 120  # seconds for what takes ten on a quiet machine

# A worker of the tests' tiny entry, in a process of its own.
WORKER = """
import dataclasses, json, sys
from pathlib import Path
from rich.console import Console
from train.config import from_dict
from train.zoo.entries import Entry
from train.zoo.jobs import WorkerOptions, ZooWorker

base, root = from_dict(json.loads(sys.argv[1])), Path(sys.argv[2])

class Tiny(Entry):
    def config(self, seed, root):
        workdir = str(self.workdir(seed, root))
        return dataclasses.replace(base, seed=seed, workdir=workdir)

entry = Tiny(base.model.name, "digits", "fast", (0, 1))
options = WorkerOptions(root / "runs", root / "zoo")
ZooWorker([entry], options, Console(soft_wrap=True)).work()
"""


@pytest.fixture(autouse=True)
def _processes(monkeypatch, cache_dir):
    """Sets the environment of the processes of runs, as in other tests."""
    root = Path(__file__).parents[3]
    for name, value in {
        "PYTHONPATH": str(root),
        "SHIFTJAX_CACHE": str(cache_dir),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "True",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def make_entry(tiny):
    """Returns a function that makes an entry of the tests' tiny run."""

    @dataclasses.dataclass(frozen=True)
    class Tiny(Entry):
        epochs: float = 8.0

        def config(self, seed, root):
            overrides = {**NETWORK, **self.overrides}
            model = dataclasses.replace(
                tiny("w").model, name=self.model, overrides=overrides
            )
            return tiny(
                self.workdir(seed, root), seed=seed, model=model, epochs=self.epochs
            )

    return lambda **fields: Tiny(MODEL, "digits", "fast", SEEDS, **fields)


@pytest.fixture
def options(tmp_path):
    return WorkerOptions(tmp_path / "runs", tmp_path / "zoo", jobs=2)


def work(entries, options):
    """Works, and returns what a person reads."""
    text = io.StringIO()
    console = Console(file=text, soft_wrap=True)
    try:
        ZooWorker(entries, options, console).work()
    finally:
        print(text.getvalue())
    return text.getvalue()


def states(entry, options):
    return [job.state for job in look([entry], options)]


def when_it_trains(workdir, action):
    """Does something, on a thread, once a run has written more of its record."""

    def size():
        return record.stat().st_size if record.exists() else 0

    def wait():
        while size() <= before:
            time.sleep(0.02)
        action()

    record = workdir / "metrics.jsonl"
    before = size()
    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def trainers(workdir):
    """The processes that train in a folder."""
    command = ["pgrep", "-f", f"train resume .*--workdir {workdir}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def kill(workdir):
    """Kills the process that trains in a folder."""
    (process,) = trainers(workdir)
    os.kill(process, signal.SIGKILL)


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_list_is_worked_off(make_entry, options, capsys):
    """Past a run of another process, one that fails, SIGTERM and SIGKILL."""
    entry = make_entry(epochs=60.0)
    bad = dataclasses.replace(entry, model="shiftresnet20_e2")
    first, second = (entry.workdir(seed, options.root) for seed in SEEDS)
    assert states(entry, options) == ["missing", "missing"]

    first.mkdir(parents=True)
    with (first / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as a process that trains in it
        assert states(entry, options) == ["running", "missing"]
        with pytest.raises(InputError, match="did you mean 'shiftresnet20_e"):
            work([bad, entry], options)
        assert states(entry, options) == ["running", "released"]

    thread = when_it_trains(first, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert "seed 0: saving and stopping" in work([entry], options)
    thread.join()
    (stopped, other) = look([entry], options)
    assert (stopped.state, other.state) == ("stopped", "released")
    assert 0 < stopped.epoch < stopped.epochs

    thread = when_it_trains(first, lambda: kill(first))
    with pytest.raises(InputError, match=r"not trained: .* seed 0"):
        work([entry], options)
    thread.join()
    assert states(entry, options) == ["stopped", "released"]

    assert f"released {entry.name}" in work([entry], options)
    assert states(entry, options) == ["released", "released"]
    assert work([entry], options) == ""  # nothing is left to do
    release = manifest.find(entry.name, options.directory)
    assert [run.seed for run in release.runs] == [0, 1]
    assert release.runs[0].test["loss"] != release.runs[1].test["loss"]
    for workdir in (first, second):
        records = read_metrics(workdir)
        steps = [r["step"] for r in records if r["split"] == "train"]
        assert steps == sorted(set(steps))
        assert steps[-1] == 150
    show(look([entry], options), Console(width=100))
    assert "2 released" in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="of Linux")
@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_runs_side_by_side_have_cores_of_their_own(jobs):
    """With two cores the third run shares the first; with one, all share it."""
    before = os.sched_getaffinity(0)
    ask = "import os; print(*os.sched_getaffinity(0))"
    shares = []
    for place in range(jobs):
        with on_share(place, jobs):
            told = subprocess.check_output([sys.executable, "-c", ask], text=True)
        shares.append(set(map(int, told.split())))
        assert os.sched_getaffinity(0) == before
    assert set.union(*shares) == before
    assert max(map(len, shares)) == -(-len(before) // jobs)
    if jobs <= len(before):
        assert sum(map(len, shares)) == len(before)


@pytest.fixture
def start_worker(make_entry, tmp_path):
    """Returns a function that starts a worker, and ends those that are left."""
    started = []
    config = make_entry(epochs=400.0).config(0, tmp_path)
    text = json.dumps(config_file.record(config))

    def start():
        command = [sys.executable, "-u", "-c", WORKER, text, str(tmp_path)]
        with (tmp_path / f"worker{len(started)}.txt").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
    wait_for(lambda: not trainers(tmp_path))


def test_a_run_ends_with_its_worker_and_is_the_first_to_go_on(
    make_entry, options, start_worker, tmp_path
):
    """After SIGKILL of the worker, of which the run learns by its pipe; one at a time.

    Then SIGKILL of the run: the worker says it and goes on with the other, and the
    same command with both.
    """
    entry = make_entry(epochs=400.0)
    first, second = (entry.workdir(seed, options.root) for seed in SEEDS)

    def log(workdir):
        path = workdir / "log.txt"
        return path.read_text() if path.exists() else ""

    def starts(workdir):
        path = workdir / "starts.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    worker = start_worker()
    wait_for(lambda: (first / "metrics.jsonl").exists())
    worker.kill()
    worker.wait()
    worker = start_worker()
    wait_for(lambda: starts(first) == 2 and len(trainers(first)) == 1)
    assert "standard input has ended: saving the state and stopping" in log(first)
    (step,) = re.findall(r"stopped after step (\d+), saved in", log(first))
    assert f"resuming {first} at step {step}" in log(first).replace(",", "")
    assert not second.exists()

    when_it_trains(first, lambda: kill(first)).join()
    wait_for(lambda: starts(second) == 1)
    assert "seed 0: failed: killed by SIGKILL" in (tmp_path / "worker1.txt").read_text()
    when_it_trains(second, worker.kill).join()
    worker.wait()
    wait_for(lambda: not trainers(tmp_path))
    assert states(entry, options) == ["stopped", "stopped"]


@pytest.fixture
def ended_process():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_run_whose_worker_was_killed_is_waited_for(
    make_entry, options, finished, ended_process
):
    """It counts against `jobs`; as it comes to its end before it stops, it is released.

    A run of another worker that lives does not count.
    """
    entry = make_entry()
    first = entry.workdir(0, options.root)
    shutil.copytree(finished.config.workdir, first)
    record = first / "metrics.jsonl"
    text = record.read_text()
    record.write_text("".join(x for x in text.splitlines(True) if "test" not in x))
    text = io.StringIO()
    worker = ZooWorker(
        [entry],
        dataclasses.replace(options, jobs=1, minutes=PATIENCE / 60),
        Console(file=text, soft_wrap=True),
    )

    def end():
        wait_for(lambda: "its worker has ended" in text.getvalue())
        time.sleep(1.5)  # in which the worker looks at it more than once
        assert not entry.workdir(1, options.root).exists()
        shutil.copy(Path(finished.config.workdir) / "metrics.jsonl", record)
        orphan.close()
        wait_for(lambda: "released" in text.getvalue())
        wait_for(lambda: (entry.workdir(1, options.root) / "metrics.jsonl").exists())
        os.kill(os.getpid(), signal.SIGTERM)

    other = options.root / "other" / "seed0"
    other.mkdir(parents=True)
    with (first / LOCK).open("w") as orphan, (other / LOCK).open("w") as living:
        for file, parent in ((orphan, ended_process), (living, os.getpid())):
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(f"{socket.gethostname()} {parent}")
            file.flush()
        thread = threading.Thread(target=end)
        thread.start()
        worker.work()
        thread.join()
    assert text.getvalue().count("its worker has ended") == 1
    assert "seed 1: saving and stopping" in text.getvalue()


def test_a_run_with_a_checkpoint_and_no_record_is_stopped(make_entry, options):
    entry = make_entry()
    workdir = entry.workdir(1, options.root)
    (workdir / "checkpoints" / "10").mkdir(parents=True)
    assert states(entry, options) == ["missing", "stopped"]
    (workdir / "checkpoints" / "10").rename(workdir / "checkpoints" / "a.tmp")
    assert states(entry, options) == ["missing", "missing"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "a.b"}, r"--tag 'digits_a\.b': only letters, digits and _"),
        ({"overrides": {"momentum": float("nan")}}, "card holds only finite"),
    ],
)
def test_what_could_not_be_released_is_not_trained(
    make_entry, options, fields, message
):
    entry = dataclasses.replace(make_entry(), seeds=(0,), **fields)
    with pytest.raises(InputError, match=message):
        work([entry], options)
    assert not options.root.exists()


def test_a_run_that_another_worker_began_first_has_not_failed(make_entry, options):
    """Both saw that it was missing, and one of their two processes got the lock."""
    worker = ZooWorker([make_entry()], options, Console(file=io.StringIO()))
    job = look(worker.entries, options)[0]
    workdir = job.entry.workdir(0, options.root)
    workdir.mkdir(parents=True)
    loser = subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(75)"])
    loser.wait()
    worker._running[workdir] = (job, loser, Output(workdir / "log.txt"))
    with (workdir / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        worker._collect()
    assert (worker.failed, worker._running) == ([], {})


def test_a_folder_with_another_run_is_left_as_it_is(make_entry, options):
    """A run does not resume with other options, after a change of the list."""
    entry = make_entry()
    workdir = entry.workdir(0, options.root)
    workdir.mkdir(parents=True)
    longer = dataclasses.replace(entry.config(0, options.root), epochs=99.0)
    config_file.save_config(longer, workdir)
    only = dataclasses.replace(entry, seeds=(0,))
    with pytest.raises(
        InputError, match=r"holds another run: --epochs was 99\.0, is 8"
    ):
        work([only], options)
    assert config_file.load_config(workdir) == longer


def test_what_was_trained_before_is_released(make_entry, options, finished):
    """And when the time is over, no run is started."""
    entry = make_entry()
    workdir = entry.workdir(0, options.root)
    shutil.copytree(finished.config.workdir, workdir)
    assert states(entry, options) == ["trained", "missing"]
    work([entry], dataclasses.replace(options, minutes=0))
    config = config_file.load_config(workdir)
    assert list(manifest.read(options.directory)) == [f"{config.model.name}.digits"]
    assert not entry.workdir(1, options.root).exists()


def test_the_command_shows_the_zoo(tmp_path):
    words = ["zoo", "--show", "--only", "shiftresnet20_e1.cifar10_paper"]
    done = subprocess.run(
        [sys.executable, "-m", "train", *words, "--root", tmp_path],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "shiftresnet20_e1.cifar10" in done.stdout
    assert "3 missing" in done.stdout or "released" in done.stdout
