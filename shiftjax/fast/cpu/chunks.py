"""Loops over chunks of a few images, which fit into a core's second-level cache.

A function is applied to each chunk in a loop, forward and again in the backward pass,
so its intermediate results exist for one chunk at a time.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from shiftjax.fast.batchnorm import Pair

CACHE = 2**20  # bytes of the widest tensor that is computed at once
FEWEST, MOST = 4, 16  # images in a chunk: rows of 8 pixels are then two registers long

Function = Callable[[Any, Any, Any], tuple[Any, Any]]


class Moment(NamedTuple):
    """A mean and a second moment of an array, and their derivative.

    Attributes:
      value: maps x to both.
      backward: maps x, its mean and the gradients of both to that of x.
    """

    value: Callable[[jax.Array], Pair]
    backward: Callable[[jax.Array, jax.Array, Pair], jax.Array]


def chunk_size(image_bytes: int) -> int:
    """Returns the number of images of a chunk.

    Args:
      image_bytes: size of the widest tensor of one image.

    Returns:
      The number that `CACHE` holds, from `FEWEST` to `MOST`.
    """
    return min(max(CACHE // max(image_bytes, 1), FEWEST), MOST)


def group_count(chunks: int, chunk_bytes: int) -> int:
    """Returns the number of groups of chunks; each group is computed at once.

    Args:
      chunks: number of chunks.
      chunk_bytes: size of the widest tensor of one chunk.

    Returns:
      The smallest divisor of `chunks` for which the tensor of a group fits into
      `CACHE`; `chunks` if there is none.
    """
    fitting = (n for n in range(1, chunks) if chunks % n == 0)
    sizes = ((n, chunk_bytes * (chunks // n)) for n in fitting)
    return next((n for n, size in sizes if size <= CACHE), chunks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def map_chunks(
    function: Function,
    moment: Moment | None,
    groups: int,
    weights: Any,
    x: Any,
    scratch: Any,
) -> tuple[Any, Any]:
    """Applies a function to each group of chunks of arrays `[C, chunks, ...]`.

    A loop passes the scratch memory from group to group. Otherwise memory would be
    allocated, and filled with zeros, for each group.

    Args:
      function: maps weights, `[C, chunks / groups, ...]` of each array and the scratch
        to outputs `[C, chunks, ...]`, and the scratch of the next group.
      moment: a statistic of each output, computed while it is in the cache, or None.
        Its derivative only needs the output, which is not computed again for it.
      groups: number of groups, a divisor of the number of chunks.
      weights: a tree of arrays, the same for all groups.
      x: a tree of arrays `[C, chunks, ...]`.
      scratch: two trees of arrays, one for each pass. The function returns the first;
        its derivative with respect to the second is returned in the second.

    Returns:
      The outputs, `[C, chunks, ...]`, and their moments, `[groups, ...]`.
    """
    forward, back = scratch

    def take(y: jax.Array) -> Pair | None:
        return moment and moment.value(_accumulated(y))

    def step(i: jax.Array, carry: tuple) -> tuple:
        out, values, forward = carry
        y, forward = function(weights, _read(x, i, groups), (forward, back))
        value = jax.tree.map(take, y)
        values = jax.tree.map(lambda all_, one: all_.at[i].set(one), values, value)
        return _write(out, i, y), values, forward

    y, _ = jax.eval_shape(function, weights, _read(x, 0, groups), scratch)
    value = jax.eval_shape(lambda y: jax.tree.map(take, y), y)
    values = jax.tree.map(lambda v: jnp.zeros((groups, *v.shape), v.dtype), value)
    carry = (_buffers(y, groups, x), values, forward)
    return lax.fori_loop(0, groups, step, carry)[:2]


def _forward(
    function: Function, moment: Moment | None, groups: int, *inputs: Any
) -> tuple:
    results = map_chunks(function, moment, groups, *inputs)
    return results, (inputs, results)


def _backward(
    function: Function, moment: Moment | None, groups: int, known: tuple, g: tuple
) -> tuple:
    (weights, x, scratch), (y, values) = known

    def whole(g: jax.Array, y: jax.Array, value: Pair, g_value: Pair) -> jax.Array:
        assert moment is not None
        return g + moment.backward(_accumulated(y), value[0], g_value).astype(g.dtype)

    def step(i: jax.Array, carry: tuple) -> tuple:
        total, dx, (forward, back) = carry
        back = lax.stop_gradient(back)  # a buffer; in second derivatives too

        def run(weights: Any, x: Any, back: Any) -> tuple:
            return function(weights, x, (forward, back))

        arguments = weights, _read(x, i, groups), back
        _, pull, forward = jax.vjp(run, *arguments, has_aux=True)
        gradient = _read(g[0], i, groups)
        if moment is not None:
            value, g_value = jax.tree.map(lambda all_: all_[i], (values, g[1]))
            gradient = jax.tree.map(
                whole, gradient, _read(y, i, groups), value, g_value
            )
        d_weights, d_chunk, back = pull(gradient)
        total = jax.tree.map(jnp.add, total, d_weights)
        return total, _write(dx, i, d_chunk), (forward, back)

    zeros = jax.tree.map(jnp.zeros_like, weights)
    carry = (zeros, _buffers(_read(x, 0, groups), groups, g[0]), scratch)
    d_weights, dx, _ = lax.fori_loop(0, groups, step, carry)
    return d_weights, dx, None


map_chunks.defvjp(_forward, _backward)


def _accumulated(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _read(x: Any, i: jax.Array | int, groups: int) -> Any:
    def read(array: jax.Array) -> jax.Array:
        group = array.shape[1] // groups
        return lax.dynamic_slice_in_dim(array, i * group, group, 1)

    return jax.tree.map(read, x)


def _write(buffers: Any, i: jax.Array, chunks: Any) -> Any:
    def write(buffer: jax.Array, chunk: jax.Array) -> jax.Array:
        start = i * chunk.shape[1]
        return lax.dynamic_update_slice_in_dim(buffer, chunk, start, 1)

    return jax.tree.map(write, buffers, chunks)


def _buffers(chunks: Any, groups: int, source: Any) -> Any:
    """Creates arrays for all groups of chunks, to be filled.

    They are filled with a value of the input of the loop. XLA would merge equal
    constants into one, and copy it for each loop, on one thread.
    """
    value = jax.tree.leaves(source)[0].ravel()[0]

    def buffer(chunk: jax.ShapeDtypeStruct) -> jax.Array:
        channels, group, *rest = chunk.shape
        shape = (channels, groups * group, *rest)
        return jnp.full(shape, value.astype(chunk.dtype))

    return jax.tree.map(buffer, chunks)
