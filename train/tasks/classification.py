"""Image classification: one label per image, cross-entropy, top-1 and top-5."""

import dataclasses
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from shiftjax.errors import InputError
from train.config import Augment, Config
from train.data.augment import crop_and_flip, erase, jitter, mix, normalize, numbers
from train.data.examples import Examples
from train.data.rand_augment import rand_augment
from train.data.resident import Resident, images_and_labels
from train.parallel import AXIS
from train.tasks.models import make_model
from train.tasks.task import Collections, Item, Sums, total

Batch = tuple[jax.Array, jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Classification:
    """The classification task; see `train.tasks.task.Task`.

    Attributes:
      model: maps images to logits.
      num_classes: number of labels.
      mean: mean of each channel, for values in 0 .. 1.
      std: standard deviation of each channel, for values in 0 .. 1.
      augment: the augmentation of training images.
      label_smoothing: share of the target that is spread evenly over the classes.
    """

    model: nn.Module
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = dataclasses.field(default_factory=Augment)
    label_smoothing: float = 0.0

    best_metric: ClassVar[str] = "top1"
    best_mode: ClassVar[Literal["max", "min"]] = "max"
    labelled: ClassVar[bool] = True

    @classmethod
    def make(cls, config: Config, examples: Examples) -> "Classification":
        """Makes the task of a configuration.

        Raises:
          InputError: if the network does not exist, an option does not fit it, or the
            data have one class only.
        """
        check_classes(config, examples)
        model = make_model(
            config,
            num_classes=examples.num_classes,
            remat=config.model.remat,
            axis_name=AXIS if config.model.sync_batch_norm else None,
        )
        return cls(
            model,
            examples.num_classes,
            config.data.mean,
            config.data.std,
            config.augment,
            config.label_smoothing,
        )

    @staticmethod
    def class_names(examples: Examples) -> tuple[str, ...]:
        """Returns the classes of the data."""
        return examples.class_names

    def data(self, images: Resident | None) -> Resident | None:
        """Returns the resident images, the only array that the task needs."""
        return images

    def batch(self, data: Resident | None, item: Item, key: jax.Array) -> Batch:
        """Makes a training batch: images `[batch, ...]`, targets and labels."""
        images, labels = images_and_labels(data, item)
        index, options = numbers(item), self.augment
        images = augmented(key, images, index, options, self.mean, self.std)
        targets = jax.nn.one_hot(labels, self.num_classes)
        targets = optax.smooth_labels(targets, self.label_smoothing)
        mix_key = jax.random.split(key)[1]
        return *mix(mix_key, images, targets, index, options), labels

    def loss(self, variables: Collections, batch: Batch) -> tuple[jax.Array, Any]:
        """Computes the mean cross-entropy, and counts correct predictions."""
        images, targets, labels = batch
        logits, updates = self.model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        correct = (logits.argmax(-1) == labels).sum(dtype=jnp.float32)
        return loss, (updates, {"top1": correct, "examples": jnp.float32(len(labels))})

    def evaluate(
        self, variables: Collections, data: Resident | None, item: Item
    ) -> tuple[Sums, dict[str, jax.Array]]:
        """Sums the losses, and counts correct predictions."""
        images, labels = images_and_labels(data, item)
        images = normalize(images, self.mean, self.std)
        logits: Any = self.model.apply(variables, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        rank = ranks(logits, labels)
        return total({"loss": losses, "top1": rank < 1, "top5": rank < 5}, item), {}

    def metrics(
        self, sums: dict[str, Any], rows: dict[str, Any], examples: Examples
    ) -> dict[str, float]:
        """Returns means over the examples, with "top5" for more than ten classes."""
        del rows
        names = ["loss", "top1", *(["top5"] if examples.num_classes > 10 else [])]
        return {name: float(sums[name]) / len(examples) for name in names}

    def sample(self, variables: Collections, examples: Examples) -> None:
        """Draws nothing."""


def check_classes(config: Config, examples: Examples) -> None:
    """Raises InputError if there is only one class, which every output would be."""
    if examples.num_classes < 2:
        names = ", ".join(map(repr, examples.class_names))
        raise InputError(
            f"{config.data.source} has one class only, {names}: the task "
            f"{config.task} needs two at least"
        )


def augmented(
    key: jax.Array,
    images: jax.Array,
    index: jax.Array,
    options: Augment,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> jax.Array:
    """Augments and normalizes training images; mixup and CutMix are not part of it.

    Args:
      key: the random key of the step.
      images: uint8 `[batch, height, width, channels]`.
      index: `[batch]`, the number of each example, as of `train.data.augment.numbers`.
      options: the augmentation.
      mean: mean of each channel, for values in 0 .. 1.
      std: standard deviation of each channel, for values in 0 .. 1.

    Returns:
      Float32 of the same shape.
    """
    crop_key = jax.random.split(key)[0]  # the second is that of mixup and CutMix
    rand_key, jitter_key, erase_key = jax.random.split(jax.random.fold_in(key, 2), 3)
    images = crop_and_flip(crop_key, images, index, options)
    images = rand_augment(rand_key, images, index, options)
    images = jitter(jitter_key, images, index, options)
    images = normalize(images, mean, std)
    return erase(erase_key, images, index, options)


def ranks(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Counts the logits above that of the label, int32 `[batch]`.

    Of equal logits the first counts as the largest, as for argmax, and a logit that is
    NaN is never correct.

    Args:
      logits: `[batch, classes]`.
      labels: int `[batch]`.
    """
    own = jnp.take_along_axis(logits, labels[:, None], 1)
    earlier = jnp.arange(logits.shape[1]) < labels[:, None]
    return (~(logits <= own) | ((logits == own) & earlier)).sum(1)
