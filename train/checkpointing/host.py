"""A training state as NumPy arrays, independent of devices.

A state is a tree of JAX arrays (replicated over any number of devices), NumPy arrays
and typed PRNG keys, which are stored as their key data. None and empty nodes belong to
the structure of the tree.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
Leaf = Any  # an array, a typed PRNG key, a `jax.ShapeDtypeStruct` or a number


def copy_to_host(state: PyTree) -> PyTree:
    """Copies a state to the host.

    Args:
      state: a tree of arrays and typed PRNG keys.

    Returns:
      The tree with NumPy arrays that share no memory with the state.
    """
    # On a CPU, jax.device_get returns views of buffers that the next step overwrites.
    arrays = jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, state
    )
    return jax.tree.map(np.array, jax.device_get(arrays))


def host_template(template: PyTree) -> PyTree:
    """Allocates arrays of the shapes and dtypes that `copy_to_host` returns.

    Args:
      template: a tree like a state, of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      The tree with NumPy arrays.
    """

    def empty(leaf: Leaf) -> np.ndarray:
        if is_key(leaf):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        array = as_array(leaf)
        return np.empty(array.shape, array.dtype)

    return jax.tree.map(empty, template)


def restore_keys(template: PyTree, host: PyTree) -> PyTree:
    """Converts key data back into typed PRNG keys.

    Args:
      template: a tree with typed keys, or abstract ones, where the state has keys.
      host: a tree of that structure, returned by `copy_to_host`.

    Returns:
      The tree with NumPy arrays and typed keys.
    """

    def restore(leaf: Leaf, array: np.ndarray) -> Leaf:
        if not is_key(leaf):
            return array
        # An abstract key has a dtype, but no public attribute for its generator.
        generator = jax.random.key_impl(jnp.empty((), leaf.dtype))
        return jax.random.wrap_key_data(jnp.asarray(array), impl=generator)

    return jax.tree.map(restore, template, host)


def as_array(leaf: Leaf) -> Leaf:
    """Converts a number to an array; returns other leaves unchanged."""
    return leaf if hasattr(leaf, "dtype") else np.asarray(leaf)


def is_key(leaf: Leaf) -> bool:
    """Returns True for an array of typed PRNG keys, also for an abstract one."""
    return jnp.issubdtype(as_array(leaf).dtype, jax.dtypes.prng_key)
