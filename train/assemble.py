"""Builds the parts of a run from its configuration, before its first step."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict

import shiftjax
from shiftjax.errors import InputError
from train import tasks
from train.config import Config, validate
from train.data.examples import Examples
from train.data.placement import FED_STEPS, is_resident, on_devices
from train.data.stream import Order
from train.optimizer import check_boundaries, learning_rate, make_optimizer
from train.parallel import Replicas
from train.state import TrainState, create_state, network_variables
from train.steps import Trainer, check_share
from train.tasks import load_split


@dataclasses.dataclass(frozen=True)
class Setup:
    """The parts of a run.

    Attributes:
      config: the configuration of the run.
      replicas: the devices that share each batch.
      train_set: the training examples.
      order: the examples of each step.
      total_steps: number of steps of the run.
      rate: the learning rate as a function of the step.
      trainer: the programs for one device.
    """

    config: Config
    replicas: Replicas
    train_set: Examples
    order: Order
    total_steps: int
    rate: optax.Schedule
    trainer: Trainer

    @functools.cached_property
    def train_steps(self) -> Any:
        """The compiled training program."""
        return self.replicas.parallelize(self.trainer.train_steps, donate_state=True)

    @functools.cached_property
    def eval_steps(self) -> Any:
        """The compiled evaluation program."""
        return self.replicas.parallelize(self.trainer.eval_steps)

    def on_devices(self, examples: Examples) -> tuple[Any, Examples | None]:
        """Puts a set on the devices; see `train.data.placement.on_devices`."""
        return on_devices(
            examples, self.config.data, self.trainer.task.data, self.replicas
        )

    @property
    def steps_per_dispatch(self) -> int:
        """Number of steps in one dispatch to the device."""
        chosen = self.config.steps_per_dispatch
        if chosen is not None:
            return chosen
        if self.replicas.devices[0].platform == "cpu":
            return 1
        return 32 if is_resident(self.train_set, self.config.data) else FED_STEPS

    def initial_state(self) -> TrainState:
        """Creates the state before the first step, on the default device."""
        state = create_state(
            self.trainer.task.model,
            self.trainer.optimizer,
            self.config.seed,
            self.train_set.image_shape,
            with_ema=self.config.ema_decay is not None,
        )
        if self.config.init is None:
            return state
        classes = self.trainer.task.class_names(self.train_set)
        return begin_with(self.config.init, state, len(classes) or None)

    def template(self) -> TrainState:
        """Returns the shapes of a state, which a checkpoint of the run has.

        The weights of --init, whose file may be gone, do not change them.
        """
        config = dataclasses.replace(self.config, init=None)
        return jax.eval_shape(dataclasses.replace(self, config=config).initial_state)

    def epoch(self, step: int) -> float:
        """Returns the number of passes over the data after a number of steps."""
        return step * self.order.batch_size / self.order.examples


def set_up(config: Config, train_set: Examples | None = None) -> Setup:
    """Checks the configuration, loads the training examples and builds the programs.

    Args:
      config: the configuration of the run.
      train_set: the training examples; None to load those of the configuration.

    Raises:
      InputError: if a value of the configuration is invalid.
    """
    validate(config)
    kind = tasks.find_task(config.task)
    replicas = Replicas.local(config.devices, config.backend)
    if train_set is None:  # a run to train
        check_boundaries(config.schedule)
        check_share(config, replicas.per_device(config.batch_size))
        train_set = load_split(config, config.data.train_on)
        if config.batch_size > len(train_set):
            raise InputError(
                f"--batch-size {config.batch_size}: {config.data.source} has only "
                f"{len(train_set)} training examples"
            )
    task = kind.make(config, train_set)
    classes = train_set.labels if config.data.balanced else None
    order = Order(len(train_set), config.batch_size, config.seed, classes)
    total_steps = max(round(config.epochs * order.steps_per_epoch), 1)
    rate = learning_rate(config.schedule, total_steps, order.steps_per_epoch)
    trainer = Trainer(
        task,
        make_optimizer(config.optimizer, rate),
        config.seed,
        config.ema_decay,
        getattr(task.model, "momentum", 0.9),
        config.accumulate,
        config.optimizer.freeze if config.optimizer.freeze_statistics else (),
    )
    return Setup(config, replicas, train_set, order, total_steps, rate, trainer)


def begin_with(name: str, state: TrainState, num_classes: int | None) -> TrainState:
    """Puts released weights into a state.

    Raises:
      InputError: if no weights have the name, or they belong to another network.
    """
    _, variables = shiftjax.load_pretrained(name, num_classes=num_classes)
    own = network_variables(state.raw_variables)
    # Some networks have no statistics.
    own = {name: tree for name, tree in own.items() if tree}
    given, wanted = (jax.tree.map(jnp.shape, tree) for tree in (variables, own))
    if given != wanted:
        raise InputError(f"--init {name}: {_misfit(given, wanted)}")
    variables = {name: getattr(state, name) | tree for name, tree in variables.items()}
    # The average needs a copy, because each leaf is donated separately.
    ema = state.ema and jax.tree.map(jnp.copy, state.ema | variables)
    return dataclasses.replace(state, **variables, ema=ema)


def _misfit(given: Any, wanted: Any) -> str:
    """Says why weights do not fit a network, from the shapes of both."""
    old: dict[Any, Any] = flatten_dict(given)
    new: dict[Any, Any] = flatten_dict(wanted)
    unlike = [path for path in old if old[path] != new.get(path)]
    if old.keys() == new.keys() and len(unlike) == 1:  # as the first kernel
        x, y = old[unlike[0]], new[unlike[0]]
        if len(x) == len(y) == 4 and (x[:2], x[3]) == (y[:2], y[3]):
            return (
                f"it is for images of {x[2]} channel(s), and those of the run have "
                f"{y[2]}: --data.mean and --data.std have one number for each"
            )
    return "it is of another network than --model.name with its --model.overrides"
