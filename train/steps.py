"""The pure programs of training and evaluation, for one device.

The programs average over `AXIS` whatever must be equal on all devices, so one program
serves any number of devices; `train.parallel` maps them. One dispatch runs several
steps in a loop whose length is an argument, so the grouping of steps changes no bit of
the result. Only a program of a single step has no loop: on a CPU, XLA's gradients of
convolutions are 15 to 30 times slower in a loop, and are rounded differently
(https://github.com/jax-ml/jax/issues/12868).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from train.parallel import AXIS
from train.state import TrainState
from train.tasks.task import Item, Sums, Task

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
    """

    task: Task
    optimizer: optax.GradientTransformation
    seed: int = 0
    ema_decay: float | None = None
    bn_momentum: float = 0.9

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

        def objective(params: Any) -> tuple[jax.Array, Any]:
            return self.task.loss(state.collections | {"params": params}, batch)

        (loss, (changed, sums)), gradient = jax.value_and_grad(objective, has_aux=True)(
            state.params
        )
        loss, gradient = lax.pmean((loss, gradient), AXIS)
        changed = dict(changed)
        stats = merge_statistics(changed.pop("batch_stats", {}), self.bn_momentum)
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
        new = {"params": state.params, "batch_stats": state.batch_stats}
        ema = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state.ema, new)
        return dataclasses.replace(state, ema=ema)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def merge_statistics(stats: Any, momentum: float) -> Any:
    """Merges BatchNorm's running statistics of all devices after a step.

    Each device has averaged in the mean and the variance of its own share of the batch.
    The mean of the whole batch is the mean of these means; its variance is the mean of
    these variances plus the variance of these means. Statistics that the layers have
    already synchronized do not change.

    Args:
      stats: the collection of BatchNorm, a tree with "mean" and "var" side by side.
      momentum: momentum of the running statistics.

    Returns:
      Statistics that are equal on every device.
    """
    if not isinstance(stats, dict):
        return lax.pmean(stats, AXIS)
    if set(stats) != {"mean", "var"}:
        return {name: merge_statistics(x, momentum) for name, x in stats.items()}
    mean = lax.pmean(stats["mean"], AXIS)
    # The running means differ by (1 - momentum) times the batch means' difference.
    between = lax.pmean((stats["mean"] - mean) ** 2, AXIS) / (1 - momentum)
    return {"mean": mean, "var": lax.pmean(stats["var"], AXIS) + between}
