"""The pure programs of training and evaluation, for one device.

The programs average over `AXIS` whatever must be equal on all devices, so one program
serves any number of devices; `train.parallel` maps them. One dispatch runs several
steps in a loop whose length is an argument, so the grouping of steps changes no bit of
the result. Only a program of a single step has no loop: on a CPU, XLA's gradients of
convolutions are 15 to 30 times slower in a loop, and are rounded differently
(https://github.com/jax-ml/jax/issues/12868). Micro-batches are always in a loop, which
is what saves memory.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from shiftjax.errors import InputError
from train.config import Config
from train.optimizer import keep_frozen
from train.parallel import AXIS
from train.state import TrainState
from train.tasks.task import Collections, Item, Sums, Task

NEVER = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The training and evaluation steps of a task, and loops over them.

    Attributes:
      task: computes the loss and the metrics of a batch.
      optimizer: computes the update from the gradient.
      seed: determines the augmentation, with the step and the example.
      ema_decay: decay of the moving average of the variables, or None.
      bn_momentum: momentum of BatchNorm's running statistics, as in the model.
      accumulate: number of micro-batches, see `loss_and_gradient`.
      frozen_statistics: patterns of the paths of BatchNorm's running statistics that do
        not change, see `train.optimizer.keep_frozen`.
    """

    task: Task
    optimizer: optax.GradientTransformation
    seed: int = 0
    ema_decay: float | None = None
    bn_momentum: float = 0.9
    accumulate: int = 1
    frozen_statistics: tuple[str, ...] = ()

    def train_step(
        self, state: TrainState, data: Any, item: Item
    ) -> tuple[TrainState, Sums]:
        """Runs one training step on this device's share of a batch.

        Args:
          state: the state before the step.
          data: the arrays on the devices, see `Task.data`.
          item: the examples of the step, see `Task`.

        Returns:
          The state after the step, equal on every device, and the sums of this device:
          those of the task, "loss", and "bad_step".
        """
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        batch = self.task.batch(data, item, key)
        loss, gradient, changed, sums = self.loss_and_gradient(state, batch)
        loss, gradient = lax.pmean((loss, gradient), AXIS)
        stats = merge_statistics(changed.pop("batch_stats", {}), self.bn_momentum)
        stats = keep_frozen(self.frozen_statistics, state.batch_stats, stats)
        updates, opt_state = self.optimizer.update(
            gradient, state.opt_state, state.params
        )
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=stats,
            others=changed,
            opt_state=opt_state,
        )
        state = self._averaged(state)
        # The loss belongs to the old params, so the update is checked too.
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(updates))
        return state, sums | {
            "loss": loss * sums["examples"],
            "bad_step": jnp.where(finite, NEVER, state.step),
        }

    def loss_and_gradient(
        self, state: TrainState, batch: Any
    ) -> tuple[jax.Array, Any, Collections, Sums]:
        """Computes the loss of this device's share of a batch, and its gradient.

        If `accumulate` is above 1, the share is split into that many micro-batches of
        consecutive examples. They are computed one after the other, and only one has
        its activations in memory. The gradient is that of the whole share, except that
        BatchNorm normalizes each micro-batch by its own statistics.

        Args:
          state: the state before the step.
          batch: this device's share, see `Task.batch`.

        Returns:
          The loss, its gradient, the collections other than "params" after the step,
          and the sums of the task. BatchNorm's running statistics are those of the
          whole share; other collections are those after the last micro-batch.
        """

        def objective(params: Any, part: Any) -> tuple[jax.Array, Any]:
            return self.task.loss(state.collections | {"params": params}, part)

        differentiate = jax.value_and_grad(objective, has_aux=True)
        if self.accumulate == 1:
            (loss, (changed, sums)), gradient = differentiate(state.params, batch)
            return loss, gradient, dict(changed), sums

        def add(total: Any, part: Any) -> tuple[Any, Any]:
            (loss, (changed, sums)), gradient = differentiate(state.params, part)
            return jax.tree.map(jnp.add, total, gradient), (loss, changed, sums)

        count = self.accumulate
        parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
        total, (losses, changes, sums) = lax.scan(add, _zeros(state.params), parts)
        stats = merge_statistics(
            changes.get("batch_stats", {}), self.bn_momentum, lambda x: x.mean(0)
        )
        changed = jax.tree.map(lambda x: x[-1], dict(changes)) | {"batch_stats": stats}
        gradient = jax.tree.map(lambda x: x / count, total)
        return losses.mean(), gradient, changed, jax.tree.map(lambda x: x.sum(0), sums)

    def train_steps(
        self, state: TrainState, data: Any, items: Item, count: jax.Array
    ) -> tuple[TrainState, Sums]:
        """Runs the first `count` training steps of `items` `[steps, batch, ...]`.

        Returns:
          The last state, and sums over all devices: those of the task, "loss", and
          "bad_step", the first step whose loss or update was not finite, or `NEVER`.
        """

        def step(i: jax.Array | int, state: TrainState) -> tuple[TrainState, Sums]:
            return self.train_step(state, data, jax.tree.map(lambda x: x[i], items))

        def body(i: jax.Array | int, carry: tuple) -> tuple:
            state, total = carry
            state, sums = step(i, state)
            bad = jnp.minimum(total.pop("bad_step"), sums.pop("bad_step"))
            return state, jax.tree.map(jnp.add, total, sums) | {"bad_step": bad}

        _, shapes = jax.eval_shape(step, 0, state)
        start = (state, _zeros(shapes) | {"bad_step": jnp.int32(NEVER)})
        if len(jax.tree.leaves(items)[0]) == 1:  # see the module's docstring
            state, total = body(0, start)
        else:
            state, total = lax.fori_loop(0, count, body, start)
        bad = lax.pmin(total.pop("bad_step"), AXIS)
        return state, lax.psum(total, AXIS) | {"bad_step": bad}

    def eval_steps(
        self, variables: Any, data: Any, items: Item, count: jax.Array
    ) -> tuple[Sums, dict[str, jax.Array]]:
        """Evaluates the first `count` batches of `items` `[steps, batch, ...]`.

        Returns:
          The task's sums over all devices, and its outputs for each example,
          `[steps, batch of all devices, ...]` by name.
        """

        def evaluate(i: jax.Array | int) -> tuple[Sums, dict[str, jax.Array]]:
            item = jax.tree.map(lambda x: x[i], items)
            return self.task.evaluate(variables, data, item)

        def body(i: jax.Array, carry: tuple) -> tuple:
            total, rows = carry
            sums, new = evaluate(i)
            rows = jax.tree.map(lambda all_, x: all_.at[i].set(x), rows, new)
            return jax.tree.map(jnp.add, total, sums), rows

        length = len(jax.tree.leaves(items)[0])
        sums, rows = jax.eval_shape(evaluate, 0)
        start = (
            _zeros(sums),
            jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), rows),
        )
        total, rows = lax.fori_loop(0, count, body, start)
        return lax.psum(total, AXIS), lax.all_gather(rows, AXIS, axis=1, tiled=True)

    def _averaged(self, state: TrainState) -> TrainState:
        """Updates the moving average of the variables, faster in the first steps."""
        if self.ema_decay is None:
            return state
        decay = jnp.minimum(self.ema_decay, (1 + state.step) / (10 + state.step))
        new = state.raw_variables
        ema = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state.ema, new)
        return dataclasses.replace(state, ema=ema)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def over_devices(x: jax.Array) -> jax.Array:
    """Returns the mean over all devices."""
    return lax.pmean(x, AXIS)


def merge_statistics(
    stats: Any,
    momentum: float,
    mean_of: Callable[[jax.Array], jax.Array] = over_devices,
) -> Any:
    """Merges BatchNorm's running statistics of the parts of a batch after a step.

    Each device has averaged in the mean and the variance of its own share of the batch.
    The mean of the whole batch is the mean of these means; its variance is the mean of
    these variances plus the variance of these means. Statistics that the layers have
    already synchronized do not change. The same holds for micro-batches.

    Args:
      stats: the collection of BatchNorm, a tree with "mean" and "var" side by side.
      momentum: momentum of the running statistics.
      mean_of: computes the mean of an array over the parts.

    Returns:
      Statistics of the whole batch, equal on every device.
    """
    if not isinstance(stats, dict):
        return mean_of(stats)
    if set(stats) != {"mean", "var"}:
        return {k: merge_statistics(x, momentum, mean_of) for k, x in stats.items()}
    mean = mean_of(stats["mean"])
    # The running means differ by (1 - momentum) times the batch means' difference.
    between = mean_of((stats["mean"] - mean) ** 2) / (1 - momentum)
    return {"mean": mean, "var": mean_of(stats["var"]) + between}


def check_share(config: Config, share: int) -> None:
    """Checks the options that depend on one device's share of a batch.

    Args:
      config: the configuration of the run.
      share: number of examples of a batch on one device.

    Raises:
      InputError: if micro-batches cannot be of one size, or no example has a neighbor
        to be mixed with.
    """
    count = config.accumulate
    if share % count:
        divisors = [n for n in range(1, share + 1) if share % n == 0]
        nearest = [n for n in divisors if n < count][-1:]
        nearest += [n for n in divisors if n > count][:1]
        raise InputError(
            f"--accumulate {count}: it must divide each device's share of the batch, "
            f"{share} examples; choose {' or '.join(map(str, nearest))}"
        )
    for name in ("mixup", "cutmix"):
        alpha = getattr(config.augment, name)
        if alpha and share < 2:
            raise InputError(
                f"--augment.{name} {alpha}: it mixes examples of the same device, and "
                f"--batch-size {config.batch_size} gives each device {share}; it must "
                "be at least 2"
            )
