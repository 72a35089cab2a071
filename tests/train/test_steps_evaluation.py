"""The steps of evaluation, on one device and on four, against NumPy."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.small_trainer import (
    CLASSES,
    DATA,
    EXAMPLES,
    FED,
    IMAGES,
    LABELS,
    MEAN,
    STD,
    Net,
    fresh,
    log_softmax,
    make_trainer,
    program,
    train,
)
from train.parallel import Replicas
from train.steps import Trainer

pytestmark = pytest.mark.usefixtures("quick")


class Fixed(nn.Module):
    """Logits that are the mean of each image's channel 0, times a param."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (CLASSES,))
        nn.BatchNorm(use_running_average=not train)(x)
        return x[..., 0].mean((1, 2))[:, None] * scale


def evaluate(
    trainer: Trainer,
    variables: Any,
    index: np.ndarray,
    devices: int,
    *,
    count: int | None = None,
    fed: bool = False,
) -> dict[str, float]:
    replicas = Replicas.local(devices)
    item = {"index": index}
    if fed:
        item |= {name: x[np.maximum(index, 0)] for name, x in FED.items()}
    data = None if fed else replicas.replicate(DATA)
    count = np.int32(len(index) if count is None else count)
    run = program(trainer, "eval_steps", devices, "pmap")
    sums, _ = run(replicas.replicate(variables), data, replicas.split(item), count)
    return {name: float(x) for name, x in sums.items()}


def expected(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Sums by NumPy; of equal logits the first one counts as the larger."""
    order = np.argsort(-logits, axis=1, kind="stable")
    chosen = -log_softmax(logits.astype(np.float64))[np.arange(len(labels)), labels]
    return {
        "loss": chosen.sum(),
        "top1": (order[:, 0] == labels).sum(),
        "top5": (order[:, :5] == labels[:, None]).any(1).sum(),
        "examples": len(labels),
    }


def logits_of(net: nn.Module, variables: Any, images: np.ndarray) -> np.ndarray:
    images = ((images / 255 - MEAN) / STD).astype(np.float32)
    return np.asarray(net.apply(variables, images))


@pytest.mark.parametrize("fed", [False, True], ids=["resident", "fed"])
@pytest.mark.parametrize("devices", [1, 4])
def test_sums_of_an_evaluation_with_a_remainder(devices, fed):
    """41 examples in four batches of 12, of which the last has 5 and 7 places none."""
    trainer = make_trainer()
    state, _ = train(trainer, 2)  # so that running statistics matter
    index = np.full(48, -1, np.int32)
    index[:EXAMPLES] = np.random.default_rng(3).permutation(EXAMPLES)
    sums = evaluate(trainer, state.variables, index.reshape(4, 12), devices, fed=fed)
    logits = logits_of(Net(), state.variables, IMAGES)
    wanted = expected(logits, LABELS)
    assert 0 < wanted["top1"] < wanted["top5"] < EXAMPLES
    assert sums.pop("loss") == pytest.approx(wanted.pop("loss"), rel=1e-5)  # float32
    assert sums == wanted


def test_only_the_first_batches_of_a_dispatch_count():
    trainer = make_trainer()
    variables = fresh(trainer).variables
    index = np.arange(40, dtype=np.int32).reshape(5, 8)
    sums = evaluate(trainer, variables, index, 4, count=3)
    logits = logits_of(Net(), variables, IMAGES[:24])
    wanted = expected(logits, LABELS[:24])
    assert sums.pop("loss") == pytest.approx(wanted.pop("loss"), rel=1e-5)  # float32
    assert sums == wanted


def test_an_evaluation_of_places_without_example_counts_nothing():
    trainer = make_trainer()
    index = np.full((2, 8), -1, np.int32)
    sums = evaluate(trainer, fresh(trainer).variables, index, 4)
    assert sums == {"loss": 0, "top1": 0, "top5": 0, "examples": 0}


def test_equal_logits_count_as_right_for_the_first_class_alone():
    """Equal logits rank as in argmax, so a constant network is not always correct."""
    trainer = make_trainer(Fixed())
    variables = fresh(trainer).variables
    index = np.arange(40, dtype=np.int32).reshape(5, 8)
    sums = evaluate(trainer, variables, index, 4)
    labels = LABELS[:40]
    assert sums["top1"] == (labels == 0).sum()
    assert sums["top5"] == (labels < 5).sum()


def test_logits_that_are_not_numbers_are_wrong():
    trainer = make_trainer(Fixed())
    variables = jax.tree.map(lambda x: x * jnp.nan, fresh(trainer).variables)
    index = np.arange(40, dtype=np.int32).reshape(5, 8)
    sums = evaluate(trainer, variables, index, 4)
    assert np.isnan(sums["loss"])
    assert (sums["top1"], sums["top5"], sums["examples"]) == (0, 0, 40)
