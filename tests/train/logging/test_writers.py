"""The writers beside metrics.jsonl: they hold its lines, also after a resume."""

import csv
import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

from shiftjax.errors import InputError
from tests.train import store as fake
from tests.train.runs import lines
from train import config as config_file
from train import files
from train.__main__ import parse, run_command
from train.logging import writers
from train.logging.records import MetricsWriter, read_metrics

TRAIN = {"step": 1, "epoch": 0.1, "split": "train", "loss": 2.0, "compile_seconds": 3.5}
VALIDATION = {"step": 2, "epoch": 0.2, "split": "validation", "loss": 1.5, "top1": 0.25}
NEXT = {"step": 3, "epoch": 0.3, "split": "train", "loss": math.nan, "note": "a, b"}


def log(workdir: Path, *records, resume_step=None, log_to=("csv",)) -> None:
    with MetricsWriter(workdir, resume_step=resume_step, log_to=log_to) as writer:
        for record in records:
            writer.write(record)


# --- CSV ----------------------------------------------------------------------------


def test_a_row_for_each_line_and_a_column_for_each_name(tmp_path):
    log(tmp_path, TRAIN, VALIDATION, NEXT)
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,epoch,split,loss,compile_seconds,top1,note\n"
        "1,0.1,train,2.0,3.5,,\n"
        "2,0.2,validation,1.5,,0.25,\n"
        '3,0.3,train,nan,,,"a, b"\n'
    )


def test_rows_are_there_at_once(tmp_path):
    with MetricsWriter(tmp_path, resume_step=None, log_to=("csv",)) as writer:
        for count, record in enumerate((TRAIN, TRAIN | {"step": 2}, VALIDATION), 1):
            writer.write(record)
            rows = (tmp_path / "metrics.csv").read_text().splitlines()
            assert len(rows) == 1 + count


def test_a_resumed_run_begins_with_the_lines_that_are_kept(tmp_path):
    log(tmp_path, TRAIN, VALIDATION, NEXT)
    (tmp_path / "metrics.csv").write_text("what someone did to it\n1,2")
    log(tmp_path, NEXT | {"step": 4, "loss": 0.5}, resume_step=2)
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,epoch,split,loss,compile_seconds,top1,note\n"
        "1,0.1,train,2.0,3.5,,\n"
        "2,0.2,validation,1.5,,0.25,\n"
        '4,0.3,train,0.5,,,"a, b"\n'
    )


def test_a_resumed_run_that_writes_csv_for_the_first_time_has_all_lines(tmp_path):
    log(tmp_path, TRAIN, VALIDATION, log_to=())
    assert not (tmp_path / "metrics.csv").exists()
    log(tmp_path, resume_step=2)
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]


def test_a_table_in_a_store(tmp_path, monkeypatch):
    """Objects cannot grow: the file is written whole, with all rows, at the end."""
    store = fake.mount(monkeypatch, tmp_path)
    for resume_step, record in ((None, TRAIN), (1, VALIDATION)):
        run = "gs://bucket/run"
        log(run, record, resume_step=resume_step, log_to=("tensorboard", "csv"))
    rows = Path(store.local("gs://bucket/run/metrics.csv")).read_text().splitlines()
    assert rows[1:] == ["1,0.1,train,2.0,3.5,", "2,0.2,validation,1.5,,0.25"]
    assert not Path(store.local("gs://bucket/run/tensorboard")).exists()


# --- Weights & Biases ---------------------------------------------------------------

WANDB = """
import json, os

class Error(Exception):
    pass

def add(*call):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(call) + "\\n")

class Run:
    def log(self, values, step):
        add("log", values, step)

    def finish(self):
        add("finish")

def init(**options):
    if "REFUSED" in os.environ:
        raise Error("api_key not configured (no-tty)\\nrun wandb login")
    add("init", options)
    return Run()
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A stand-in for the package; returns a function that reads the calls of it."""
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    calls = tmp_path / "calls"
    monkeypatch.setenv("CALLS", str(calls))

    def read():
        found = [json.loads(line) for line in calls.read_text().splitlines()]
        calls.write_text("")
        return found

    yield read
    sys.modules.pop("wandb", None)


def test_a_run_of_wandb_is_continued(tmp_path, wandb):
    workdir = tmp_path / "project: one" / "mine"
    log(workdir, TRAIN, VALIDATION, NEXT, log_to=("wandb",))
    (_, options), *logged = wandb()
    number = (workdir / "wandb_id.txt").read_text()
    assert len(number) == 8
    assert options == {
        "project": "project- one",
        "name": "mine",
        "id": number,
        "resume": "allow",
        "dir": str(workdir),
        "config": {},
    }
    first = {"train/loss": 2.0, "train/compile_seconds": 3.5, "epoch": 0.1}
    second = {"validation/loss": 1.5, "validation/top1": 0.25, "epoch": 0.2}
    assert logged == [
        ["log", first, 1],
        ["log", second, 2],
        ["log", {"epoch": 0.3}, 3],  # without text, and without NaN
        ["finish"],
    ]
    (workdir / "config.json").write_text('{"seed": 3}')
    log(workdir, TRAIN | {"step": 3}, resume_step=2, log_to=("wandb",))
    (_, again), *logged = wandb()
    assert again == options | {"config": {"seed": 3}}
    assert [step for *_, step in logged[:-1]] == [3]  # the others are there already


def test_a_run_that_is_resumed_with_wandb_sends_its_earlier_lines(tmp_path, wandb):
    log(tmp_path, TRAIN, VALIDATION, NEXT, log_to=())
    log(tmp_path, NEXT, resume_step=2, log_to=("wandb",))
    assert [call[2] for call in wandb() if call[0] == "log"] == [1, 2, 3]


def test_the_project_of_the_environment_is_used(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    log(tmp_path / "run", log_to=("wandb",))
    assert wandb()[0][1]["project"] == "theirs"


def test_wandb_that_cannot_start_is_one_line(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("REFUSED", "1")
    with pytest.raises(InputError) as caught:
        log(tmp_path / "run", log_to=("wandb",))
    wanted = "--log-to wandb cannot start: api_key not configured (no-tty)"
    assert str(caught.value) == wanted
    monkeypatch.delenv("REFUSED")
    log(tmp_path / "run", TRAIN, log_to=("csv",))
    log(tmp_path / "run", resume_step=1, log_to=("wandb",))
    assert [call[2] for call in wandb() if call[0] == "log"] == [1]  # begun only now


def test_a_folder_of_the_name_is_no_package(tmp_path, monkeypatch):
    """Weights & Biases itself makes a folder `wandb` where it is used."""
    (tmp_path / "shelf").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    kind = writers.Kind(writers.CsvWriter, "shelf", "more")
    monkeypatch.setitem(writers.WRITERS, "shelf", kind)
    with pytest.raises(InputError, match=r"the package shelf: pip .*shiftjax\[more\]"):
        writers.check_writers(["shelf"])


# --- the choice ---------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_a_run_is_logged_to_all_that_are_named(run, tiny, tmp_path, wandb):
    config = tiny(tmp_path / "run", epochs=2.4, log_to=("csv", "wandb"))
    run(config)
    logged = [call[2] for call in wandb() if call[0] == "log"]
    records = read_metrics(config.workdir)
    assert logged == [record["step"] for record in records]
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, record in zip(rows, records, strict=True):
        assert row["split"] == record["split"]
        assert float(row["loss"]) == record["loss"]


def test_a_writer_is_opened_once(tmp_path):
    opened = writers.open_writers(("csv", "csv"), files.folder(tmp_path), [], -1)
    for writer in (only := list(opened)):
        writer.close()
    assert len(only) == 1


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("wandb", "needs the package wandb: pip install 'shiftjax[wandb]'"),
        (
            "tensorboard",
            "needs the package tensorboardX: pip install 'shiftjax[train]'",
        ),
        ("cvs", "unknown --log-to 'cvs': did you mean 'csv'?"),
    ],
)
def test_a_writer_that_is_not_there_is_named_before_training(
    name, told, monkeypatch, capsys, tmp_path, quick
):
    find = importlib.util.find_spec
    absent = ("wandb", "tensorboardX")
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: None if name in absent else find(name, package),
    )
    monkeypatch.setattr("train.commands.prepare_process", lambda *_: None)
    monkeypatch.setattr("train.loop.set_up", lambda _: pytest.fail("it has begun"))
    words = ["digits", "--log-to", "csv", name, "--workdir", str(tmp_path / "run")]
    assert run_command(words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "log_to"), [("--tensorboard", ("tensorboard",)), ("--no-tensorboard", ())]
)
def test_the_old_flag_is_still_read(flag, log_to):
    """So that the command that started a run resumes it."""
    for first in ("digits", "compile digits"):
        command = parse([*first.split(), flag, "--seed", "3"])
        config = getattr(command, "config", command)
        assert (config.log_to, config.seed) == (log_to, 3)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("events", [True, False])
def test_a_run_of_an_earlier_version_is_resumed(events, finished, run, tmp_path):
    """Its configuration has "tensorboard", true or false."""
    config = dataclasses.replace(finished.config, workdir=str(tmp_path / "run"))
    values = dataclasses.asdict(config)
    del values["log_to"]
    (tmp_path / "run").mkdir()
    text = json.dumps(values | {"tensorboard": events})
    (tmp_path / "run" / "config.json").write_text(text)
    loaded = config_file.load_config(config.workdir)
    assert loaded.log_to == (("tensorboard",) if events else ())
    outcome, _ = run(loaded)
    assert outcome.finished
    assert (tmp_path / "run" / "tensorboard").exists() is events
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "tensorboard" not in stored
    assert lines(config.workdir)[-1]["split"] == "test"
