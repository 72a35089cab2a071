"""Whole runs that nothing interrupts."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from tests.train.runs import (
    EPOCH,
    STEPS,
    checkpoint,
    lines,
    places,
    raw,
    saved_steps,
)
from train import config as config_file
from train.logging.records import read_metrics
from train.periods import every

pytestmark = pytest.mark.usefixtures("quick")


# --- a run that nothing interrupts ----------------------------------------------------


def test_the_outcome_of_a_run(finished):
    outcome = finished.outcome
    assert outcome.finished
    assert outcome.steps == int(outcome.state.step) == STEPS
    assert list(outcome.test) == ["loss", "top1", "examples"]
    assert outcome.test["examples"] == 360
    assert 0 < outcome.test["loss"] < 10
    assert "on 40 examples of digits, 20 steps of 16 on 4 cpu" in finished.text


def test_the_test_split_is_read_once_at_the_end(finished):
    assert finished.splits == ["validation", "test"]


def test_the_files_of_a_run(finished):
    workdir = Path(finished.config.workdir)
    names = {path.name for path in workdir.iterdir() if path.name[0] != "."}
    files = {"config.json", "metrics.jsonl", "checkpoints", "curves.png"}
    assert names == files | {"starts.jsonl"}
    assert config_file.load_config(workdir) == finished.config


def test_the_last_and_the_best_checkpoints_are_kept(finished):
    """Saved at 5, 10, 15 and 20, evaluated at 10 and 20: two of the last, one best."""
    ten, twenty = lines(finished.config.workdir, "validation")
    best = 10 if ten["top1"] > twenty["top1"] else 20
    assert saved_steps(finished.config.workdir) == sorted({15, 20, best})
    assert raw(checkpoint(finished.config.workdir)) == raw(finished.outcome.state)


def test_the_record_of_a_run(finished):
    record = read_metrics(finished.config.workdir)
    wanted = [(step, "train") for step in (3, 6, 9, 12, 15, 18, 20)]
    wanted += [(10, "validation"), (20, "validation"), (20, "test")]
    order = ["train", "validation", "test"]
    assert places(finished.config.workdir) == sorted(
        wanted, key=lambda place: (place[0], order.index(place[1]))
    )
    for line in record:
        names = ["step", "epoch", "split", "loss", "top1"]
        if line["split"] == "train":
            names += ["images_per_second", "input_wait"]
            names += ["compile_seconds"] * (line["step"] == 3)  # the first line's
            names += ["learning_rate"]
            assert line["images_per_second"] > 0
            assert 0 <= line["input_wait"] <= 1
        else:
            names += ["examples"]
            assert line["examples"] == {"validation": 1397, "test": 360}[line["split"]]
        assert list(line) == names
        assert line["epoch"] == line["step"] / EPOCH
        assert math.isfinite(line["loss"])
        assert 0 <= line["top1"] <= 1


def test_the_learning_rate_of_the_record_is_that_of_its_step(finished):
    """A warm-up of 2 steps, then a cosine of 18; step n is done with rate(n - 1)."""
    for line in lines(finished.config.workdir, "train"):
        share = (line["step"] - 1 - 2) / 18
        wanted = 0.05 * (1 + math.cos(math.pi * share)) / 2
        assert line["learning_rate"] == pytest.approx(wanted, rel=1e-5)  # float32


def test_what_is_reported_is_what_is_recorded(finished):
    (test,) = lines(finished.config.workdir, "test")
    assert {name: test[name] for name in finished.outcome.test} == finished.outcome.test


@pytest.fixture(scope="module")
def undisturbed(finished, run, tmp_path_factory) -> str:
    """The workdir of the same run, with every step recorded and no pause."""
    config = dataclasses.replace(
        finished.config,
        workdir=str(tmp_path_factory.mktemp("undisturbed") / "run"),
        log_steps=1,
        eval_epochs=math.inf,
        save_epochs=math.inf,
    )
    run(config)
    return config.workdir


def test_a_run_may_be_evaluated_and_saved_at_its_end_alone(finished, undisturbed):
    wanted = [(step, "train") for step in range(1, STEPS + 1)]
    wanted += [(STEPS, "validation"), (STEPS, "test")]
    assert places(undisturbed) == wanted
    assert saved_steps(undisturbed) == [STEPS]
    assert raw(checkpoint(undisturbed)) == raw(finished.outcome.state)


def test_a_line_of_the_record_is_the_mean_of_all_steps_since_the_last(
    finished, undisturbed
):
    """Also where it was evaluated or saved in between; the sums are float32."""
    single = {line["step"]: line for line in lines(undisturbed, "train")}
    before = 0
    for line in lines(finished.config.workdir, "train"):
        steps = range(before + 1, line["step"] + 1)
        for name in ("loss", "top1"):
            mean = np.mean([single[step][name] for step in steps])
            assert line[name] == pytest.approx(mean, rel=1e-6), line["step"]
        before = line["step"]


@pytest.mark.parametrize(
    ("epochs", "steps"),
    [(1.0, [2]), (3.0, [3, 5, 8]), (1.2, [3])],
    ids=["rounded down", "rounded up", "whole"],
)
def test_the_last_step_is_validated_once(tiny, run, tmp_path, epochs, steps):
    """Epochs of 2.5 steps, of which one ends after 2.5 or 7.5: rounded to even."""
    config = tiny(tmp_path / "run", epochs=epochs, eval_epochs=1.0, save_epochs=1.0)
    outcome, _ = run(config)
    assert outcome.steps == steps[-1]
    validations = lines(config.workdir, "validation")
    assert [line["step"] for line in validations] == steps
    assert max(saved_steps(config.workdir)) == steps[-1]


# --- when something is due ------------------------------------------------------------


def test_every_multiple_of_a_period_is_due_once():
    """Rounded at each multiple, so that nothing drifts: 2.5, 5, 7.5, 10, 12.5, ..."""
    due, step = [], 0
    while step < 20:
        step = every(2.5, step)
        due.append(step)
    assert due == [3, 5, 8, 10, 13, 15, 18, 20]


@pytest.mark.parametrize("period", [1.0, 1.3, 2.5, 3, 81.25, 390.625, 0.1])
def test_the_next_step_due_is_the_same_from_each_step_before(period):
    multiples = np.floor(max(period, 1) * np.arange(1, 400) + 0.5).astype(int)
    for step in range(300):
        assert every(period, step) == multiples[multiples > step].min()


def test_a_period_without_end_is_never_due():
    assert every(math.inf, 0) > 2**31
    assert every(math.inf, 10**6) > 2**31
