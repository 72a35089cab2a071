"""What a checkpoint says of itself, and whether that is true.

A manifest is JSON: the step, the caller's metadata and metrics, the versions of the
libraries, and each array's dtype, shape and sha256 by its name; then a sha256 over all
of this. Nothing here touches a disk or knows who writes it.
"""

import functools
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from shiftjax.version import __version__
from train.checkpointing.host import PyTree, as_array

Manifest = dict[str, Any]


class DamagedError(Exception):
    """A checkpoint that is not as it was written; the message says what is wrong."""


def draft(
    step: int,
    state: PyTree,
    metadata: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> Manifest:
    """Describes a state, without reading its values.

    Args:
      step: the number of updates done.
      state: a tree of arrays and typed PRNG keys.
      metadata: what JSON can hold.
      metrics: numbers; those that are not finite are left out.

    Returns:
      A manifest without hashes.
    """
    numbers = {name: float(value) for name, value in metrics.items()}
    return {
        "step": step,
        "metadata": json.loads(json.dumps(metadata)),  # a copy, as it will be read
        "metrics": {n: value for n, value in numbers.items() if math.isfinite(value)},
        "versions": _versions(),
        "arrays": describe(state),
    }


def seal(manifest: Manifest, host: PyTree) -> Manifest:
    """Adds the hashes.

    Args:
      manifest: what `draft` returned.
      host: the state's arrays on the host.

    Returns:
      The manifest, with a sha256 for each array and one over itself.
    """
    hashes = map(_sha256, jax.tree.leaves(host))
    arrays = {
        name: kind | {"sha256": sha256}
        for (name, kind), sha256 in zip(manifest["arrays"].items(), hashes, strict=True)
    }
    sealed = manifest | {"arrays": arrays}
    return sealed | {"sha256": _digest(sealed)}


def verify(manifest: Manifest) -> None:
    """Checks a manifest against its own hash.

    Args:
      manifest: what was read.

    Raises:
      DamagedError: if it is not what `seal` returned.
    """
    if not isinstance(manifest, dict) or manifest.get("sha256") != _digest(manifest):
        raise DamagedError("its manifest does not have its sha256")


def verify_arrays(manifest: Manifest, host: PyTree) -> None:
    """Checks arrays against a manifest.

    Args:
      manifest: one that is verified.
      host: the arrays that were read.

    Raises:
      DamagedError: if an array is not what `seal` was given.
    """
    leaves = jax.tree.leaves(host)
    for (name, kind), leaf in zip(manifest["arrays"].items(), leaves, strict=True):
        if _sha256(leaf) != kind["sha256"]:
            raise DamagedError(f"{name} does not have its sha256")


def describe(tree: PyTree) -> dict[str, dict[str, Any]]:
    """Names the arrays of a tree, with their dtypes and shapes.

    Args:
      tree: a tree of arrays, typed PRNG keys or `jax.ShapeDtypeStruct`.

    Returns:
      The dtype and shape of each array by its path, in the order of `jax.tree.leaves`.

    Example:
      >>> describe({"params": {"bias": np.zeros(3)}})
      {'params/bias': {'dtype': 'float64', 'shape': [3]}}
    """
    arrays = jax.tree.leaves_with_path(jax.tree.map(as_array, tree))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): {
            "dtype": str(array.dtype),
            "shape": list(array.shape),
        }
        for path, array in arrays
    }


def difference(manifest: Manifest, template: PyTree) -> str:
    """Says in one line how a checkpoint's state differs from a template.

    Args:
      manifest: the checkpoint's.
      template: a tree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      The differences with their counts and first names; empty if there are none.

    Example:
      >>> manifest = draft(1, {"a": np.zeros(2), "b": np.zeros(1)}, {}, {})
      >>> difference(manifest, {"a": np.zeros(3)})
      '1 extra (b); 1 of another shape (a: stored [2], wanted [3])'
    """
    stored, wanted = manifest["arrays"], describe(template)
    lists = {
        "missing": [name for name in wanted if name not in stored],
        "extra": [name for name in stored if name not in wanted],
    } | {
        f"of another {key}": [
            f"{name}: stored {stored[name][key]}, wanted {kind[key]}"
            for name, kind in wanted.items()
            if name in stored and stored[name][key] != kind[key]
        ]
        for key in ("shape", "dtype")
    }
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if names[3:] else ''})"
        for kind, names in lists.items()
        if names
    )


@functools.cache
def _versions() -> dict[str, str]:
    """Returns the versions of the libraries that make a state what it is."""
    names = ["jax", "flax", "optax", "orbax-checkpoint"]
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"shiftjax": __version__} | versions


def _sha256(array: np.ndarray) -> str:
    """Hashes an array: its dtype, its shape and its values in C order."""
    digest = hashlib.sha256(f"{array.dtype}{list(array.shape)}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _digest(manifest: Manifest) -> str:
    """Hashes a manifest, without the hash that is in it."""
    body = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
