"""Exact evaluation: every example of a set counts once."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from train import evaluation
from train.assemble import Setup
from train.config import Config, Data
from train.data.image_set import ImageSet
from train.data.stream import Order
from train.evaluation import evaluate
from train.optimizer import make_optimizer
from train.parallel import Replicas
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

    original = evaluation.padded_order
    monkeypatch.setattr(evaluation, "padded_order", wrong)
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
