"""The optimizer and its learning rate, composed from Optax."""

import collections
import fnmatch
import functools
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from optax import contrib

from shiftjax.errors import unknown_name
from train.config import Optimizer, Schedule
from train.state import CLASSIFIER


def learning_rate(
    schedule: Schedule, total_steps: int, steps_per_epoch: float
) -> optax.Schedule:
    """Builds the learning rate as a function of the step.

    Args:
      schedule: the options of the schedule, with durations in epochs.
      total_steps: the length of the run.
      steps_per_epoch: the number of steps in which each example is seen once.

    Returns:
      A function from the number of finished steps to the rate of the next one.

    Example:
      >>> rate = learning_rate(Schedule(learning_rate=0.4, warmup_epochs=1), 100, 10)
      >>> [round(float(rate(step)), 3) for step in (0, 5, 10, 55, 100)]
      [0.0, 0.2, 0.4, 0.2, 0.0]
    """
    peak = schedule.learning_rate
    warmup = min(round(schedule.warmup_epochs * steps_per_epoch), total_steps)
    rest = max(total_steps - warmup, 1)
    if schedule.kind == "constant":
        body = optax.constant_schedule(peak)
    elif schedule.kind == "cosine":
        body = optax.cosine_decay_schedule(peak, rest)
    elif schedule.kind == "one_cycle":
        body = optax.linear_schedule(peak, 0.0, rest)
    else:
        falls = collections.Counter(  # boundaries may be rounded to the same step
            round(epoch * steps_per_epoch) - warmup for epoch in schedule.boundaries
        )
        body = optax.piecewise_constant_schedule(
            peak, {step: schedule.factor**count for step, count in falls.items()}
        )
    if not warmup:
        return body
    rise = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([rise, body], [warmup])


def make_optimizer(
    optimizer: Optimizer, rate: optax.Schedule
) -> optax.GradientTransformation:
    """Builds the optimizer; as in PyTorch, weight decay is added to the gradient.

    Muon updates the kernels of hidden layers by their orthogonalized momentum (see
    `muon_labels`), at `muon_rate` times the learning rate and with a decay of its own;
    all other parameters are updated by SGD.

    Source: Jordan 2024, https://kellerjordan.github.io/posts/muon/.

    Args:
      optimizer: the options.
      rate: the learning rate as a function of the step.

    Returns:
      The transformation: clipping, weight decay, then SGD, Adam or Muon. Frozen
      parameters do not change; BatchNorm still averages its statistics.
    """
    clip = optimizer.clip_norm
    trained = optax.chain(
        optax.identity() if clip is None else optax.clip_by_global_norm(clip),
        _muon(optimizer, rate) if optimizer.kind == "muon" else _plain(optimizer, rate),
    )
    if not optimizer.freeze:
        return trained
    kinds: dict[Hashable, optax.GradientTransformation] = {
        "trained": trained,
        "frozen": optax.set_to_zero(),
    }
    return optax.partition(kinds, functools.partial(label, optimizer.freeze))


def _plain(optimizer: Optimizer, rate: optax.Schedule) -> optax.GradientTransformation:
    """Builds weight decay followed by SGD or Adam."""
    mask = _is_kernel if optimizer.decay == "kernels" else None
    if optimizer.kind == "adam":
        rule = optax.adam(rate)
    else:
        rule = optax.sgd(rate, optimizer.momentum, optimizer.nesterov)
    return optax.chain(optax.add_decayed_weights(optimizer.weight_decay, mask), rule)


def _muon(optimizer: Optimizer, rate: optax.Schedule) -> optax.GradientTransformation:
    """Builds Muon for hidden kernels, and SGD for all other parameters."""
    muon = contrib.muon(
        lambda step: optimizer.muon_rate * rate(step),
        beta=optimizer.momentum,
        nesterov=optimizer.nesterov,
        weight_decay=optimizer.muon_decay,
        muon_weight_dimension_numbers=functools.partial(jax.tree.map, _as_matrix),
    )
    return optax.partition({"muon": muon, "sgd": _plain(optimizer, rate)}, muon_labels)


def _as_matrix(kernel: Any) -> contrib.MuonDimensionNumbers:
    """Describes a kernel `[..., in, out]` as a matrix of `out` columns."""
    last = kernel.ndim - 1
    return contrib.MuonDimensionNumbers(tuple(range(last)), last)


def muon_labels(params: Any) -> Any:
    """Chooses the parameters that Muon updates: the kernels of hidden layers.

    These are matrices from features to features. SGD updates the first and the last
    layer ("stem", "head", "classifier"), depthwise kernels, scales and biases.

    Args:
      params: the tree of parameters.

    Returns:
      A tree of the same structure with "muon" or "sgd" at each leaf.

    Example:
      >>> import numpy as np
      >>> matrix = np.ones((16, 48))
      >>> muon_labels({"stem": matrix, "stage1_block01": {"kernel": matrix}})
      {'stage1_block01': {'kernel': 'muon'}, 'stem': 'sgd'}
    """

    def choose(path: tuple[Any, ...], x: Any) -> str:
        outer = {key.key for key in path} & {"stem", "head", CLASSIFIER}
        return "muon" if x.ndim > 1 and x.shape[-2] > 1 and not outer else "sgd"

    return jax.tree_util.tree_map_with_path(choose, params)


def label(patterns: Sequence[str], params: Any) -> Any:
    """Labels each parameter as frozen or trained.

    Args:
      patterns: shell wildcards of paths such as "stem/conv/kernel", or the first parts
        of paths, such as "stem".
      params: the tree of parameters.

    Returns:
      A tree of the same structure with "frozen" or "trained" at each leaf.

    Raises:
      UnknownNameError: if a pattern matches no parameter.

    Example:
      >>> label(["stem"], {"stem": {"kernel": 1}, "head": {"kernel": 2}})
      {'stem': {'kernel': 'frozen'}, 'head': {'kernel': 'trained'}}
    """
    flat = flatten_dict(params, sep="/")
    frozen: set[str] = set()
    for pattern in patterns:
        both = (pattern, f"{pattern}/*")
        found = {p for p in flat if any(fnmatch.fnmatchcase(p, x) for x in both)}
        if not found:
            raise unknown_name("parameter to freeze", pattern, _beginnings(flat))
        frozen |= found
    labels = {p: "frozen" if p in frozen else "trained" for p in flat}
    return unflatten_dict(labels, sep="/")


def _beginnings(paths: Iterable[str]) -> list[str]:
    """Lists paths and their first parts."""
    parts = [path.split("/") for path in paths]
    return sorted({"/".join(p[: i + 1]) for p in parts for i in range(len(p))})


def _is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, params)
