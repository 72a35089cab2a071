"""Runs and releases of earlier versions, which are kept in tests/data for ever."""

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

import shiftjax
from shiftjax.apps.verify import verify
from tests.data.make import STOPPED, images
from tests.train.runs import TIMES, lines
from tests.train.small_trainer import assert_close
from train import config as config_file
from train.config import Config, Faces
from train.evaluation import evaluate_run, evaluate_weights
from train.release import load_run

pytestmark = pytest.mark.usefixtures("quick")

DATA = Path(__file__).parents[1] / "data"
VERSIONS = sorted(path.parent.name for path in DATA.glob("*/run"))
NAME = "shiftresnet20.digits"

# Relative to the largest number of an array, or to 1e-3. Other devices and compilers
# round differently: 1e-6 after the ten steps. Without the momentum the difference is
# 1e-2 and more.
TOLERANCE = 1e-4


@pytest.fixture(params=VERSIONS)
def kept(request, tmp_path):
    """A copy of the files of a version."""
    return shutil.copytree(DATA / request.param, tmp_path / request.param)


def recorded(kept):
    """The lines of the whole run, as its own version wrote them."""
    (log,) = (kept / "releases" / "logs").iterdir()
    return [json.loads(x) for x in gzip.decompress(log.read_bytes()).splitlines()]


def assert_as_recorded(line, wanted):
    """Asserts that a line has what an earlier version recorded, except for times."""
    assert line["split"] == wanted["split"]
    for name in wanted.keys() - {"split", *TIMES}:
        assert line[name] == pytest.approx(wanted[name], rel=TOLERANCE), name


def test_this_version_has_files():
    assert shiftjax.__version__ in VERSIONS, "python -m tests.data.make writes them"


def test_a_checkpoint_is_evaluated(kept):
    result = evaluate_run(str(kept / "run"), "validation")
    place = (STOPPED, "validation")
    (line,) = [x for x in recorded(kept) if (x["step"], x["split"]) == place]
    assert result["loss"] == pytest.approx(line["loss"], rel=TOLERANCE)
    assert result["top1"] == line["top1"]
    assert (result["examples"], result["step"]) == (line["examples"], line["step"])


def test_a_run_is_resumed_to_its_end_and_shown(kept, run):
    """The release has the variables of the same run, which was resumed at once."""
    workdir = str(kept / "run")
    config = dataclasses.replace(config_file.load_config(workdir), workdir=workdir)
    outcome, text = run(config)
    assert f"resuming {workdir} at step {STOPPED}" in text
    assert outcome.finished
    found = lines(workdir)
    for line, wanted in zip(found, recorded(kept), strict=True):
        assert_as_recorded(line, wanted)
    arrays = safetensors.numpy.load_file(kept / "releases" / f"{NAME}.safetensors")
    variables = load_run(workdir).variables
    assert_close(arrays, dict(flatten_dict(variables, sep="/")), TOLERANCE)
    shown, _ = run(config)
    assert (shown.finished, shown.test) == (True, outcome.test)
    assert lines(workdir) == found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"tensorboard": True}, Config(log_to=("tensorboard",))),
        ({"tensorboard": False}, Config(log_to=())),
        ({"faces": {"fold": 0, "scale": 30.0}}, Config(faces=Faces(scale=30.0))),
        ({"faces": {"fold": 3}}, Config(faces=Faces(folds=(3,)))),
    ],
)
def test_options_that_had_another_name_are_read(old, new):
    assert config_file.from_dict(old) == new


def test_a_release_is_verified_loaded_and_evaluated(kept):
    folder = kept / "releases"
    assert verify(NAME, folder) == ("rings", "temple")
    model, variables = shiftjax.load_pretrained(NAME, directory=folder)
    logits = json.loads((kept / "logits.json").read_text())
    # float32; the largest logits are about 2.
    np.testing.assert_allclose(model.apply(variables, images()), logits, atol=1e-5)
    *_, test = recorded(kept)
    result = evaluate_weights(NAME, str(folder))
    assert result["loss"] == pytest.approx(test["loss"], rel=TOLERANCE)
    assert (result["top1"], result["examples"]) == (test["top1"], test["examples"])
