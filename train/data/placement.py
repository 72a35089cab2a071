"""The placement of examples: resident on the devices, or fed from the host."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import jax
import numpy as np

from train.config import Data
from train.data.examples import Examples
from train.data.image_set import ImageSet
from train.data.resident import Resident
from train.data.stream import Order, items
from train.parallel import Replicas

FED_STEPS = 4  # few, because a dispatch holds the images of all its steps


def is_resident(examples: Examples, options: Data) -> TypeGuard[ImageSet]:
    """Returns True if a set is in memory, and small enough for that of the devices."""
    return (
        isinstance(examples, ImageSet)
        and examples.images.nbytes <= options.resident_bytes
    )


def on_devices(
    examples: Examples,
    options: Data,
    data: Callable[[Resident | None], Any],
    replicas: Replicas,
) -> tuple[Any, Examples | None]:
    """Puts a set, and other arrays that a task needs, on the devices.

    Args:
      examples: the set.
      options: options with the size limit of a resident set.
      data: computes the arrays from the set, or from None if it is not resident;
        `Task.data`.
      replicas: the devices.

    Returns:
      The arrays on the devices; and the set if the host has to feed it, else None.
    """
    if is_resident(examples, options):
        return replicas.replicate(data(Resident.of(examples))), None
    return replicas.replicate(data(None)), examples


def host_share(indices: np.ndarray) -> np.ndarray:
    """Returns this host's columns of `[steps, global batch]`.

    Example:
      >>> host_share(np.array([[3, 1, 2]])).tolist()  # of a single host
      [[3, 1, 2]]
    """
    share = indices.shape[1] // jax.process_count()
    start = jax.process_index() * share
    return indices[:, start : start + share]


def training_items(
    order: Order, steps: Sequence[int], fed: Examples | None, length: int
) -> dict[str, Any]:
    """Builds this host's share of the input of training steps.

    Args:
      order: the examples of each step.
      steps: the steps.
      fed: as in `train.data.stream.items`.
      length: as in `train.data.stream.items`.

    Returns:
      The input, as of `train.data.stream.items`.
    """

    def share(part: Callable[[int], np.ndarray]) -> np.ndarray:
        return host_share(np.stack([part(step) for step in steps]))

    places = None
    if order.is_balanced:
        places = share(lambda _: np.arange(order.batch_size))
    return items(share(order.indices), fed, length, share(order.draws), places)


def facts(examples: Examples, split: str) -> dict[str, Any]:
    """Returns what all hosts must have in common, by its name.

    The labels are left out for images that are not in memory: of some sources they
    cannot be read without the images.

    Args:
      examples: the examples of a split.
      split: the name of the split.
    """
    found: dict[str, Any] = {
        f"the number of {split} examples": len(examples),
        f"the classes of the {split} examples, as a hash": _digest(
            repr(examples.class_names).encode()
        ),
    }
    if not isinstance(examples, ImageSet):
        return found | {f"the {split} images": "encoded ones"}
    return found | {
        f"the {split} images": "decoded ones",
        f"the labels of the {split} examples, as a hash": _digest(
            np.ascontiguousarray(examples.labels, np.int32).tobytes()
        ),
    }


def _digest(content: bytes) -> str:
    """Returns the first digits of the content's hash."""
    return hashlib.sha256(content).hexdigest()[:8]
