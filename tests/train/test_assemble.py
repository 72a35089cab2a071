"""The parts of a run: what is built from a configuration."""

import dataclasses
import types
from pathlib import Path

import numpy as np
import pytest

from shiftjax.errors import InputError
from train.assemble import set_up
from train.config import Augment, Config, Data, Model, Optimizer
from train.data.image_set import ImageSet
from train.data.placement import FED_STEPS
from train.loop import train
from train.parallel import AXIS

pytestmark = pytest.mark.usefixtures("quick")

EXAMPLES = 41


def noise(classes: int) -> ImageSet:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (EXAMPLES, 4, 4, 3), np.uint8)
    labels = rng.integers(0, classes, EXAMPLES).astype(np.int32)
    return ImageSet(images, labels, tuple(f"class{i}" for i in range(classes)))


def test_steps_in_a_dispatch():
    """One on a CPU, where a dispatch costs little; few pictures are fed at once."""
    fed = Config(data=Data(resident_bytes=0))
    for config, steps in ((Config(), 32), (fed, FED_STEPS)):
        made = set_up(config, noise(10))
        assert made.steps_per_dispatch == 1
        accelerator = types.SimpleNamespace(platform="tpu")
        replicas = dataclasses.replace(made.replicas, devices=(accelerator,))
        elsewhere = dataclasses.replace(made, replicas=replicas)
        assert elsewhere.steps_per_dispatch == steps
    chosen = Config(steps_per_dispatch=7)
    assert set_up(chosen, noise(10)).steps_per_dispatch == 7


@pytest.mark.parametrize(("asked", "frozen"), [(True, ("stem",)), (False, ())])
def test_statistics_are_frozen_when_asked_for(asked, frozen):
    optimizer = Optimizer(freeze=("stem",), freeze_statistics=asked)
    made = set_up(Config(optimizer=optimizer), noise(10))
    assert made.trainer.frozen_statistics == frozen


def test_the_length_of_a_run(tiny):
    """40 examples in batches of 16 are 2.5 steps an epoch."""
    made = set_up(tiny("w", epochs=3.0))
    assert len(made.train_set) == 40
    assert made.order.steps_per_epoch == 2.5
    assert made.total_steps == round(7.5)
    assert made.epoch(5) == 2.0
    assert set_up(tiny("w", epochs=0.01, schedule=Config().schedule)).total_steps == 1


@pytest.mark.parametrize("sync", [True, False])
def test_the_network_is_the_one_asked_for(tiny, sync):
    options = {"depth": 8, "expansion": 2, "momentum": 0.5}
    model = Model("shiftresnet20", options, "bfloat16", True, sync)
    trainer = set_up(tiny("w", model=model, label_smoothing=0.1, seed=3)).trainer
    net = trainer.task.model
    assert (net.depth, net.expansion, net.num_classes) == (8, 2, 10)
    assert (net.dtype, net.remat) == ("bfloat16", True)
    assert net.axis_name == (AXIS if sync else None)
    assert trainer.bn_momentum == 0.5
    assert trainer.task.label_smoothing == 0.1
    assert trainer.seed == 3


def test_training_on_all_official_training_examples(tiny):
    data = dataclasses.replace(tiny("w").data, train_on="train+validation")
    assert len(set_up(tiny("w", data=data)).train_set) == 1437


@pytest.mark.parametrize("name", ["num_classes", "dtype", "remat", "axis_name"])
def test_overrides_of_what_has_a_flag_are_refused(tiny, name):
    with pytest.raises(InputError, match=f"--model.overrides {name}"):
        set_up(tiny("w", model=Model("shiftresnet20_e1", {name: 1})))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 6}, "batch_size=6: 4 devices share it"),
        ({"devices": 5}, "devices=5: this process has 4"),
        (
            {"batch_size": 48, "accumulate": 5},
            "--accumulate 5: it must divide each device's share of the batch, 12 "
            "examples; choose 4 or 6$",
        ),
        ({"accumulate": 9}, "4 examples; choose 4$"),
        (
            {"batch_size": 4, "augment": Augment(cutmix=1.0)},
            "--augment.cutmix 1.0: it mixes examples of the same device, and "
            "--batch-size 4 gives each device 1; it must be at least 2$",
        ),
        ({"batch_size": 4, "augment": Augment(mixup=0.2)}, "--augment.mixup 0.2"),
        ({"model": Model("shiftresnet21")}, "did you mean 'shiftresnet20'"),
        ({"model": Model("shiftresnet20")}, "needs expansion"),
        ({"model": Model("resnet20", {"dept": 8})}, "did you mean 'depth'"),
        ({"data": Data(source="digit")}, "did you mean 'digits'"),
        ({"data": Data(source="tfds:")}, "names no data"),
        ({"epochs": -1.0}, "--epochs -1.0"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused_before_anything_is_written(
    tiny, tmp_path, changes, message
):
    with pytest.raises(InputError, match=message):
        set_up(tiny(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def photos(path: Path, labels: list[int]) -> Data:
    """Writes a few images without splits, as arrays."""
    images = np.zeros((len(labels), 8, 8), np.uint8)
    np.savez(path, images=images, labels=np.array(labels))
    return Data(f"npz:{path}", image_size=8)


@pytest.mark.parametrize("task", ["classification", "faces"])
def test_a_single_class_is_refused(tiny, tmp_path, task):
    """Every answer would be right, and the accuracy 100%."""
    data = photos(tmp_path / "one.npz", [0] * 40)
    with pytest.raises(
        InputError, match=f"npz has one class only, '0': the task {task} needs two"
    ):
        set_up(tiny(tmp_path / "run", task=task, data=data))


def test_too_few_examples_to_hold_out_a_tenth_leave_no_folder(tiny, tmp_path):
    """Else the folder would refuse the options that mend it, as of another run."""
    data = photos(tmp_path / "few.npz", [0, 1] * 5)  # two of them are the test
    config = tiny(tmp_path / "run", batch_size=4, data=data)
    with pytest.raises(InputError, match="a tenth of its 8 training examples is none"):
        train(config)
    assert not (tmp_path / "run").exists()
