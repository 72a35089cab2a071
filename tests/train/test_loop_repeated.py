"""The same command again: finished runs, other runs and mistakes."""

import dataclasses
import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from shiftjax.errors import InputError
from tests.train.runs import (
    EPOCH,
    NETWORK,
    copy_of,
    lines,
    raw,
    saved_steps,
)
from train import config as config_file
from train import loop
from train.config import Augment, Config, Model, Schedule
from train.evaluation import evaluate_run
from train.exits import TemporaryError
from train.release import load_run
from train.workdir import open_workdir

pytestmark = pytest.mark.usefixtures("quick")


def test_a_finished_run_given_again_reports_the_same_and_does_nothing(
    finished, run, tmp_path, monkeypatch
):
    config = copy_of(finished, tmp_path / "run")
    record = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    (tmp_path / "run" / "curves.png").unlink()

    def load_split(config: Config, split: str) -> Any:
        assert split != "test"
        return original(config, split)

    original = loop.load_split
    monkeypatch.setattr(loop, "load_split", load_split)
    outcome, text = run(config)
    assert outcome.finished
    assert outcome.test == finished.outcome.test
    assert raw(outcome.state) == raw(finished.outcome.state)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == record
    assert saved_steps(config.workdir) == saved_steps(finished.config.workdir)
    assert "at step 20" in text
    assert (tmp_path / "run" / "curves.png").exists()  # they can be made again


def test_a_finished_run_in_a_read_only_folder_is_shown_and_evaluated(
    finished, run, tmp_path, read_only
):
    config = copy_of(finished, tmp_path / "run")
    workdir = Path(config.workdir)
    (workdir / "curves.png").unlink()  # they are not drawn again
    before = {p: p.stat().st_mtime_ns for p in (workdir, *workdir.rglob("*"))}
    read_only(workdir)
    outcome, _ = run(config)
    assert outcome.finished
    assert outcome.test == finished.outcome.test
    evaluated = evaluate_run(config.workdir)
    assert evaluated["top1"] == outcome.test["top1"]
    assert load_run(config.workdir).card.seed == config.seed
    assert before == {p: p.stat().st_mtime_ns for p in (workdir, *workdir.rglob("*"))}


def test_hosts_leave_no_mark_in_a_folder_that_cannot_be_written(
    finished, run, tmp_path, read_only, monkeypatch
):
    """The mark by which they find out if they have one folder."""
    config = copy_of(finished, tmp_path / "run")
    read_only(Path(config.workdir))
    monkeypatch.setattr("train.coordination.count", lambda: 2)
    monkeypatch.setattr("train.coordination.exchange", lambda text: [text, text])
    outcome, _ = run(config)
    assert outcome.test == finished.outcome.test


def test_a_run_that_is_not_finished_needs_a_folder_to_write(
    finished, tmp_path, read_only
):
    config = copy_of(finished, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    *others, _ = path.read_text().splitlines()
    path.write_text("\n".join([*others, ""]))
    read_only(tmp_path / "run")
    with pytest.raises(
        InputError, match=r"--workdir .* cannot be written: .*Read-only"
    ):
        open_workdir(config)


def test_all_that_was_recorded_of_the_test_split_is_reported_again(
    finished, run, tmp_path
):
    """With more than ten classes also top-5."""
    config = copy_of(finished, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    *others, test = path.read_text().splitlines()
    test = json.dumps(json.loads(test) | {"top5": 0.5})
    path.write_text("\n".join([*others, test, ""]))
    outcome, _ = run(config)
    assert outcome.test == finished.outcome.test | {"top5": 0.5}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 1, "batch_size": 8}, ["--seed was 0, is 1", "--batch-size was 16"]),
        ({"augment": Augment(1, False)}, ["--augment.flip was True, is False"]),
        (
            {"model": Model("shiftresnet20", NETWORK | {"expansion": 2})},
            ["--model.overrides was {'depth': 8, 'expansion': 1,"],
        ),
    ],
    ids=["seed", "augment", "model"],
)
def test_the_workdir_of_another_run_is_refused_and_left_alone(
    finished, run, changes, told
):
    workdir = Path(finished.config.workdir)
    before = {p: p.read_bytes() for p in sorted(workdir.rglob("*")) if p.is_file()}
    with pytest.raises(InputError) as caught:
        run(dataclasses.replace(finished.config, **changes))
    for text in ["holds another run", *told]:
        assert text in str(caught.value)
    assert before == {p: p.read_bytes() for p in before}


def test_a_prolonged_run_ends_as_if_it_had_been_as_long_from_the_start(
    tiny, run, tmp_path
):
    """From 5 steps to 10; the test at step 5 is not one of the finished run."""
    schedule = Schedule("constant", 0.05, warmup_epochs=1)
    short, long = 5 / EPOCH, 10 / EPOCH
    config = tiny(tmp_path / "run", epochs=short, schedule=schedule)
    run(config)
    outcome, _ = run(dataclasses.replace(config, epochs=long))
    at_once = tiny(tmp_path / "long", epochs=long, schedule=schedule)
    wanted, _ = run(at_once)
    assert raw(outcome.state) == raw(wanted.state)
    assert outcome.test == wanted.test
    (test,) = lines(config.workdir, "test")
    assert test["step"] == 10
    steps = [line["step"] for line in lines(config.workdir, "train")]
    assert steps == [3, 5, 6, 9, 10]


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("cosine", {"epochs": 9.0}, "--epochs 9.0: the cosine schedule .* after 8.0"),
        ("one_cycle", {"epochs": 9.0}, "the one_cycle schedule .* with --init"),
        ("constant", {"epochs": 7.0}, "another run: --epochs was 8.0, is 7.0"),
        (
            "constant",
            {"epochs": 9.0, "seed": 1},
            "another run: --seed was 0, is 1; --epochs was 8.0, is 9.0",
        ),
    ],
)
def test_another_length_is_refused_where_it_would_change_the_run(
    tiny, tmp_path, kind, changes, told
):
    config = tiny(tmp_path / "run", schedule=Schedule(kind, 0.05))
    Path(config.workdir).mkdir()
    config_file.save_config(config, config.workdir)
    with pytest.raises(InputError, match=told):
        open_workdir(dataclasses.replace(config, **changes))
    assert config_file.load_config(config.workdir) == config


def test_a_mistake_in_the_network_can_be_mended_in_the_same_workdir(
    tiny, run, tmp_path, stop_at
):
    model = Model("shiftresnet20", NETWORK | {"depth": 9})
    with pytest.raises(InputError, match="depth=9"):
        run(tiny(tmp_path / "run", model=model))
    stop_at(1)
    assert run(tiny(tmp_path / "run"))[0].steps == 1


def test_a_refused_process_does_not_change_the_run_that_trains(tiny, tmp_path):
    """It would be resumed, and released, with more epochs than it was started with."""
    config = tiny(tmp_path / "run", schedule=Schedule("constant", 0.05))
    other = dataclasses.replace(config, epochs=9.0, log_steps=7)
    with open_workdir(config):
        with pytest.raises(TemporaryError, match="in use"):
            open_workdir(other)
        assert config_file.load_config(config.workdir) == config
    with open_workdir(other):  # the lock is free again
        assert config_file.load_config(config.workdir) == other


def test_the_weights_that_a_run_began_with_are_not_needed_to_resume_it(
    finished, run, tiny, tmp_path
):
    """And those of a new run are, before its folder is made."""
    gone = str(tmp_path / "gone.safetensors")
    config = dataclasses.replace(copy_of(finished, tmp_path / "run"), init=gone)
    config_file.save_config(config, config.workdir)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")
    outcome, text = run(config)
    assert "at step 15" in text
    assert raw(outcome.state) == raw(finished.outcome.state)
    with pytest.raises(InputError, match=r"gone\.safetensors"):
        run(tiny(tmp_path / "new", init=gone))
    assert not (tmp_path / "new").exists()


def test_two_runs_in_one_workdir_are_refused(finished, run, tmp_path):
    config = copy_of(finished, tmp_path / "run")
    with (tmp_path / "run" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="in use"):
            run(config)
    assert run(config)[0].finished  # free again
