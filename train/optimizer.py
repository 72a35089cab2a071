"""The optimizer and its learning rate, composed from Optax."""

import collections
import fnmatch
import functools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from optax import contrib

from shiftjax.errors import InputError, unknown_name
from shiftjax.family import OFFSETS
from train.optimizer_options import Optimizer, Schedule
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


def check_boundaries(schedule: Schedule) -> None:
    """Checks that the learning rate falls after the warm-up only, and at some step.

    Raises:
      InputError: if a boundary is NaN or infinite, or within the warm-up: the rate
        would miss its peak.
    """
    for boundary in schedule.boundaries:
        if not math.isfinite(boundary):
            raise InputError(f"--schedule.boundaries {boundary}: it must be finite")
    first = min(schedule.boundaries, default=math.inf)
    if schedule.kind == "steps" and first < schedule.warmup_epochs:
        raise InputError(
            f"--schedule.boundaries {first}: it is within the warm-up of "
            f"{schedule.warmup_epochs} epochs (--schedule.warmup-epochs), after which "
            "the rate can fall first"
        )


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
      parameters do not change; for statistics see `keep_frozen`.
    """
    clip = optimizer.clip_norm
    rule = optax.chain(
        optax.identity() if clip is None else optax.clip_by_global_norm(clip),
        _muon(optimizer, rate) if optimizer.kind == "muon" else _plain(optimizer, rate),
    )
    if optimizer.freeze:
        kinds: dict[Hashable, optax.GradientTransformation] = {
            "trained": rule,
            "frozen": optax.set_to_zero(),
        }
        rule = optax.partition(kinds, functools.partial(label, optimizer.freeze))
    if optimizer.rates:
        rule = optax.chain(rule, scale_updates(optimizer.rates))
    return rule


def _plain(optimizer: Optimizer, rate: optax.Schedule) -> optax.GradientTransformation:
    """Builds weight decay followed by SGD or Adam."""
    mask = _is_kernel if optimizer.decay == "kernels" else None
    if optimizer.kind == "adam":
        rule = optax.adam(rate)
    else:
        rule = optax.sgd(rate, optimizer.momentum, optimizer.nesterov)
    decay = optax.add_decayed_weights(optimizer.weight_decay, mask)
    if optimizer.normalize_offsets:
        return optax.chain(normalize_offsets(), decay, rule)
    return optax.chain(decay, rule)


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
    layer ("stem", "head", "classifier"), depthwise kernels, displacements, scales and
    biases.

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
        outer = {key.key for key in path} & {"stem", "head", CLASSIFIER, OFFSETS}
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
    paths = flatten_dict(params, sep="/")
    frozen = set[str]().union(*(_required(x, paths, "to freeze") for x in patterns))
    labels = {p: "frozen" if p in frozen else "trained" for p in paths}
    return unflatten_dict(labels, sep="/")


def keep_frozen(patterns: Sequence[str], old: Any, new: Any) -> Any:
    """Replaces new values by old ones where a pattern matches their path.

    Args:
      patterns: as in `label`; a pattern may match nothing.
      old: a tree of values, such as BatchNorm's running statistics before a step.
      new: a tree of the same structure.

    Returns:
      The tree of new values, with old ones where they are frozen.

    Example:
      >>> old = {"stem": {"mean": 1}, "head": {"mean": 2}}
      >>> keep_frozen(["stem"], old, {"stem": {"mean": 3}, "head": {"mean": 4}})
      {'stem': {'mean': 1}, 'head': {'mean': 4}}
    """
    if not patterns:
        return new
    before: dict[str, Any] = flatten_dict(old, sep="/")
    after: dict[str, Any] = flatten_dict(new, sep="/")
    frozen = {p for pattern in patterns for p in _matching(pattern, before)}
    kept = {path: before[path] for path in frozen}
    return unflatten_dict(after | kept, sep="/")


def scale_updates(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of some parameters, which scales their learning rates.

    Args:
      factors: factors by patterns, as in `label`; of several patterns of a parameter
        the last one counts.

    Returns:
      The transformation. Its `init` raises UnknownNameError if a pattern matches no
      parameter.

    Example:
      >>> half = scale_updates({"*/offsets": 0.5})
      >>> params = {"shift": {"offsets": jnp.ones(1)}, "head": {"bias": jnp.ones(1)}}
      >>> updates, _ = half.update(params, half.init(params))
      >>> updates["shift"]["offsets"].item(), updates["head"]["bias"].item()
      (0.5, 1.0)
    """

    def chosen(params: Any) -> dict[str, float]:
        paths = flatten_dict(params, sep="/")
        return {
            path: factor
            for pattern, factor in factors.items()
            for path in _required(pattern, paths, "with a rate of its own")
        }

    def init(params: Any) -> optax.OptState:
        chosen(params)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        flat: dict[str, Any] = flatten_dict(updates, sep="/")
        scaled = {path: factor * flat[path] for path, factor in chosen(flat).items()}
        return unflatten_dict(flat | scaled, sep="/"), state

    return optax.GradientTransformation(init, update)


def normalize_offsets() -> optax.GradientTransformation:
    """Divides the gradient `(dy, dx)` of each learned displacement by its length.

    Source: Jeon and Kim 2018, https://arxiv.org/abs/1806.07370.

    Returns:
      The transformation; a gradient of zero stays zero.

    Example:
      >>> gradient = {"offsets": jnp.array([[3.0, -4.0], [0.0, 0.0]])}
      >>> rule = normalize_offsets()
      >>> updates, _ = rule.update(gradient, rule.init(gradient))
      >>> updates["offsets"].round(1).tolist()
      [[0.6000000238418579, -0.800000011920929], [0.0, 0.0]]
    """

    def normalized(path: tuple[Any, ...], gradient: jax.Array) -> jax.Array:
        if not _is_offsets(path):
            return gradient
        length = jnp.linalg.norm(gradient, axis=-1, keepdims=True)
        return gradient / jnp.where(length == 0, 1, length)

    return optax.stateless(
        lambda updates, params: jax.tree_util.tree_map_with_path(normalized, updates)
    )


def _matching(pattern: str, paths: Iterable[str]) -> set[str]:
    """Returns the paths that match a pattern, or of which it is the first part."""
    both = (pattern, f"{pattern}/*")
    return {p for p in paths if any(fnmatch.fnmatchcase(p, x) for x in both)}


def _required(pattern: str, paths: Iterable[str], purpose: str) -> set[str]:
    """Returns the paths that match a pattern, as `_matching`; raises if none does."""
    found = _matching(pattern, paths)
    if not found:
        raise unknown_name(f"parameter {purpose}", pattern, _beginnings(paths))
    return found


def _beginnings(paths: Iterable[str]) -> list[str]:
    """Lists paths and their first parts."""
    parts = [path.split("/") for path in paths]
    return sorted({"/".join(p[: i + 1]) for p in parts for i in range(len(p))})


def _is_kernel(params: Any) -> Any:
    def choose(path: tuple[Any, ...], x: Any) -> bool:
        return x.ndim > 1 and not _is_offsets(path)

    return jax.tree_util.tree_map_with_path(choose, params)


def _is_offsets(path: tuple[Any, ...]) -> bool:
    """Returns True for the path of the displacements of a learned shift."""
    return bool(path) and getattr(path[-1], "key", None) == OFFSETS
