"""What a network is trained for: how examples become a loss, and what is told of it.

The trainer knows a task by `Task` alone: its loop, its devices, its checkpoints and its
record are the same for all.
"""

from typing import Any, ClassVar, Literal, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from PIL import Image

from train.config import Config
from train.data.image_set import ImageSet
from train.data.resident import Resident

Sums = dict[str, jax.Array]
Item = dict[str, jax.Array]
Collections = dict[str, Any]


def total(values: dict[str, jax.Array], item: Item) -> Sums:
    """Sums values of examples, and counts them; an index of -1 counts for nothing.

    Args:
      values: `[batch]` by name.
      item: this device's share of the batch.

    Returns:
      Float32 sums by name, "examples" among them.

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
    """How examples become a loss, on one device.

    The device's share of a batch is an `Item`: "index" `[batch]`, the places of the
    examples in their set, -1 where there is none; of a set that does not live on the
    device also "images" and "labels". What must be the same on every device is averaged
    over `train.parallel.AXIS`; the gradient and BatchNorm's statistics are by the
    trainer.

    Attributes:
      best_metric: the figure of evaluation that ranks checkpoints.
      best_mode: whether its largest or its smallest value is the best.
      labelled: whether it learns from labels; else a folder needs no classes.
    """

    best_metric: ClassVar[str]
    best_mode: ClassVar[Literal["max", "min"]]
    labelled: ClassVar[bool]

    @classmethod
    def make(cls, config: Config, examples: ImageSet) -> "Task":
        """Makes the task of a run.

        Args:
          config: the run's.
          examples: the training examples.

        Raises:
          InputError: if an option does not fit the task, or there is no such network.
        """
        ...

    @staticmethod
    def class_names(examples: ImageSet) -> tuple[str, ...]:
        """Returns the classes that the network tells apart, in the order of its logits.

        A release's card names them, and `--init` replaces a head of other classes.

        Args:
          examples: a split of the data.

        Returns:
          The names; none if the network's outputs are no logits.
        """
        ...

    @property
    def model(self) -> nn.Module:
        """What is trained; its parameters are those of the state."""
        ...

    def data(self, pictures: Resident | None) -> Any:
        """What lies on the devices: the pictures, if they do, and constants."""
        ...

    def batch(self, data: Any, item: Item, key: jax.Array) -> Any:
        """Makes of the examples what the loss is taken of.

        Args:
          data: as `data` gave it.
          item: this device's share of the batch.
          key: the step's, the same on every device.
        """
        ...

    def loss(self, variables: Collections, batch: Any) -> tuple[jax.Array, Any]:
        """Computes the mean loss of this device's examples.

        Args:
          variables: collections of the model, "params" among them.
          batch: what `batch` made.

        Returns:
          The loss; and (the collections but "params" after the step, sums over the
          examples by name: "examples", how many there were, and what is to be
          recorded of them beside the loss).
        """
        ...

    def evaluate(
        self, variables: Collections, data: Any, item: Item
    ) -> tuple[Sums, dict[str, jax.Array]]:
        """Evaluates this device's share of a batch.

        Returns:
          Sums over the examples, of which "examples" is how many there were; and what
          is kept of each example, `[batch, ...]` by name.
        """
        ...

    def figures(
        self, sums: dict[str, Any], rows: dict[str, Any], examples: ImageSet
    ) -> dict[str, float]:
        """Makes of the sums, and of what was kept of each example, the figures to tell.

        Args:
          sums: over all examples.
          rows: `[examples, ...]` by name, in the order of the set.
          examples: the set.
        """
        ...

    def sample(self, variables: Collections, examples: ImageSet) -> Image.Image | None:
        """Draws what the network does with a few examples, where that says something.

        Args:
          variables: the network's.
          examples: the validation split.
        """
        ...
