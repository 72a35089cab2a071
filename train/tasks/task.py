"""A training task: computes the loss and the metrics of a batch.

The trainer uses a task only through `Task`: the loop, the devices, the checkpoints and
the log are the same for all tasks.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from PIL import Image

from train.config import Config
from train.data.examples import Examples
from train.data.resident import Resident

Sums = dict[str, jax.Array]
Item = dict[str, jax.Array]
Collections = dict[str, Any]


def total(values: dict[str, jax.Array], item: Item) -> Sums:
    """Sums values over the examples and counts these; an index of -1 is no example.

    Args:
      values: arrays `[batch]` by name.
      item: this device's share of the batch.

    Returns:
      Float32 sums by name, with the count as "examples".

    Example:
      >>> sums = total({"loss": jnp.array([2.0, 3.0])}, {"index": jnp.array([5, -1])})
      >>> sums["loss"].item(), sums["examples"].item()
      (2.0, 1.0)
    """
    real = item["index"] >= 0
    values = values | {"examples": real}
    return {
        name: jnp.where(real, x, 0).sum(dtype=jnp.float32) for name, x in values.items()
    }


class Task(Protocol):
    """The interface of a training task, on one device.

    The device's share of a batch is an `Item`: "index" `[batch]` has the positions of
    the examples in their set, or -1 for no example; if the set is not resident on the
    device, there are also "images" and "labels"; a balanced step has "place" too, see
    `train.data.augment.numbers`. A task averages over
    `train.parallel.AXIS` whatever must be equal on every device; the trainer averages
    the gradient and the statistics of BatchNorm.

    Attributes:
      best_metric: the metric of evaluation that ranks checkpoints.
      best_mode: "max" if its largest value is the best, or "min".
      labelled: True if the task learns from labels; otherwise a folder of images needs
        no classes.
    """

    best_metric: ClassVar[str]
    best_mode: ClassVar[Literal["max", "min"]]
    labelled: ClassVar[bool]

    @classmethod
    def make(cls, config: Config, examples: Examples) -> "Task":
        """Makes the task of a run.

        Args:
          config: the configuration of the run.
          examples: the training examples.

        Raises:
          InputError: if an option does not fit the task, or the network does not exist.
        """
        ...

    @staticmethod
    def class_names(examples: Examples) -> tuple[str, ...]:
        """Returns the classes of the network, in the order of its logits.

        A release's card names them, and `--init` replaces a head of other classes.

        Args:
          examples: a split of the data.

        Returns:
          The names; empty if the network has no logits.
        """
        ...

    @property
    def model(self) -> nn.Module:
        """The network to train; its parameters are those of the state.

        Parameters under the name "classifier" are for training alone: they are in
        checkpoints, and not in released weights (`train.state.network_variables`).
        """
        ...

    def data(self, images: Resident | None) -> Any:
        """Returns the arrays to keep on the devices.

        Args:
          images: the examples, or None if they are not resident on the devices.

        Returns:
          A tree of arrays: the examples, and constants of the task.
        """
        ...

    def batch(self, data: Any, item: Item, key: jax.Array) -> Any:
        """Makes the input of the loss from the examples of a training step.

        Args:
          data: the result of `data`.
          item: this device's share of the batch.
          key: the random key of the step, equal on every device.

        Returns:
          A tree of arrays. If the task allows micro-batches (`--accumulate`), the first
          axis of each array is that of the examples.
        """
        ...

    def loss(self, variables: Collections, batch: Any) -> tuple[jax.Array, Any]:
        """Computes the mean loss of this device's examples.

        Args:
          variables: collections of the model, including "params".
          batch: the result of `batch`.

        Returns:
          The loss, and a pair: the collections other than "params" after the step, and
          sums over the examples by name: their number "examples", and the metrics to
          record beside the loss.
        """
        ...

    def evaluate(
        self, variables: Collections, data: Any, item: Item
    ) -> tuple[Sums, dict[str, jax.Array]]:
        """Evaluates this device's share of a batch.

        Returns:
          Sums over the examples by name, including their number "examples"; and
          per-example outputs, `[batch, ...]` by name.
        """
        ...

    def metrics(
        self, sums: dict[str, Any], rows: dict[str, Any], examples: Examples
    ) -> dict[str, float]:
        """Computes the metrics from accumulated sums and per-example outputs.

        Args:
          sums: sums over all examples by name.
          rows: outputs `[examples, ...]` by name, in the order of the set.
          examples: the examples.

        Returns:
          The metrics by name.
        """
        ...

    def sample(self, variables: Collections, examples: Examples) -> Image.Image | None:
        """Draws the outputs of the network for a few examples.

        Args:
          variables: the variables of the network.
          examples: the validation split.

        Returns:
          The image, or None if the task draws none.
        """
        ...


@runtime_checkable
class OwnSplits(Protocol):
    """An optional part of a task: splits that are not those of its source alone."""

    @classmethod
    def load_split(
        cls, config: Config, split: str, read: Callable[..., Examples]
    ) -> Examples:
        """Loads a split of the data of a run.

        Args:
          config: the configuration of the run.
          split: the name of the split, as for `train.data.sources.load_source`.
          read: reads the split from the source. Its keyword arguments are changed
            options of `load_source`.

        Returns:
          The examples. Every split has the classes of the training examples.

        Raises:
          InputError: if the data cannot be used.
        """
        ...


@runtime_checkable
class OwnCard(Protocol):
    """An optional part of a task: facts of a release's card, e.g. found by the test."""

    @staticmethod
    def card_fields(config: Config, test: Mapping[str, float]) -> dict[str, Any]:
        """Returns fields of `shiftjax.weights.Card`.

        Args:
          config: the configuration of the run; see `train.config.published` for the
            names of its files alone.
          test: the metrics of the test.

        Returns:
          Values by the name of the field.
        """
        ...


@runtime_checkable
class Introduced(Protocol):
    """An optional part of a task: a line to print before the first step of a run."""

    def introduction(self, variables: Collections, examples: Examples) -> str:
        """Returns the line.

        Args:
          variables: the variables of the network that the run starts with.
          examples: the training examples.
        """
        ...
