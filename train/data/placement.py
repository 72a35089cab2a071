"""Where examples lie: on the devices, or on the host, which feeds them to these."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from train.config import Data
from train.data.image_set import ImageSet
from train.data.resident import Resident
from train.parallel import Replicas

FED_STEPS = 4  # batches fed from the host are images: few fit in a dispatch


def is_resident(examples: ImageSet, options: Data) -> bool:
    """Returns True for a set that is small enough to live on the devices."""
    return examples.images.nbytes <= options.resident_bytes


def on_devices(
    examples: ImageSet,
    options: Data,
    data: Callable[[Resident | None], Any],
    replicas: Replicas,
) -> tuple[Any, ImageSet | None]:
    """Puts a set, and what else a task wants there, on the devices.

    Args:
      examples: the set.
      options: which sets are too large for a device.
      data: computes what lies on the devices, given the set if it does; `Task.data`.
      replicas: the devices.

    Returns:
      What lies there; and the set, if it is too large and has to be fed.
    """
    resident = is_resident(examples, options)
    placed = replicas.replicate(data(Resident.of(examples) if resident else None))
    return placed, None if resident else examples


def host_share(indices: np.ndarray) -> np.ndarray:
    """Returns this host's columns of `[steps, global batch]`.

    Example:
      >>> host_share(np.array([[3, 1, 2]])).tolist()  # of a single host
      [[3, 1, 2]]
    """
    share = indices.shape[1] // jax.process_count()
    start = jax.process_index() * share
    return indices[:, start : start + share]
