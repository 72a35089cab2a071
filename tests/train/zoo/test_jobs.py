"""Working off a list of two small runs: side by side, stopped, killed, gone on with."""

import dataclasses
import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from shiftjax import InputError, manifest
from train import config as config_file
from train.records import read_metrics
from train.workdir import LOCK
from train.zoo.entries import ENTRIES, RECIPES, Entry, select
from train.zoo.jobs import Options, Worker, look, show

MODEL, SEEDS = "shiftresnet20_e1", (0, 1)


@pytest.fixture(autouse=True)
def _processes(monkeypatch, cache_dir):
    """What the processes of runs need, as those of other tests."""
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
            model = dataclasses.replace(
                tiny("w").model, name=self.model, overrides={"depth": 8}
            )
            return tiny(
                self.workdir(seed, root), seed=seed, model=model, epochs=self.epochs
            )

    return lambda **fields: Tiny(MODEL, "digits", "paper", SEEDS, **fields)


@pytest.fixture
def options(tmp_path):
    return Options(tmp_path / "runs", tmp_path / "zoo", jobs=2)


def work(entries, options):
    """Works, and returns what a person reads."""
    text = io.StringIO()
    console = Console(file=text, soft_wrap=True)
    try:
        Worker(entries, options, console).work()
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


def kill(workdir):
    """Kills the process that trains in a folder."""
    command = ["pgrep", "-f", f"resume --workdir {workdir}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    os.kill(int(found.stdout.split()[0]), signal.SIGKILL)


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
    assert "seed 0: asked to save and stop" in work([entry], options)
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


def test_a_folder_with_another_run_is_left_as_it_is(make_entry, options):
    """As when the list was changed: nothing goes on with other options."""
    entry = make_entry()
    workdir = entry.workdir(0, options.root)
    workdir.mkdir(parents=True)
    longer = dataclasses.replace(entry.config(0, options.root), epochs=99.0)
    config_file.save(longer, workdir)
    only = dataclasses.replace(entry, seeds=(0,))
    with pytest.raises(
        InputError, match=r"holds another run: --epochs was 99\.0, is 8"
    ):
        work([only], options)
    assert config_file.load(workdir) == longer


def test_what_was_trained_before_is_released(make_entry, options, finished):
    """And when the time is over, no run is started."""
    entry = make_entry()
    workdir = entry.workdir(0, options.root)
    shutil.copytree(finished.config.workdir, workdir)
    assert states(entry, options) == ["trained", "missing"]
    work([entry], dataclasses.replace(options, minutes=0))
    config = config_file.load(workdir)
    assert list(manifest.read(options.directory)) == [f"{config.model.name}.digits"]
    assert not entry.workdir(1, options.root).exists()


# The list.


def test_names_are_unique_and_good():
    names = [entry.name for entry in ENTRIES]
    assert len(set(names)) == len(names)
    for entry in ENTRIES:
        assert entry.recipe in RECIPES
        assert len(set(entry.seeds)) == len(entry.seeds)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_can_be_set_up(entry, tmp_path):
    from shiftjax import create_model
    from train.config import validate

    config = entry.config(entry.seeds[-1], tmp_path)
    validate(config)
    create_model(config.model.name, **config.model.overrides)
    assert config.workdir == str(tmp_path / entry.name / f"seed{entry.seeds[-1]}")
    assert config.data.source == f"tfds:{entry.dataset}"
    assert config.data.train_on == "train+validation"


def test_the_papers_recipe_is_the_papers(tmp_path):
    """Section 4.1 and the authors' code: 0.1, a tenth after 82 and 124 epochs."""
    entries = [entry for entry in ENTRIES if entry.recipe == "paper"]
    assert [e.name for e in entries] == [
        "shiftresnet20_e1.cifar10_paper",
        "shiftresnet20_e3.cifar10_paper",
        "shiftresnet20_e3.cifar100_paper",
    ]
    for entry in entries:
        config = entry.config(0, tmp_path)
        assert (config.epochs, config.batch_size) == (160, 128)
        assert (config.augment.crop_padding, config.augment.flip) == (4, True)
        schedule = config.schedule
        assert (schedule.kind, schedule.boundaries) == ("steps", (82, 124))
        assert (schedule.learning_rate, schedule.warmup_epochs) == (0.1, 0)
        optimizer = config.optimizer
        assert (optimizer.kind, optimizer.momentum) == ("sgd", 0.9)
        assert (optimizer.weight_decay, optimizer.decay) == (5e-4, "all")
        assert optimizer.nesterov is False


def test_entries_are_chosen_by_name():
    chosen = select("shiftresnet20*.cifar10")
    assert [e.model for e in chosen] == [f"shiftresnet20_e{e}" for e in (1, 3, 6, 9)]
    with pytest.raises(InputError, match="did you mean"):
        select("shiftresnet20_e2.cifar10")


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
