"""Evaluation of a run after the fact."""

import dataclasses

import pytest

from shiftjax.errors import InputError, MissingFileError
from tests.train.runs import STEPS, copy_of, lines
from train import config as config_file
from train.evaluation import evaluate_run

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("devices", [None, 1, 3, 4])
def test_a_run_evaluated_again_gives_what_it_recorded(finished, devices):
    """On all devices, on one, and on three that do not divide the batch of training."""
    result = evaluate_run(finished.config.workdir, devices=devices)
    wanted = finished.outcome.test
    # A sum of 360 in float32; another number of devices adds in another order.
    assert result.pop("loss") == pytest.approx(wanted["loss"], rel=1e-5)
    assert result == {"top1": wanted["top1"], "examples": 360, "step": STEPS}


def test_other_splits_and_steps_can_be_evaluated(finished):
    workdir = finished.config.workdir
    *_, wanted = lines(workdir, "validation")
    result = evaluate_run(workdir, "validation")
    assert result["loss"] == pytest.approx(wanted["loss"], rel=1e-6)  # float32
    assert result["top1"] == wanted["top1"]
    assert evaluate_run(workdir, "train")["examples"] == 40
    earlier = evaluate_run(workdir, step=15)
    assert earlier["step"] == 15
    assert earlier["loss"] != evaluate_run(workdir)["loss"]


def test_the_weights_that_a_run_began_with_are_not_needed(finished, tmp_path):
    """As on a machine that has only the folder of the run."""
    config = copy_of(finished, tmp_path / "run")
    began = dataclasses.replace(config, init=str(tmp_path / "gone.safetensors"))
    config_file.save_config(began, config.workdir)
    result = evaluate_run(config.workdir)
    assert result["top1"] == finished.outcome.test["top1"]


def test_what_cannot_be_evaluated_is_named(finished, tmp_path, tiny):
    workdir = finished.config.workdir
    with pytest.raises(MissingFileError, match=r"step 7 .*\(there: .*15, 20\)"):
        evaluate_run(workdir, step=7)
    with pytest.raises(InputError, match="unknown split 'tests': did you mean 'test'"):
        evaluate_run(workdir, "tests")
    with pytest.raises(InputError, match="--devices 0"):
        evaluate_run(workdir, devices=0)
    with pytest.raises(InputError, match="devices=5: this process has 4"):
        evaluate_run(workdir, devices=5)
    with pytest.raises(MissingFileError, match="holds no run"):
        evaluate_run(str(tmp_path))
    config_file.save_config(tiny(tmp_path), tmp_path)
    with pytest.raises(InputError, match="holds no checkpoint yet"):
        evaluate_run(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
