"""The parts of a run: what is built from a configuration, and exact evaluation."""

import dataclasses
import types
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from shiftjax.errors import InputError
from train import setup as setups
from train.config import Config, Data, Model
from train.data.image_set import ImageSet
from train.data.stream import Order
from train.optimizer import make_optimizer
from train.parallel import AXIS, Replicas
from train.setup import Setup, evaluate, host_share, is_resident, set_up
from train.state import create_state
from train.steps import Trainer
from train.tasks.classification import Classification

pytestmark = pytest.mark.usefixtures("quick")

EXAMPLES = 41
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Linear(nn.Module):
    """A linear function of the pixels' mean."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))


def noise(classes: int) -> ImageSet:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (EXAMPLES, 4, 4, 3), np.uint8)
    labels = rng.integers(0, classes, EXAMPLES).astype(np.int32)
    return ImageSet(images, labels, tuple(f"class{i}" for i in range(classes)))


def make_setup(classes: int, devices: int, config: Config) -> tuple[Setup, Any]:
    """A run of the linear network, and its first state."""
    task = Classification(Linear(classes), classes, MEAN, STD)
    trainer = Trainer(task, make_optimizer(config.optimizer, lambda _: 0.1))
    order = Order(EXAMPLES, 8, 0)
    replicas = Replicas.local(devices)
    made = Setup(config, replicas, noise(classes), order, 10, lambda _: 0.1, trainer)
    state = create_state(task.model, trainer.optimizer, 0, (4, 4, 3))
    return made, replicas.replicate(state)


def expected(classes: int, params: Any) -> dict[str, float]:
    """Means by NumPy in float64."""
    examples = noise(classes)
    pixels = ((examples.images / 255 - MEAN) / STD).mean((1, 2))
    logits = pixels @ np.asarray(params["head"]["kernel"], np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(41), examples.labels]
    rank = np.argsort(-logits, axis=1)
    right = rank == examples.labels[:, None]
    return {
        "loss": losses.mean(),
        "top1": right[:, 0].sum() / EXAMPLES,
        "top5": right[:, :5].any(1).sum() / EXAMPLES,
        "examples": EXAMPLES,
    }


# --- evaluation ---------------------------------------------------------------------


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "fed"])
@pytest.mark.parametrize("devices", [1, 3, 4])
@pytest.mark.parametrize("eval_batch_size", [1, 7, 512])
def test_every_example_counts_once(eval_batch_size, devices, resident):
    """41 examples: a remainder for every batch size, and one batch that is larger."""
    data = Data(resident_bytes=2**31 if resident else 0)
    config = Config(eval_batch_size=eval_batch_size, data=data)
    made, state = make_setup(12, devices, config)
    wanted = expected(12, state.params)
    assert 0 < wanted["top1"] < wanted["top5"] < 1
    result = evaluate(made, state.variables, noise(12))
    # Counts are whole numbers; the loss is a sum of 41 in float32.
    assert result.pop("loss") == pytest.approx(wanted.pop("loss"), rel=1e-5)
    assert result == wanted


@pytest.mark.parametrize(("classes", "has_top5"), [(10, False), (11, True)])
def test_top5_is_told_of_more_than_ten_classes(classes, has_top5):
    made, state = make_setup(classes, 4, Config())
    result = evaluate(made, state.variables, noise(classes))
    assert ("top5" in result) is has_top5


@pytest.mark.parametrize("change", ["left out", "twice"])
def test_an_example_too_few_or_too_many_is_an_error(change, monkeypatch):
    def wrong(examples: int, batch_size: int) -> np.ndarray:
        order = original(examples, batch_size)
        if change == "left out":
            return np.where(order == 3, -1, order)
        return np.where(order == -1, 3, order)

    original = setups.padded_order
    monkeypatch.setattr(setups, "padded_order", wrong)
    made, state = make_setup(10, 4, Config(eval_batch_size=32))
    with pytest.raises(RuntimeError, match=r"evaluated \d+ of 41 examples"):
        evaluate(made, state.variables, noise(10))


def test_the_average_is_evaluated_where_there_is_one():
    made, state = make_setup(12, 4, Config())
    head = state.params["head"]
    average = {"head": head | {"kernel": head["kernel"][:, ::-1]}}
    state = state.replace(ema={"params": average, "batch_stats": {}})
    wanted = expected(12, average)
    assert wanted["loss"] != pytest.approx(expected(12, state.params)["loss"], rel=1e-3)
    result = evaluate(made, state.variables, noise(12))
    assert result["loss"] == pytest.approx(wanted["loss"], rel=1e-5)  # float32


# --- what is built ------------------------------------------------------------------


@pytest.fixture
def pretend_hosts(monkeypatch):
    """Returns a function that makes this process one of several."""

    def pretend(index: int, count: int) -> None:
        monkeypatch.setattr(jax, "process_index", lambda: index)
        monkeypatch.setattr(jax, "process_count", lambda: count)

    return pretend


def test_hosts_share_each_batch(pretend_hosts):
    indices = np.arange(24).reshape(3, 8)
    shares = []
    for index in range(4):
        pretend_hosts(index, 4)
        shares.append(host_share(None, indices))
    assert [share.shape for share in shares] == [(3, 2)] * 4
    np.testing.assert_array_equal(np.concatenate(shares, 1), indices)


def test_a_single_host_has_all():
    indices = np.arange(24).reshape(3, 8)
    np.testing.assert_array_equal(host_share(None, indices), indices)


def test_a_set_is_resident_up_to_its_bytes():
    examples = noise(10)
    size = 41 * 4 * 4 * 3
    assert is_resident(Config(data=Data(resident_bytes=size)), examples)
    assert not is_resident(Config(data=Data(resident_bytes=size - 1)), examples)


def test_steps_in_a_dispatch():
    """One on a CPU, where a dispatch costs little; few pictures are fed at once."""
    fed = Config(data=Data(resident_bytes=0))
    for config, steps in ((Config(), 32), (fed, setups.FED_STEPS)):
        made = make_setup(10, 4, config)[0]
        assert made.steps_per_dispatch == 1
        accelerator = types.SimpleNamespace(platform="tpu")
        replicas = dataclasses.replace(made.replicas, devices=(accelerator,))
        elsewhere = dataclasses.replace(made, replicas=replicas)
        assert elsewhere.steps_per_dispatch == steps
    chosen = Config(steps_per_dispatch=7)
    assert make_setup(10, 4, chosen)[0].steps_per_dispatch == 7


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
