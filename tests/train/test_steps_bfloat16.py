"""A network of the ImageNet family learns by heart in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw

from shiftjax.models.shiftnet import ShiftNet, Stage
from tests.train.small_trainer import MEAN, STD
from train.config import Augment, Optimizer
from train.data.image_set import ImageSet
from train.data.resident import Resident
from train.optimizer import make_optimizer
from train.parallel import Replicas
from train.state import create_state
from train.steps import NEVER, Trainer
from train.tasks.classification import Classification

SIZE = 32
COUNT = 32
CLASSES = 8
STEPS = 100


def drawings() -> ImageSet:
    """Ellipses and rectangles on noise, with random labels."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(COUNT):
        noise = rng.integers(0, 80, (SIZE, SIZE, 3), np.uint8)
        image = Image.fromarray(noise)
        left, top = map(int, rng.integers(0, SIZE // 2, 2))
        box = (left, top, left + 14, top + 10)
        color = tuple(map(int, rng.integers(80, 256, 3)))
        draw = ImageDraw.Draw(image)
        (draw.ellipse if i % 2 else draw.rectangle)(box, fill=color)
        images.append(np.asarray(image))
    labels = rng.integers(0, CLASSES, COUNT).astype(np.int32)
    return ImageSet(np.stack(images), labels, tuple(map(str, range(CLASSES))))


@pytest.mark.usefixtures("quick")
def test_a_small_shiftnet_learns_a_few_images_by_heart_in_bfloat16():
    """Modules as ShiftNet-C's, by the trainer's own steps; params stay float32."""
    model = ShiftNet(
        stages=(Stage(16, 5, 1, 1, 1), Stage(32, 3, 1, 1, 1)),
        stem_features=8,
        num_classes=CLASSES,
        shortcut="add",
        dtype="bfloat16",
    )
    options = Augment(crop_padding=0, flip=False)
    task = Classification(model, CLASSES, MEAN, STD, options)
    optimizer = make_optimizer(Optimizer("adam", weight_decay=0.0), lambda _: 0.01)
    trainer = Trainer(task, optimizer)
    replicas = Replicas.local(1)
    state = create_state(model, optimizer, 0, (SIZE, SIZE, 3))
    state = replicas.replicate(state)
    data = replicas.replicate(Resident.of(drawings()))
    item = replicas.split({"index": np.arange(COUNT, dtype=np.int32)[None]})
    step = replicas.parallelize(trainer.train_steps, donate_state=True)
    losses, top1 = [], 0.0
    for _ in range(STEPS):
        state, sums = step(state, data, item, np.int32(1))
        assert sums["bad_step"] == NEVER
        losses.append(float(sums["loss"]) / COUNT)
        top1 = float(sums["top1"]) / COUNT
    assert losses[0] > 0.9 * np.log(CLASSES)
    assert losses[-1] < 0.1
    assert top1 == 1
    kinds = {leaf.dtype for leaf in jax.tree.leaves(state.params)}
    assert kinds == {jnp.dtype("float32")}
