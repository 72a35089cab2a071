"""The ImageNet networks learn 64 photographs by heart in bfloat16."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from shiftjax import create_model
from shiftjax.models.shiftnet import STAGES_A, STAGES_C, Stage
from tests.train.small_trainer import MEAN, PLAIN, STD
from train import experiments
from train.config import Optimizer
from train.data.image_set import ImageSet
from train.data.resident import Resident
from train.optimizer import make_optimizer
from train.parallel import Replicas
from train.state import create_state
from train.steps import NEVER, Trainer
from train.tasks.classification import Classification

SIZE = 32
COUNT = 64
CLASSES = 8
STEPS = 100


def narrow(stages: tuple[Stage, ...], width: int) -> dict[str, Any]:
    """The first module of each stage, with so many features in the first stage."""
    scale = stages[0].features // width
    kept = (
        dataclasses.replace(stage, features=stage.features // scale, count=0)
        for stage in stages
    )
    return {"stages": tuple(kept), "stem_features": width // 2}


# ShiftNet-B is ShiftNet-A at half the width.
SMALL: dict[str, dict[str, Any]] = {
    "shiftnet_a": narrow(STAGES_A, 8),
    "shiftnet_c": narrow(STAGES_C, 8),
    "resnet50": {"blocks": (1, 1), "net_reduction": 16},
    "shiftresnet50": {"blocks": (1, 1), "net_reduction": 16},
}


def photographs() -> ImageSet:
    """Sections of two photographs, each given to a class by lot."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(COUNT):
        photograph = load_sample_image(("china.jpg", "flower.jpg")[i % 2])
        top, left = (rng.integers(0, n - 4 * SIZE) for n in photograph.shape[:2])
        section = photograph[top : top + 4 * SIZE, left : left + 4 * SIZE]
        images.append(section.reshape(SIZE, 4, SIZE, 4, 3).mean((1, 3)))
    labels = rng.permutation(np.arange(COUNT) % CLASSES).astype(np.int32)
    names = tuple(map(str, range(CLASSES)))
    return ImageSet(np.stack(images).astype(np.uint8), labels, names)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", SMALL)
def test_a_network_learns_photographs_by_heart_in_bfloat16(name):
    """By the trainer's own steps; the params stay float32."""
    dtype = experiments.load(f"imagenet_{name}").model.dtype
    assert dtype == "bfloat16"
    model = create_model(name, num_classes=CLASSES, dtype=dtype, **SMALL[name])
    task = Classification(model, CLASSES, MEAN, STD, PLAIN)
    optimizer = make_optimizer(Optimizer("adam", weight_decay=0.0), lambda _: 0.01)
    trainer = Trainer(task, optimizer)
    replicas = Replicas.local(1)
    state = create_state(model, optimizer, 0, (SIZE, SIZE, 3))
    state = replicas.replicate(state)
    data = replicas.replicate(Resident.of(photographs()))
    item = replicas.split({"index": np.arange(COUNT, dtype=np.int32)[None]})
    step = replicas.parallelize(trainer.train_steps, donate_state=True)
    losses, top1 = [], 0.0
    for _ in range(STEPS):
        state, sums = step(state, data, item, np.int32(1))
        assert sums["bad_step"] == NEVER
        losses.append(float(sums["loss"]) / COUNT)
        top1 = float(sums["top1"]) / COUNT
        if top1 == 1 and losses[-1] < 0.1:
            break
    assert losses[0] > 0.8 * np.log(CLASSES)
    assert losses[-1] < 0.1
    assert top1 == 1
    kinds = {leaf.dtype for leaf in jax.tree.leaves(state.params)}
    assert kinds == {jnp.dtype("float32")}
