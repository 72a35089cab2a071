"""Tasks with variable collections of their own, and with per-example outputs."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from train.assemble import Setup
from train.config import TASK_GROUPS, Config, Data, Optimizer
from train.data.image_set import ImageSet
from train.data.resident import images_and_labels
from train.data.stream import Order, items
from train.evaluation import evaluate
from train.optimizer import make_optimizer
from train.parallel import AXIS, Replicas
from train.state import create_state
from train.steps import Trainer
from train.tasks import TASKS

pytestmark = pytest.mark.usefixtures("quick")

EXAMPLES = 41
RNG = np.random.default_rng(0)
PICTURES = ImageSet(
    RNG.integers(0, 256, (EXAMPLES, 4, 4, 3), np.uint8),
    RNG.integers(0, 3, EXAMPLES).astype(np.int32),
    ("a", "b", "c"),
)


class Counting(nn.Module):
    """A linear function, beside a count of the examples of each class."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        self.variable("counts", "seen", jnp.zeros, (3,))
        return nn.Dense(1, name="head")(x.mean((1, 2)))[:, 0]


@dataclasses.dataclass(frozen=True)
class Regression:
    """Predicts the label; keeps predictions, and counts in a collection."""

    model: nn.Module = dataclasses.field(default_factory=Counting)

    best_metric: ClassVar[str] = "error"
    best_mode: ClassVar[Any] = "min"

    def data(self, images: Any) -> Any:
        return {"images": images, "scale": np.float32(2)}

    def batch(self, data: Any, item: Any, key: jax.Array) -> Any:
        images, labels = images_and_labels(data["images"], item)
        return images / 255.0 * data["scale"], labels

    def loss(self, variables: Any, batch: Any) -> Any:
        images, labels = batch
        errors = (self.model.apply(variables, images) - labels) ** 2
        new = lax.psum(jax.nn.one_hot(labels, 3).sum(0), AXIS)
        changed = {"counts": {"seen": variables["counts"]["seen"] + new}}
        return errors.mean(), (changed, {"examples": jnp.float32(len(labels))})

    def evaluate(self, variables: Any, data: Any, item: Any) -> Any:
        images, _ = images_and_labels(data["images"], item)
        real = (item["index"] >= 0).astype(jnp.float32)
        variables = variables | {"counts": {"seen": jnp.zeros(3)}}
        guess = self.model.apply(variables, images / 255.0 * data["scale"])
        return {"examples": real.sum()}, {"guess": guess, "pair": images[:, 0, 0, :2]}

    def metrics(self, sums: Any, rows: Any, examples: ImageSet) -> dict[str, float]:
        assert rows["guess"].shape == (EXAMPLES,)
        np.testing.assert_array_equal(rows["pair"], examples.images[:, 0, 0, :2])
        return {"error": float(np.abs(rows["guess"] - examples.labels).mean())}


def make(devices: int, **data: Any) -> tuple[Setup, Any]:
    config = Config(eval_batch_size=12, data=Data(**data))
    optimizer = make_optimizer(Optimizer(weight_decay=0), lambda _: 0.1)
    trainer = Trainer(Regression(), optimizer)
    order = Order(EXAMPLES, 8, 0)
    replicas = Replicas.local(devices)
    setup = Setup(config, replicas, PICTURES, order, 10, lambda _: 0.1, trainer)
    return setup, create_state(trainer.task.model, optimizer, 0, (4, 4, 3))


@pytest.mark.parametrize("devices", [1, 4])
def test_a_collection_of_the_tasks_own_moves_with_the_steps(devices):
    setup, state = make(devices)
    assert state.others["counts"]["seen"].tolist() == [0, 0, 0]
    data, fed = setup.on_devices(PICTURES)
    index = np.stack([setup.order.indices(step) for step in range(3)])
    batch = setup.replicas.split(items(index, fed, 4))
    state = setup.replicas.replicate(state)
    state, sums = setup.train_steps(state, data, batch, np.int32(3))
    wanted = np.bincount(PICTURES.labels[index.ravel()], minlength=3)
    np.testing.assert_array_equal(state.others["counts"]["seen"], wanted)
    assert sums["examples"] == 24
    assert set(sums) == {"loss", "examples", "bad_step"}


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("resident_bytes", [2**31, 0], ids=["resident", "fed"])
def test_rows_are_in_the_order_of_the_set(devices, resident_bytes):
    setup, state = make(devices, resident_bytes=resident_bytes)
    metrics = evaluate(setup, setup.replicas.replicate(state.variables), PICTURES)
    head = state.params["head"]
    pixels = PICTURES.images.astype(np.float64).mean((1, 2)) / 255 * 2
    guess = pixels @ np.asarray(head["kernel"])[:, 0] + np.asarray(head["bias"])
    wanted = np.abs(guess - PICTURES.labels).mean()
    assert metrics["error"] == pytest.approx(wanted, rel=1e-5)
    assert metrics["examples"] == EXAMPLES


def test_the_options_of_one_task_have_its_name():
    """So other tasks leave them out of their commands and differences."""
    groups = {field.name for field in dataclasses.fields(Config)}
    assert set(TASK_GROUPS) == groups & TASKS.keys()
