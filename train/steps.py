"""The pure programs of training and evaluation, for one device.

They average over `AXIS` what must be the same everywhere, so that one program serves
any number of devices; `train.parallel` maps them. Several steps run in one dispatch: a
loop whose length is an argument, so that how steps are grouped changes no bit. Only a
program of a single step has no loop: on a CPU, XLA's gradients of convolutions are 15
to 30 times slower in one (https://github.com/jax-ml/jax/issues/12868), and are rounded
otherwise.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from train.config import Augment
from train.data.augment import crop_and_flip, mix, normalize
from train.data.resident import Resident
from train.parallel import AXIS
from train.state import TrainState

NEVER = 2**31 - 1

Sums = dict[str, jax.Array]
Item = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Classification:
    """How pictures and labels become a loss.

    Attributes:
      model: maps images to logits.
      num_classes: number of labels.
      mean: of each channel, of values in 0 .. 1.
      std: of each channel, of values in 0 .. 1.
      augment: what is done to training pictures.
      label_smoothing: share of the target spread evenly over the classes.
    """

    model: nn.Module
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = dataclasses.field(default_factory=Augment)
    label_smoothing: float = 0.0

    def batch(
        self, data: Resident | None, item: Item, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Makes a training batch: images `[batch, ...]`, targets, labels."""
        images, labels = lookup(data, item)
        crop_key, mix_key = jax.random.split(key)
        images = crop_and_flip(crop_key, images, item["index"], self.augment)
        images = normalize(images, self.mean, self.std)
        targets = jax.nn.one_hot(labels, self.num_classes)
        targets = optax.smooth_labels(targets, self.label_smoothing)
        device_key = jax.random.fold_in(mix_key, lax.axis_index(AXIS))
        return *mix(device_key, images, targets, self.augment), labels

    def evaluate(self, variables: Any, data: Resident | None, item: Item) -> Sums:
        """Sums over one batch of this device; an index of -1 counts for nothing."""
        images, labels = lookup(data, item)
        images = normalize(images, self.mean, self.std)
        logits: Any = self.model.apply(variables, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        own = jnp.take_along_axis(logits, labels[:, None], 1)
        # The place of the label's logit: of equal ones the first is the larger, as for
        # argmax; one that is not a number is never right.
        earlier = jnp.arange(self.num_classes) < labels[:, None]
        rank = (~(logits <= own) | ((logits == own) & earlier)).sum(1)
        real = item["index"] >= 0
        sums = {"loss": losses, "top1": rank < 1, "top5": rank < 5, "examples": real}
        return {
            name: jnp.where(real, x, 0).sum(dtype=jnp.float32)
            for name, x in sums.items()
        }


def lookup(data: Resident | None, item: Item) -> tuple[jax.Array, jax.Array]:
    """Returns images and labels: from the set on the device, or fed with the item."""
    if data is None:
        return item["images"], item["labels"]
    return data.take(jnp.maximum(item["index"], 0))


@dataclasses.dataclass(frozen=True)
class Trainer:
    """One step of training, and loops of them.

    Attributes:
      task: how examples become a loss.
      optimizer: how a gradient becomes an update.
      seed: decides the augmentation, with the step and the example.
      ema_decay: of the moving average of the variables, or None.
      bn_momentum: of BatchNorm's running statistics, as in the model.
    """

    task: Classification
    optimizer: optax.GradientTransformation
    seed: int = 0
    ema_decay: float | None = None
    bn_momentum: float = 0.9

    def train_step(
        self, state: TrainState, data: Resident | None, item: Item
    ) -> tuple[TrainState, Sums]:
        """Does one step on this device's share of a batch.

        Args:
          state: the state before.
          data: the whole set, if it lives on the device.
          item: the examples of the step: "index", and of a fed set "images", "labels".

        Returns:
          The state after, the same on every device, and this device's sums.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        images, targets, labels = self.task.batch(data, item, key)

        def objective(params: Any) -> tuple[jax.Array, Any]:
            logits, updates = self.task.model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            loss = optax.softmax_cross_entropy(logits, targets).mean()
            return loss, (logits, updates["batch_stats"])

        (loss, (logits, stats)), gradient = jax.value_and_grad(objective, has_aux=True)(
            state.params
        )
        loss, gradient = lax.pmean((loss, gradient), AXIS)
        stats = merge_statistics(stats, self.bn_momentum)
        updates, opt_state = self.optimizer.update(
            gradient, state.opt_state, state.params
        )
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=stats,
            opt_state=opt_state,
        )
        state = self._averaged(state)
        # The loss is of the params before: it does not tell if the new ones are lost.
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(updates))
        return state, {
            "loss": loss * len(labels),
            "top1": (logits.argmax(-1) == labels).sum(dtype=jnp.float32),
            "examples": jnp.float32(len(labels)),
            "bad_step": jnp.where(finite, NEVER, state.step),
        }

    def train_steps(
        self, state: TrainState, data: Resident | None, items: Item, count: jax.Array
    ) -> tuple[TrainState, Sums]:
        """Does the first `count` of the steps in `items` `[steps, batch, ...]`.

        Returns:
          The state after, and sums over all devices: "loss", "top1", "examples", and
          "bad_step", the first step whose loss or update was not finite, or `NEVER`.
        """

        def body(i: jax.Array | int, carry: tuple) -> tuple:
            state, total = carry
            state, sums = self.train_step(
                state, data, jax.tree.map(lambda x: x[i], items)
            )
            bad = jnp.minimum(total.pop("bad_step"), sums.pop("bad_step"))
            return state, jax.tree.map(jnp.add, total, sums) | {"bad_step": bad}

        zeros = {name: jnp.float32(0) for name in ("loss", "top1", "examples")}
        start = (state, zeros | {"bad_step": jnp.int32(NEVER)})
        if len(jax.tree.leaves(items)[0]) == 1:  # see the module's docstring
            state, total = body(0, start)
        else:
            state, total = lax.fori_loop(0, count, body, start)
        bad = lax.pmin(total.pop("bad_step"), AXIS)
        return state, lax.psum(total, AXIS) | {"bad_step": bad}

    def eval_steps(
        self, variables: Any, data: Resident | None, items: Item, count: jax.Array
    ) -> Sums:
        """Evaluates the first `count` batches of `items` `[steps, batch, ...]`.

        Returns:
          Sums over all devices: "loss", "top1", "top5", "examples".
        """

        def body(i: jax.Array, total: Sums) -> Sums:
            item = jax.tree.map(lambda x: x[i], items)
            sums = self.task.evaluate(variables, data, item)
            return jax.tree.map(jnp.add, total, sums)

        names = ("loss", "top1", "top5", "examples")
        zeros = {name: jnp.float32(0) for name in names}
        return lax.psum(lax.fori_loop(0, count, body, zeros), AXIS)

    def _averaged(self, state: TrainState) -> TrainState:
        """Moves the average towards the variables, faster in the first steps."""
        if self.ema_decay is None:
            return state
        decay = jnp.minimum(self.ema_decay, (1 + state.step) / (10 + state.step))
        new = {"params": state.params, "batch_stats": state.batch_stats}
        ema = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state.ema, new)
        return dataclasses.replace(state, ema=ema)


def merge_statistics(stats: Any, momentum: float) -> Any:
    """Merges BatchNorm's running statistics of all devices after a step.

    Each device has averaged in the mean and the variance of its own share of the batch.
    The mean of the whole batch is the mean of these means; its variance is the mean of
    these variances plus the variance of these means. (Where the layers have already
    synchronised the statistics, nothing changes.)

    Args:
      stats: BatchNorm's collection: a tree with "mean" and "var" side by side.
      momentum: of the running statistics.

    Returns:
      Statistics that are the same on every device.
    """
    if not isinstance(stats, dict):
        return lax.pmean(stats, AXIS)
    if set(stats) != {"mean", "var"}:
        return {name: merge_statistics(x, momentum) for name, x in stats.items()}
    mean = lax.pmean(stats["mean"], AXIS)
    # The running means differ by (1 - momentum) times what the batches' means do.
    between = lax.pmean((stats["mean"] - mean) ** 2, AXIS) / (1 - momentum)
    return {"mean": mean, "var": lax.pmean(stats["var"], AXIS) + between}
