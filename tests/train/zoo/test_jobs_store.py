"""The zoo with its runs in an object store, whose releases are local."""

import dataclasses
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from shiftjax.errors import InputError
from shiftjax.releases import manifest
from tests.train import store as fake
from train import config as config_file
from train import files
from train.__main__ import run_command
from train.logging.records import read_metrics
from train.workdir import Holder, holder
from train.zoo import jobs
from train.zoo.entries import Entry
from train.zoo.output import Output

ROOT = Path(__file__).parents[3]

# Puts the stand-in below gs:// in each process that a worker starts.
SITE = """
import os, sys
sys.path.insert(0, os.environ["SHIFTJAX_ROOT"])
import pathlib, pytest
from tests.train import store
store.mount(pytest.MonkeyPatch(), pathlib.Path(os.environ["SHIFTJAX_STORE"]))
"""


@pytest.fixture
def store(tmp_path, monkeypatch):
    return fake.mount(monkeypatch, tmp_path / "store")


@pytest.fixture
def options(tmp_path, store):
    return jobs.WorkerOptions(files.folder("gs://bucket/zoo"), tmp_path / "releases")


@pytest.fixture
def entry(tiny):
    @dataclasses.dataclass(frozen=True)
    class Tiny(Entry):
        def config(self, seed, root):
            config = tiny(self.workdir(seed, root), seed=seed, epochs=2.4)
            model = dataclasses.replace(
                config.model,
                name=self.model,
                overrides={"depth": 8, "implementation": "reference"},
            )
            return dataclasses.replace(config, model=model)

    return Tiny("shiftresnet20_e1", "digits", "fast", (0,))


def state(entry, options):
    (job,) = jobs.look([entry], options)
    return job.state


def test_a_network_is_trained_there_and_released(
    entry, options, store, tmp_path, cache_dir, monkeypatch
):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    for name, value in {
        "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}",
        "SHIFTJAX_ROOT": str(ROOT),
        "SHIFTJAX_STORE": str(store.root),
        "SHIFTJAX_CACHE": str(cache_dir),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "True",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jobs, "STORE_POLL_SECONDS", 0.2)
    monkeypatch.chdir(tmp_path)
    workdir = entry.workdir(0, options.root)
    log = Path(store.local(workdir / "log.txt"))
    log.parent.mkdir(parents=True)
    log.write_text("of an earlier start\n")
    assert state(entry, options) == "missing"
    text = io.StringIO()
    jobs.ZooWorker([entry], options, Console(file=text, soft_wrap=True)).work()
    assert f"released {entry.name}: " in text.getvalue()
    assert state(entry, options) == "released"
    (run,) = manifest.find(entry.name, options.directory).runs
    test = read_metrics(workdir)[-1]
    assert (test["split"], test["top1"]) == ("test", run.test["top1"])
    first, *_, last = log.read_text().splitlines()
    assert first == "of an earlier start"
    assert last == f"next: python -m train evaluate --workdir {workdir}"
    assert not (tmp_path / "gs:").exists()


def test_the_reason_of_a_failure_is_kept(entry, options, store, monkeypatch):
    """The store is not there in the run's process, which says so."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(jobs, "STORE_POLL_SECONDS", 0.2)
    with pytest.raises(InputError, match=r"not trained: .* seed 0: train: gs://bucket"):
        jobs.ZooWorker([entry], options, Console(file=io.StringIO())).work()
    log = Path(store.local(entry.workdir(0, options.root) / "log.txt"))
    assert "needs the package gcsfs" in log.read_text()


def test_logs_are_not_read_again_and_again_with_nothing_left_to_start(
    entry, options, monkeypatch
):
    """A look reads the logs of all runs: many requests, if they are in a store."""
    options = dataclasses.replace(options, jobs=2)
    worker = jobs.ZooWorker([entry], options, Console(file=io.StringIO()))
    workdir = entry.workdir(0, options.root)
    look, looks = jobs.look, []
    (job,) = look([entry], options)
    run = subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE
    )
    worker._running[workdir] = (job, run, Output(workdir / "log.txt"))
    worker._tried.add(workdir)

    def counted(*given):
        looks.append(given)
        return look(*given)

    monkeypatch.setattr(jobs, "look", counted)
    for _ in range(5):
        worker._collect()
        worker._start_some()
    assert len(looks) == 1
    run.kill()
    run.communicate()
    worker._collect()  # after which there may be something to start
    looks.clear()
    worker._start_some()
    assert len(looks) == 1


@pytest.mark.parametrize(
    ("facts", "age", "found"),
    [
        ({"host": "elsewhere", "process": 1, "parent": 7}, 0, Holder("elsewhere", 7)),
        ({"host": "elsewhere", "process": 1}, 0, Holder("elsewhere")),
        ({"host": "elsewhere", "process": 1, "parent": 7}, 400, None),
        ({"host": "here", "process": os.getpid(), "parent": 7}, 0, Holder("here", 7)),
        ({"host": "here", "process": 2**22 + 1, "parent": 7}, 0, None),
    ],
)
def test_the_holder_of_a_run_is_known(facts, age, found, entry, options, store):
    """But for one that has ended here, or was killed elsewhere minutes ago."""
    here = socket.gethostname()
    workdir = entry.workdir(0, options.root)
    config_file.save_config(entry.config(0, options.root), workdir)
    facts = facts | {"token": "x", "time": time.time() - age}
    if facts["host"] == "here":
        facts["host"] = here
        found = found and dataclasses.replace(found, machine=here)
    (workdir / ".lock").write_text(json.dumps(facts))
    assert holder(workdir) == found
    assert state(entry, options) == ("missing" if found is None else "running")


def test_an_unknown_parent_makes_no_orphan():
    assert not Holder(socket.gethostname()).is_orphan()


@pytest.mark.parametrize("words", [["zoo", "--show"], ["release", "--tag", "a"]])
def test_releases_are_local(words, capsys):
    words += ["--workdir", "none"] if words[0] == "release" else []
    assert run_command([*words, "--output", "gs://b/c"]) == 2
    wanted = "train: --output gs://b/c: releases are written to a local folder\n"
    assert capsys.readouterr().err == wanted
