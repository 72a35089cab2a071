"""The manifest of a checkpoint: a description of the state, and its verification.

A manifest is JSON: the step, the caller's metadata and metrics, the versions of the
libraries, each array's dtype, shape and sha256 by its name, and a sha256 over all of
this. This module reads and writes no files.
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
    """A checkpoint differs from what was written; the message names the damage."""


def draft(
    step: int,
    state: PyTree,
    metadata: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> Manifest:
    """Describes a state, without reading its values.

    Args:
      step: the number of updates.
      state: a tree of arrays and typed PRNG keys.
      metadata: values that JSON can hold.
      metrics: numbers; those that are not finite are left out.

    Returns:
      A manifest without hashes.
    """
    numbers = {name: float(value) for name, value in metrics.items()}
    return {
        "step": step,
        "metadata": json.loads(
            json.dumps(metadata)
        ),  # a copy, equal to what is read back
        "metrics": {n: value for n, value in numbers.items() if math.isfinite(value)},
        "versions": _versions(),
        "arrays": describe_tree(state),
    }


def seal(manifest: Manifest, host: PyTree) -> Manifest:
    """Adds the hashes to a manifest.

    Args:
      manifest: a manifest returned by `draft`.
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


def verify_manifest(manifest: Manifest) -> None:
    """Checks a manifest against its own hash.

    Args:
      manifest: a manifest read from disk.

    Raises:
      DamagedError: if it differs from what `seal` returned.
    """
    if not isinstance(manifest, dict) or manifest.get("sha256") != _digest(manifest):
        raise DamagedError("its manifest does not match its sha256")


def verify_arrays(manifest: Manifest, host: PyTree) -> None:
    """Checks arrays against a manifest.

    Args:
      manifest: a verified manifest.
      host: the arrays read from disk.

    Raises:
      DamagedError: if an array differs from the one given to `seal`.
    """
    leaves = jax.tree.leaves(host)
    for (name, kind), leaf in zip(manifest["arrays"].items(), leaves, strict=True):
        if _sha256(leaf) != kind["sha256"]:
            raise DamagedError(f"{name} does not match its sha256")


def describe_tree(tree: PyTree) -> dict[str, dict[str, Any]]:
    """Returns the names of a tree's arrays with their dtypes and shapes.

    Args:
      tree: a tree of arrays, typed PRNG keys or `jax.ShapeDtypeStruct`.

    Returns:
      The dtype and shape of each array by its path, in the order of `jax.tree.leaves`.

    Example:
      >>> describe_tree({"params": {"bias": np.zeros(3)}})
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
    """Describes in one line the differences between a checkpoint and a template.

    Args:
      manifest: the manifest of the checkpoint.
      template: a tree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      The kinds of differences with their counts and first names; "" for no difference.

    Example:
      >>> manifest = draft(1, {"a": np.zeros(2), "b": np.zeros(1)}, {}, {})
      >>> difference(manifest, {"a": np.zeros(3)})
      '1 extra (b); 1 of another shape (a: stored [2], wanted [3])'
    """
    stored, wanted = manifest["arrays"], describe_tree(template)
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
    """Returns the versions of the libraries that a state depends on."""
    names = ["jax", "flax", "optax", "orbax-checkpoint"]
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"shiftjax": __version__} | versions


def _sha256(array: np.ndarray) -> str:
    """Hashes an array: its dtype, its shape and its values in C order."""
    digest = hashlib.sha256(f"{array.dtype}{list(array.shape)}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _digest(manifest: Manifest) -> str:
    """Hashes a manifest, without the hash that it contains."""
    body = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
