"""From a configuration to everything that a run needs, before its first step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import shiftjax
from shiftjax.errors import InputError
from train.config import Config, validate
from train.data import sources
from train.data.image_set import ImageSet
from train.data.resident import Resident
from train.data.stream import Order, items, padded_order
from train.optimizer import learning_rate, make_optimizer
from train.parallel import Replicas
from train.state import TrainState, create_state
from train.steps import Trainer
from train.tasks import Task, classification, style

MAKERS: dict[str, Callable[[Config, ImageSet], Task]] = {
    "classification": classification.make,
    "style": style.make,
}
FED_STEPS = 4  # batches fed from the host are pictures: few fit in a dispatch


@dataclasses.dataclass(frozen=True)
class Setup:
    """The parts of a run.

    Attributes:
      config: what was asked for.
      replicas: the devices.
      train_set: the training examples.
      order: which of them each step sees.
      total_steps: length of the run.
      rate: the learning rate as a function of the step.
      trainer: the programs, for one device.
    """

    config: Config
    replicas: Replicas
    train_set: ImageSet
    order: Order
    total_steps: int
    rate: optax.Schedule
    trainer: Trainer

    @functools.cached_property
    def train_steps(self) -> Any:
        """The compiled program of training."""
        return self.replicas.parallelize(self.trainer.train_steps, donate_state=True)

    @functools.cached_property
    def eval_steps(self) -> Any:
        """The compiled program of evaluation."""
        return self.replicas.parallelize(self.trainer.eval_steps)

    @property
    def steps_per_dispatch(self) -> int:
        """How many steps the device gets at once."""
        chosen = self.config.steps_per_dispatch
        if chosen is not None:
            return chosen
        if self.replicas.devices[0].platform == "cpu":
            return 1
        return 32 if is_resident(self.config, self.train_set) else FED_STEPS

    def initial_state(self) -> TrainState:
        """The state before the first step, on the default device."""
        state = create_state(
            self.trainer.task.model,
            self.trainer.optimizer,
            self.config.seed,
            self.train_set.images.shape[1:],
            with_ema=self.config.ema_decay is not None,
        )
        if self.config.init is None:
            return state
        classes = self.train_set.num_classes
        kept = classes if self.config.task == "classification" else None
        return begin_with(self.config.init, state, kept)

    def epoch(self, step: int) -> float:
        """How often each example has been seen after so many steps."""
        return step * self.order.batch_size / self.order.examples


def set_up(config: Config, train_set: ImageSet | None = None) -> Setup:
    """Checks the configuration, loads the training examples and builds the programs.

    Args:
      config: the run's.
      train_set: what to take for the training examples, to load none.

    Raises:
      InputError: if a value of the configuration cannot be used.
    """
    validate(config)
    replicas = Replicas.local(config.devices, config.backend)
    if train_set is None:
        replicas.per_device(config.batch_size)
        train_set = load_split(config, config.data.train_on)
    task = MAKERS[config.task](config, train_set)
    order = Order(len(train_set), config.batch_size, config.seed)
    total_steps = max(round(config.epochs * order.steps_per_epoch), 1)
    rate = learning_rate(config.schedule, total_steps, order.steps_per_epoch)
    trainer = Trainer(
        task,
        make_optimizer(config.optimizer, rate),
        config.seed,
        config.ema_decay,
        getattr(task.model, "momentum", 0.9),
    )
    return Setup(config, replicas, train_set, order, total_steps, rate, trainer)


def begin_with(name: str, state: TrainState, num_classes: int | None) -> TrainState:
    """Puts released weights into a state.

    Raises:
      InputError: if there are none of the name, or they are of another network.
    """
    _, variables = shiftjax.load_pretrained(name, num_classes=num_classes)
    own = {"params": state.params, "batch_stats": state.batch_stats}
    own = {name: tree for name, tree in own.items() if tree}  # some have no statistics
    given, wanted = (jax.tree.map(jnp.shape, tree) for tree in (variables, own))
    if given != wanted:
        raise InputError(
            f"--init {name}: it is of another network than --model.name with its "
            "--model.overrides"
        )
    # A copy: the memory of each leaf is given away by itself.
    ema = state.ema and jax.tree.map(jnp.copy, state.ema | variables)
    return dataclasses.replace(state, **variables, ema=ema)


def load_split(config: Config, split: str) -> ImageSet:
    """Loads a split of the run's data."""
    return sources.load(
        config.data.source,
        split,
        image_size=config.data.image_size,
        data_dir=config.data.data_dir,
        validation_examples=config.data.validation_examples,
        labelled=config.task != "style",
    )


def is_resident(config: Config, examples: ImageSet) -> bool:
    """Whether a set is small enough to live on the device."""
    return examples.images.nbytes <= config.data.resident_bytes


def on_devices(setup: Setup, examples: ImageSet) -> tuple[Any, ImageSet | None]:
    """Puts a set, and what else the task wants there, on the devices.

    Returns:
      What lies there; and the set, if it is too large and has to be fed.
    """
    resident = is_resident(setup.config, examples)
    data = setup.trainer.task.data(Resident.of(examples) if resident else None)
    return setup.replicas.replicate(data), None if resident else examples


def host_share(setup: Setup, indices: np.ndarray) -> np.ndarray:
    """Returns this host's columns of `[steps, global batch]`."""
    share = indices.shape[1] // jax.process_count()
    start = jax.process_index() * share
    return indices[:, start : start + share]


def evaluate(setup: Setup, variables: Any, examples: ImageSet) -> dict[str, float]:
    """Evaluates a network on every example of a set, exactly once.

    Args:
      setup: the run's.
      variables: the network's, on the devices.
      examples: the set.

    Returns:
      The figures of the task, as "loss" and "top1", and how many "examples" there were.
    """
    replicas = setup.replicas
    batch_size = -(-setup.config.eval_batch_size // replicas.count) * replicas.count
    order = padded_order(len(examples), min(batch_size, _round_up(examples, replicas)))
    data, fed = on_devices(setup, examples)
    length = len(order) if fed is None else FED_STEPS
    totals: dict[str, Any] = {}
    kept: list[dict[str, np.ndarray]] = []
    for start in range(0, len(order), length):
        indices = host_share(setup, order[start : start + length])
        batch = replicas.split(items(indices, fed, length))
        count = np.int32(len(indices))
        sums, rows = jax.device_get(setup.eval_steps(variables, data, batch, count))
        # In Python's floats: a count of more than 2**24 is none of a float32.
        totals = {name: totals.get(name, 0) + float(x) for name, x in sums.items()}
        kept.append({n: x[:count].reshape(-1, *x.shape[2:]) for n, x in rows.items()})
    seen = round(totals["examples"])
    if seen != len(examples):
        raise RuntimeError(f"evaluated {seen} of {len(examples)} examples")
    rows = {n: np.concatenate([part[n] for part in kept])[:seen] for n in kept[0]}
    figures = setup.trainer.task.figures(totals, rows, examples)
    return figures | {"examples": seen}


def _round_up(examples: ImageSet, replicas: Replicas) -> int:
    """The smallest batch of all examples that the devices can share."""
    return -(-len(examples) // replicas.count) * replicas.count
