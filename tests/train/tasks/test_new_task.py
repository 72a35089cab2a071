"""A task from outside: one class and one row of the table are all it takes."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax.errors import UnknownNameError
from train import tasks
from train.assemble import set_up
from train.config import Optimizer
from train.data.image_set import ImageSet
from train.data.resident import images_and_labels
from train.logging.records import read_metrics
from train.tasks.task import total


class Linear(nn.Module):
    """A linear function of the pixels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1, name="head")(x.reshape(len(x), -1))[:, 0]


@dataclasses.dataclass(frozen=True)
class Brightness:
    """Predicts the mean of the pixels."""

    model: nn.Module = dataclasses.field(default_factory=Linear)

    best_metric: ClassVar[str] = "error"
    best_mode: ClassVar[Any] = "min"
    labelled: ClassVar[bool] = False

    @classmethod
    def make(cls, config: Any, examples: ImageSet) -> "Brightness":
        return cls()

    @staticmethod
    def class_names(examples: ImageSet) -> tuple[str, ...]:
        return ()

    def data(self, images: Any) -> Any:
        return images

    def batch(self, data: Any, item: Any, key: jax.Array) -> Any:
        return images_and_labels(data, item)[0] / 255.0

    def loss(self, variables: Any, batch: Any) -> Any:
        loss = (self._errors(variables, batch) ** 2).mean()
        return loss, ({}, {"examples": jnp.float32(len(batch))})

    def evaluate(self, variables: Any, data: Any, item: Any) -> Any:
        errors = self._errors(variables, images_and_labels(data, item)[0] / 255.0)
        return total({"loss": errors**2, "error": abs(errors)}, item), {}

    def metrics(self, sums: Any, rows: Any, examples: ImageSet) -> dict[str, float]:
        return {name: sums[name] / len(examples) for name in ("loss", "error")}

    def sample(self, variables: Any, examples: ImageSet) -> None:
        return None

    def _errors(self, variables: Any, images: jax.Array) -> Any:
        return self.model.apply(variables, images) - images.mean((1, 2, 3))


@pytest.fixture
def config(tiny, monkeypatch, tmp_path):
    monkeypatch.setitem(tasks.TASKS, "brightness", Brightness)
    optimizer = Optimizer("adam", weight_decay=0.0)
    return tiny(tmp_path / "run", task="brightness", optimizer=optimizer)


def test_it_trains_and_resumes_to_the_same_bits(config, run):
    outcome, text = run(config)
    assert outcome.finished
    assert set(outcome.test) == {"loss", "error", "examples"}
    assert "validation loss" in text
    records = [r for r in read_metrics(config.workdir) if r["split"] == "validation"]
    assert records[-1]["error"] < records[0]["error"]

    halves = dataclasses.replace(config, workdir=f"{config.workdir}_halves")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.stopping.StopRequest.reached", lambda _: True)
        stopped, _ = run(halves)
    assert stopped.steps == 1
    resumed, text = run(halves)
    assert "at step 1" in text
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(resumed.state),
        jax.device_get(outcome.state),
    )


def test_an_unknown_task_is_named_with_the_nearest(config):
    wrong = dataclasses.replace(config, task="brightnes")
    with pytest.raises(UnknownNameError, match=r"unknown task .*mean 'brightness'"):
        set_up(wrong)
