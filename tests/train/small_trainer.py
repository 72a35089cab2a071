"""A small network, its data, and its training, for the tests of the steps."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from train.config import Augment, Optimizer
from train.data.image_set import ImageSet
from train.data.resident import Resident
from train.optimizer import make_optimizer
from train.parallel import AXIS, Replicas
from train.state import TrainState, create_state
from train.steps import Trainer
from train.tasks.classification import Classification

CLASSES = 12
EXAMPLES = 41
BATCH = 16
SHAPE = (8, 8, 3)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PLAIN = Augment(crop_padding=0, flip=False)
MOVED = Augment(crop_padding=2, flip=True)
MOMENTUM = 0.9

BACKENDS = [(1, "pmap"), (4, "pmap"), (4, "shard_map")]
LENGTH = 4  # steps to which a dispatch is padded


_NUMBERS = np.random.default_rng(0)
IMAGES = _NUMBERS.integers(0, 256, (EXAMPLES, *SHAPE), np.uint8)
LABELS = _NUMBERS.integers(0, CLASSES, EXAMPLES).astype(np.int32)
CLASS_NAMES = tuple(map(str, range(CLASSES)))
DATA = Resident.of(ImageSet(IMAGES, LABELS, CLASS_NAMES))
FED = {"images": IMAGES, "labels": LABELS}


class Net(nn.Module):
    """Two BatchNorms, one before and one after something that is not linear."""

    axis_name: str | None = AXIS
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        kind = {"param_dtype": self.param_dtype}
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=MOMENTUM,
            axis_name=self.axis_name,
            use_fast_variance=False,
            **kind,
        )
        x = nn.Conv(6, (3, 3), 2, use_bias=False, name="conv", **kind)(x)
        x = nn.silu(norm(name="first")(x)).mean((1, 2))
        x = norm(name="second")(nn.Dense(8, use_bias=False, name="hidden", **kind)(x))
        return nn.Dense(CLASSES, name="head", **kind)(nn.silu(x))


def batches(steps: int) -> np.ndarray:
    """The examples of each step, another choice in each."""
    rng = np.random.default_rng(1)
    draws = [rng.permutation(EXAMPLES)[:BATCH] for _ in range(steps)]
    return np.stack(draws).astype(np.int32)


def rate(step: jax.Array) -> jax.Array:
    return 0.1 / (1 + step)


@functools.cache
def make_trainer(
    net: nn.Module | None = None,
    *,
    augment: Augment = MOVED,
    label_smoothing: float = 0.0,
    ema_decay: float | None = None,
    rate: optax.Schedule = rate,
    options: Optimizer | None = None,
    accumulate: int = 1,
) -> Trainer:
    net = Net() if net is None else net
    task = Classification(net, CLASSES, MEAN, STD, augment, label_smoothing)
    optimizer = make_optimizer(options or Optimizer(), rate)
    return Trainer(task, optimizer, 5, ema_decay, MOMENTUM, accumulate)


@functools.cache
def fresh(trainer: Trainer) -> TrainState:
    with_ema = trainer.ema_decay is not None
    net, optimizer = trainer.task.model, trainer.optimizer
    return create_state(net, optimizer, 0, SHAPE, with_ema=with_ema)


@functools.cache
def program(trainer: Trainer, name: str, devices: int, backend: str) -> Any:
    """Compiled once for all tests that share it."""
    return Replicas.local(devices, backend).parallelize(getattr(trainer, name))


def train(
    trainer: Trainer,
    steps: int,
    devices: int = 4,
    backend: str = "pmap",
    *,
    state: TrainState | None = None,
    groups: list[int] | None = None,
    length: int = LENGTH,
    fed: bool = False,
) -> tuple[TrainState, dict[str, float]]:
    """Trains, in dispatches of `groups` steps padded to `length`; adds up the sums."""
    replicas = Replicas.local(devices, backend)
    run = program(trainer, "train_steps", devices, backend)
    state = replicas.replicate(fresh(trainer) if state is None else state)
    data = None if fed else replicas.replicate(DATA)
    index, start, totals = batches(steps), 0, {}
    for count in groups or [steps]:
        chosen = np.full((length, BATCH), -1, np.int32)
        chosen[:count] = index[start : start + count]
        item = {"index": chosen}
        if fed:
            item |= {name: x[np.maximum(chosen, 0)] for name, x in FED.items()}
        state, sums = run(state, data, replicas.split(item), np.int32(count))
        totals = {name: totals.get(name, 0) + float(x) for name, x in sums.items()}
        start += count
    return state, totals


def leaves(tree: Any) -> dict[str, np.ndarray]:
    named = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in named}


def assert_same_bits(one: Any, other: Any) -> None:
    one, other = leaves(one), leaves(other)
    assert list(one) == list(other)
    for name, x in one.items():
        np.testing.assert_array_equal(x, other[name], err_msg=name)


def assert_close(one: Any, other: Any, tolerance: float) -> None:
    """Each array, relative to the largest number in it."""
    one, other = leaves(one), leaves(other)
    assert list(one) == list(other)
    for name, x in one.items():
        bound = tolerance * max(np.abs(x).max(), 1e-3)
        np.testing.assert_allclose(x, other[name], rtol=0, atol=bound, err_msg=name)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
