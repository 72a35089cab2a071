"""From finished runs to released weights, and their evaluation."""

import dataclasses
import gzip
import re
import shlex
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import shiftjax
from shiftjax import InputError
from shiftjax.apps.verify import verify
from shiftjax.cli.main import main as shiftjax_main
from shiftjax.errors import MissingFileError
from shiftjax.releases import manifest
from shiftjax.weights import Card, Pretrained, open_pretrained, save
from tests.shiftjax.conftest import random_variables
from tests.train.runs import NETWORK, copy_of
from train import config as config_file
from train import experiments
from train.__main__ import parse
from train.assemble import begin_with, set_up
from train.config import Model, Optimizer, Schedule
from train.data.sources import load_source
from train.evaluation import evaluate_run, evaluate_weights
from train.release import _weights, load_run, release

pytestmark = pytest.mark.usefixtures("quick")

NAME = "shiftresnet20.digits"


@pytest.fixture
def assert_same():
    """Returns a function that compares two trees bit by bit."""

    def assert_same(actual, expected):
        jax.tree.map(np.testing.assert_array_equal, actual, expected)

    return assert_same


@pytest.fixture
def other_seed(tmp_path, finished):
    """The finished run, as if it had been another seed's."""
    folder = tmp_path / "seed1"
    shutil.copytree(finished.config.workdir, folder)
    config = dataclasses.replace(finished.config, workdir=str(folder), seed=1)
    config_file.save_config(config, folder)
    return folder


@pytest.fixture
def released(tmp_path, finished):
    """A folder with the release of the finished run."""
    release([finished.config.workdir], "digits", tmp_path / "zoo", recipe="quick")
    return tmp_path / "zoo"


def test_a_run_becomes_a_release(released, finished):
    entry = manifest.find(NAME, released)
    (run,) = entry.runs
    test = finished.outcome.test
    assert run.test == {name: test[name] for name in ("loss", "top1")}
    assert set(run.validation) == {"loss", "top1"}
    assert (run.seed, run.epochs) == (0, finished.config.epochs)
    assert 0 < run.hours + 0.01 < 1
    assert re.match(r"\d+ cores? of ", run.hardware)
    assert entry.recipe == "quick"
    log = gzip.decompress((released / run.log).read_bytes())
    assert log == (Path(finished.config.workdir) / "metrics.jsonl").read_bytes()
    assert verify(NAME, released) == ("rings", "temple")
    model, _ = shiftjax.load_pretrained(NAME, directory=released)
    assert (model.depth, model.expansion, model.num_classes) == (8, 1, 10)


def test_the_license_is_on_the_card(released, finished, tmp_path):
    assert open_pretrained(NAME, released).card.license == "Apache-2.0"
    release([finished.config.workdir], "digits", tmp_path, license_name="other")
    assert open_pretrained(NAME, tmp_path).card.license == "other"


@pytest.mark.parametrize("devices", [1, 4])
def test_a_release_evaluates_to_its_number(released, finished, devices):
    """Exactly: every example counts once."""
    result = evaluate_weights(NAME, str(released), devices=devices)
    assert result["top1"] == finished.outcome.test["top1"]
    assert result["examples"] == finished.outcome.test["examples"]
    run = evaluate_run(finished.config.workdir)
    assert result["loss"] == pytest.approx(run["loss"], rel=1e-5)


@pytest.fixture
def gray():
    """The card of a network for gray images."""
    options = {"depth": 8, "num_classes": 10}
    names = tuple("0123456789")
    return Card("resnet20", options, names, 8, (0.25,), (0.5,), "digits")


def test_weights_for_gray_images_are_released(tmp_path, gray, rng, monkeypatch):
    """The stem's 3x3 kernel has one channel in the counts, too."""
    model = gray.model()
    variables = random_variables(rng, model, np.zeros((1, 8, 8, 1), np.float32))
    run = Pretrained(model, variables, gray)
    monkeypatch.setattr("train.release.load_run", lambda folder, step: run)
    entry = _weights(None, 0, "resnet20.gray", tmp_path, {})
    assert entry.params == sum(x.size for x in jax.tree.leaves(variables["params"]))
    rgb = shiftjax.summarize(model, 8)
    assert rgb.macs - entry.macs == 8 * 8 * 9 * 2 * 16
    manifest.write_manifest(tmp_path, {entry.name: entry})
    assert verify(entry.name, tmp_path) == ("rings", "temple")


def test_weights_for_gray_images_are_evaluated(tmp_path, gray):
    """Zeros for weights: the loss is ln 10, and the first class is that of a tenth."""
    shapes = jax.eval_shape(
        gray.model().init, jax.random.key(0), jnp.zeros((1, 8, 8, 1))
    )
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    path = str(tmp_path / "gray.safetensors")
    save(path, variables, gray)
    result = evaluate_weights(path, devices=1)
    assert result["loss"] == pytest.approx(np.log(10), rel=1e-5)
    zeros = (load_source("digits", "test", image_size=8).labels == 0).mean()
    assert result["top1"] == pytest.approx(zeros)
    assert result["examples"] == 360


def test_the_command_evaluates(released, finished, capsys, monkeypatch):
    monkeypatch.setattr("train.commands.prepare_process", lambda *_: None)
    words = ["evaluate", NAME, "--directory", str(released)]
    assert shiftjax_main(words) == 0
    accuracy = f"test top-1 {100 * finished.outcome.test['top1']:.2f}%"
    assert capsys.readouterr().out.startswith(accuracy)
    assert shiftjax_main([*words, "--split", "tests"]) == 2
    assert "did you mean 'test'" in capsys.readouterr().err


def test_the_folder_of_a_run_is_loaded(finished):
    model, variables = shiftjax.load_pretrained(finished.config.workdir)
    assert model.num_classes == 10
    expected = finished.outcome.state.variables
    assert set(variables) == {"params", "batch_stats"}
    jax.tree.map(
        np.testing.assert_array_equal,
        variables,
        {name: expected[name] for name in variables},
    )


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        shiftjax.load_pretrained(str(tmp_path))


def test_a_folder_without_a_trainer_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr("shiftjax.weights.LOADERS", "of nobody")
    with pytest.raises(InputError, match=r"is a folder: .* need shiftjax\[train\]"):
        shiftjax.load_pretrained(str(tmp_path))


def test_seeds_are_released_together(tmp_path, finished, other_seed):
    """The weights are those of the lowest; a later release keeps earlier runs."""
    together = release([other_seed, finished.config.workdir], "a", tmp_path / "zoo")
    assert [run.seed for run in together.runs] == [0, 1]
    release([other_seed], "b", tmp_path / "zoo")
    first = release([finished.config.workdir], "b", tmp_path / "zoo")
    assert [run.seed for run in first.runs] == [0, 1]
    later = release([other_seed], "a", tmp_path / "zoo")
    assert later == together
    assert list(manifest.read(tmp_path / "zoo")) == [
        "shiftresnet20.a",
        "shiftresnet20.b",
    ]
    pretrained = load_run(finished.config.workdir)
    assert pretrained.card.seed == 0


def test_what_cannot_be_released(tmp_path, finished, other_seed):
    zoo, workdir = tmp_path / "zoo", finished.config.workdir
    with pytest.raises(InputError, match="letters, digits and _"):
        release([workdir], "a.b", zoo)
    with pytest.raises(InputError, match="the same seed"):
        release([workdir, workdir], "a", zoo)
    longer = dataclasses.replace(finished.config, epochs=30.0, seed=1)
    config_file.save_config(longer, other_seed)
    with pytest.raises(InputError, match="more than their seeds: --epochs was 8"):
        release([workdir, other_seed], "a", zoo)
    metrics = other_seed / "metrics.jsonl"
    lines = [x for x in metrics.read_text().splitlines() if '"test"' not in x]
    metrics.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="is not finished: continue it with"):
        release([other_seed], "a", zoo)
    release([workdir], "c", zoo, recipe="quick")
    with pytest.raises(InputError, match="released with recipe 'quick', not 'slow'"):
        release([workdir], "c", zoo, recipe="slow")
    assert list(manifest.read(zoo)) == ["shiftresnet20.c"]


def test_a_run_that_was_not_prolonged_yet_is_not_released(tmp_path, finished):
    """The start with more epochs failed after it had written the configuration."""
    config = copy_of(finished, tmp_path / "run")
    longer = dataclasses.replace(config, epochs=8.3)  # 21 steps of 0.4 epochs
    config_file.save_config(longer, config.workdir)
    with pytest.raises(InputError, match="run is not finished: continue it"):
        release([config.workdir], "a", tmp_path / "zoo")
    as_long = dataclasses.replace(config, epochs=8.1)  # 20 steps, as for 8 epochs
    config_file.save_config(as_long, config.workdir)
    (made,) = release([config.workdir], "a", tmp_path / "zoo").runs
    assert made.epochs == 8.1


def test_a_damaged_checkpoint_is_not_released(tmp_path, finished, caplog):
    """The weights are those of the test, or there are none."""
    config = copy_of(finished, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "20" / "manifest" / "data.json").unlink()
    with pytest.raises(InputError, match="checkpoint of step 20 is damaged"):
        release([config.workdir], "a", tmp_path / "zoo")
    assert not list((tmp_path / "zoo").glob("*.safetensors"))
    assert not caplog.messages
    load_run(config.workdir)
    (said,) = caplog.messages
    assert "checkpoint of step 20 is damaged" in said
    assert said.endswith(", step 15 is loaded")


def test_the_data_of_a_release_are_named_and_not_placed(finished, tmp_path):
    pretrained = load_run(finished.config.workdir)
    card = dataclasses.replace(pretrained.card, dataset="folder:pets")
    path = str(tmp_path / "pets.safetensors")
    save(path, pretrained.variables, card)
    with pytest.raises(MissingFileError, match=r"folder:pets: .*; --source names"):
        evaluate_weights(path)


def test_weights_are_not_evaluated_on_other_classes(released, tmp_path, capsys):
    from PIL import Image

    for label in ("cat", "dog"):
        for i in range(6):
            folder = tmp_path / "pets" / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(folder / f"{i}.png")
    with pytest.raises(InputError, match="has other classes than"):
        evaluate_weights(NAME, str(released), source=f"folder:{tmp_path / 'pets'}")


@pytest.mark.parametrize("name", experiments.names())
def test_the_command_of_a_run_gives_it_again(name):
    base = experiments.load(name)
    changed = dataclasses.replace(
        base,
        seed=3,
        epochs=2.5,
        ema_decay=0.99,
        model=dataclasses.replace(
            base.model, name="resnet20", overrides={"block_reduction": 2.8}, remat=True
        ),
        schedule=dataclasses.replace(
            base.schedule, kind="steps", boundaries=(1.0, 2.0)
        ),
        optimizer=dataclasses.replace(base.optimizer, freeze=("stem", "stage1*")),
    )
    for run in (base, changed):
        words = shlex.split(experiments.command(run))
        assert words[:3] == ["python", "-m", "train"]
        assert parse(words[3:]) == run
    assert "--optimizer.freeze stem 'stage1*'" in experiments.command(changed)


# Fine-tuning.


@pytest.fixture
def fine_tune(released, tiny, run, monkeypatch, tmp_path):
    """Returns a function that trains from the release, for an epoch."""
    monkeypatch.setenv(manifest.ENVIRONMENT, str(released))

    def fine_tune(**changes):
        return run(tiny(tmp_path / "tuned", init=NAME, epochs=1.0, **changes))[0].state

    return fine_tune


def test_a_run_begins_with_released_weights(fine_tune, finished, assert_same):
    """At a rate of 0 it stays there."""
    state = fine_tune(schedule=Schedule("constant", 0.0))
    assert_same(state.params, finished.outcome.state.params)


def test_what_is_frozen_stays_as_it_was(fine_tune, finished, assert_same):
    state = fine_tune(optimizer=Optimizer(freeze=("stem", "stage1*")))
    before = finished.outcome.state.params
    for name, params in state.params.items():
        if name.startswith(("stem", "stage1")):
            assert_same(params, before[name])
        else:
            with pytest.raises(AssertionError):
                assert_same(params, before[name])


def test_the_average_begins_with_released_weights_too(fine_tune, finished, assert_same):
    state = fine_tune(schedule=Schedule("constant", 0.0), ema_decay=0.5)
    for leaf, other in zip(
        jax.tree.leaves(state.ema["params"]),
        jax.tree.leaves(finished.outcome.state.params),
        strict=True,
    ):
        np.testing.assert_allclose(leaf, other, rtol=1e-6)


def test_weights_of_another_network_are_refused(fine_tune, tiny):
    deeper = Model("shiftresnet20", NETWORK | {"depth": 14})
    with pytest.raises(InputError, match=r"--init .* is of another network"):
        fine_tune(model=deeper)


def test_weights_for_images_of_other_channels_are_refused_as_such(
    tmp_path, gray, rng, tiny
):
    """Colors are no other network, which a user would look for in vain."""
    variables = random_variables(rng, gray.model(), np.zeros((1, 8, 8, 1), np.float32))
    path = str(tmp_path / "gray.safetensors")
    save(path, variables, gray)
    model = Model("resnet20", {"depth": 8})
    with pytest.raises(InputError, match=r"for images of 1 channel.*run have 3: --dat"):
        set_up(tiny("w", model=model, init=path)).initial_state()
    wider = Model("resnet20", {"depth": 14})
    with pytest.raises(InputError, match="is of another network than"):
        set_up(tiny("w", model=wider, init=path)).initial_state()


def test_weights_of_other_classes_get_a_new_head(finished, tmp_path, tiny):
    pretrained = load_run(finished.config.workdir)
    path = str(tmp_path / "digits.safetensors")
    save(path, pretrained.variables, pretrained.card)
    state = set_up(tiny("w")).initial_state()
    new = begin_with(path, state, 10)
    assert new.params["head"]["bias"].shape == (10,)
    with pytest.raises(InputError, match="is of another network"):
        begin_with(path, state, 7)


def test_a_release_resizes_as_its_run(tmp_path, tiny, run):
    made = tiny(tmp_path / "run", epochs=1.0)
    resized = dataclasses.replace(made.data, resize=10)
    outcome, _ = run(dataclasses.replace(made, data=resized))
    release([made.workdir], "digits", tmp_path / "zoo")
    assert load_run(made.workdir).card.resize == 10
    result = evaluate_weights(NAME, str(tmp_path / "zoo"))
    assert result["loss"] == pytest.approx(outcome.test["loss"], rel=1e-5)
    assert verify(NAME, tmp_path / "zoo") == ("rings", "temple")
