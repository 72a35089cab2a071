"""Runs whose images are decoded at each epoch: to the end, and resumed."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from shiftjax.errors import InputError
from tests.train.processes import wait
from tests.train.runs import saved_steps
from tests.train.watched import noted, watch
from train import config as config_file
from train.__main__ import parse
from train.assemble import set_up
from train.config import Augment, Schedule
from train.evaluation import evaluate_run

pytestmark = pytest.mark.usefixtures("quick")

FAKE = "fake:40x3"
CROPS = Augment(crop_padding=0, random_resized_crop=True, crop_scale=(0.3, 1.0))


@pytest.fixture
def folder(tmp_path):
    """JPEG images of two classes, one bright and one dark."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 5)):
        for name, level in (("bright", 128), ("dark", 0)):
            inside = tmp_path / "images" / split / name
            inside.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 128, (20, 14 + i, 3)) + level
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(inside / f"{i}.jpg")
    return tmp_path / "images"


@pytest.fixture
def config(tiny, tmp_path):
    """Returns a function that configures a run of ten steps on a source."""

    def config(source, **data):
        made = tiny(tmp_path / "run", epochs=4.0, augment=CROPS)
        options = {"source": source, "validation_examples": 4, **data}
        return dataclasses.replace(made, data=dataclasses.replace(made.data, **options))

    return config


def test_random_images_are_trained_by_the_command_line(run, tmp_path):
    words = "digits --model.overrides depth 8 expansion 1 implementation reference"
    words += " --data.image-size 8"
    words += f" --data.source {FAKE} --augment.random-resized-crop --epochs 2"
    words += " --augment.crop-scale 0.5 1 --data.threads 2 --data.validation-examples 4"
    words += f" --batch-size 12 --log-to --workdir {tmp_path / 'run'}"
    outcome, text = run(parse(words.split()))
    assert outcome.finished
    assert outcome.steps == 6
    assert outcome.test["examples"] == 4
    assert f"36 examples of {FAKE}" in text


def test_a_folder_is_learned_and_evaluated_from_elsewhere(
    folder, config, run, monkeypatch, tmp_path
):
    monkeypatch.chdir(folder.parent)
    made = config("folder:images", resize=10)
    outcome, _ = run(dataclasses.replace(made, epochs=8.0))
    assert outcome.finished
    assert outcome.test["top1"] == 1  # bright and dark differ at any place
    assert outcome.test["examples"] == 10
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert config_file.load_config(tmp_path / "run").data.source == f"folder:{folder}"
    assert evaluate_run(made.workdir)["loss"] == outcome.test["loss"]


def test_a_damaged_image_does_not_cost_the_steps_before_it(folder, config, run):
    """The run saves before it ends, and goes on with --data.on-corrupt skip."""
    made = dataclasses.replace(config(f"folder:{folder}"), log_steps=1)
    setup = set_up(made)
    images: Any = setup.train_set
    damaged = images.records.paths[images.numbers[setup.order.indices(1)[0]]]
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(InputError, match=damaged.name):
        run(made)
    assert saved_steps(made.workdir) == [1]
    data = dataclasses.replace(made.data, on_corrupt="skip")
    outcome, text = run(dataclasses.replace(made, data=data))
    assert "at step 1" in text
    assert outcome.finished


def test_a_resumed_run_has_the_same_bits(config, run):
    """Also with other threads: the images depend on step and example alone."""
    whole, _ = run(config(FAKE, threads=1))
    halves = config(FAKE, threads=3)
    halves = dataclasses.replace(halves, workdir=f"{halves.workdir}_halves")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.stopping.StopRequest.reached", lambda _: True)
        stopped, _ = run(halves)
    assert not stopped.finished
    resumed, _ = run(dataclasses.replace(halves, data=config(FAKE).data))
    assert resumed.finished
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(resumed.state),
        jax.device_get(whole.state),
    )
    assert resumed.test == whole.test


def test_a_run_may_go_on_with_another_number_of_processes(
    folder, config, run, pair, monkeypatch, tmp_path
):
    """From one to two and back to one, each time stopped within an epoch of 2.25 steps.

    Each step has the same examples and the same pixels. Sums over two devices are
    rounded otherwise than on one, by some 1e-7 of each number. The steps after them
    would amplify that at a high learning rate; at one of 0.001 it stays below 1e-5.
    Other examples give other statistics, by more than 0.01.
    """
    whole = config(f"folder:{folder}", decode="each_epoch")
    whole = dataclasses.replace(
        whole, devices=1, schedule=Schedule("constant", 1e-3), workdir=f"{tmp_path}/one"
    )
    parts = dataclasses.replace(whole, workdir=str(tmp_path / "parts"))
    with monkeypatch.context() as patch:
        watch(patch, tmp_path / "whole", 9)
        wanted, _ = run(whole)
        watch(patch, tmp_path / "first", 4)
        assert run(parts)[0].steps == 4
    codes, said = wait(
        pair(
            *[dataclasses.replace(parts, devices=None)] * 2,
            devices=(1, 1),
            program="tests.train.watched",
            words=(str(tmp_path / "second"), "7"),
        )
    )
    assert codes == [0, 0], said
    assert "at step 4" in said[0][0]
    assert "on 2 cpu device(s)" in said[0][0]
    with monkeypatch.context() as patch:
        watch(patch, tmp_path / "third", 9)
        outcome, text = run(parts)
    assert "at step 7" in text
    assert outcome.finished
    assert outcome.steps == wanted.steps == 9

    steps = [noted(tmp_path / "first", 1), noted(tmp_path / "second", 2)]
    steps = [*steps, noted(tmp_path / "third", 1)]
    assert [list(part) for part in steps] == [[0, 1, 2, 3], [4, 5, 6], [7, 8]]
    assert steps[0] | steps[1] | steps[2] == noted(tmp_path / "whole", 1)
    for x, y in zip(
        jax.tree.leaves(outcome.state.variables),
        jax.tree.leaves(wanted.state.variables),
        strict=True,
    ):
        scale = float(np.abs(y).max())
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * max(scale, 0.1))
    assert outcome.test["loss"] == pytest.approx(wanted.test["loss"], rel=1e-5)


def test_only_the_share_of_a_host_is_decoded(config, monkeypatch):
    """Two hosts: each reads its half of the columns, and the two make the batch."""
    setup = set_up(config(FAKE))
    whole = setup.train_set.batch(setup.order.indices(3), setup.order.draws(3))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    from train.data.placement import host_share
    from train.data.stream import items

    parts = []
    for host in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        index = host_share(setup.order.indices(3)[None])
        epochs = host_share(setup.order.draws(3)[None])
        parts.append(items(index, setup.train_set, 1, epochs)["images"][0])
        assert len(parts[-1]) == 8
    np.testing.assert_array_equal(np.concatenate(parts), whole[0])


def test_a_batch_larger_than_the_set_is_refused_before_training(config):
    made = dataclasses.replace(config(FAKE), batch_size=40)
    message = f"--batch-size 40: {FAKE} has only 36 training examples"
    with pytest.raises(InputError, match=message):
        set_up(made)
