"""The ShiftResNet block on planes: expand, ReLU, shift and project.

Three ideas make it fast. The first BatchNorm is folded into the expanding product, with
statistics from its narrow input, so no pass over the wide tensor is its own. ReLU and
shift are one pass with one residual. A strided shift is taken on the phases of the
image, row and column modulo the stride: each channel is expanded on the one phase that
it reads, and shifted there with stride 1.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from shiftjax.batchnorm import Params, Stats, affine, fold
from shiftjax.planes.layout import Planes, rows
from shiftjax.planes.products import pointwise
from shiftjax.planes.statistics import batch_norm, covariance, per_channel
from shiftjax.shift import Size, Table, displacements

Weights = dict[str, jax.Array]
Chunks = dict[str, jax.Array]
Tree = TypeVar("Tree")


@functools.lru_cache
def phases(
    channels: int, kernel_size: int, dilation: int, stride: int
) -> tuple[tuple[Size, np.ndarray, Table], ...]:
    """Groups channels by the phase of the image that they read.

    A strided shift reads row `stride * h + dy`, which is row `h + dy // stride` of the
    phase `dy % stride`.

    Returns:
      For each phase (row, column): its channels, and their displacements within it.
    """
    moves = displacements(channels, kernel_size, dilation=dilation)
    phase, offsets = moves % stride, moves // stride
    plan = []
    for row, column in np.unique(phase, axis=0).tolist():
        members = np.flatnonzero((phase == (row, column)).all(1))
        table = tuple(map(tuple, offsets[members].tolist()))
        plan.append(((row, column), members, table))
    return tuple(plan)


def displace(x: jax.Array, table: Table, size: Size) -> jax.Array:
    """`shiftjax.shift.displace` of x `[C, H, W, n]` to `[C, *size, n]`.

    One slice per channel of a zero-padded copy, which XLA turns into copies of rows.
    """
    channels, height, width, n = x.shape
    offsets = np.asarray(table)
    low = np.maximum(-offsets.min(0), 0)
    high = np.maximum(offsets.max(0) + size - (height, width), 0)
    padded = jnp.pad(x, [(0, 0), *zip(low, high, strict=True), (0, 0)])
    padded = padded.reshape(channels, padded.shape[1], -1)  # W and n are one axis here
    starts = jnp.asarray((offsets + low) * (1, n))

    def window(plane: jax.Array, start: jax.Array) -> jax.Array:
        return lax.dynamic_slice(plane, start, (size[0], size[1] * n))

    return jax.vmap(window)(padded, starts).reshape(channels, *size, n)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def relu_shift(x: jax.Array, bias: jax.Array, table: Table, size: Size) -> jax.Array:
    """Bias, ReLU and `displace`; the sign of the result masks the gradient."""
    biased = x + bias.astype(x.dtype)[:, None, None, None]
    return displace(jnp.maximum(biased, 0), table, size)


def _relu_shift_forward(
    x: jax.Array, bias: jax.Array, table: Table, size: Size
) -> tuple:
    out = relu_shift(x, bias, table, size)
    return out, (out, bias, x.shape[1:3])


def _relu_shift_backward(
    table: Table, size: Size, residuals: tuple, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    del size
    out, bias, input_size = residuals
    back = tuple((-dy, -dx) for dy, dx in table)
    dx = displace(jnp.where(out > 0, g, 0), back, input_size)
    return dx, rows(dx).sum(1, dtype=bias.dtype)


relu_shift.defvjp(_relu_shift_forward, _relu_shift_backward)


# The wide tensors exist for one chunk at a time.


def all_chunks(
    function: Callable[[Weights, jax.Array], Chunks], weights: Weights, x: jax.Array
) -> Chunks:
    """Applies `function(weights, chunk)` to x `[C, chunks, H, W, n]`, chunk by chunk.

    A single chunk is kept for the backward pass; several are computed again in it.
    """
    if x.shape[1] > 1:
        return map_chunks(function, weights, x)
    return jax.tree.map(lambda y: y[:, None], function(weights, x[:, 0]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def map_chunks(
    function: Callable[[Weights, jax.Array], Chunks], weights: Weights, x: jax.Array
) -> Chunks:
    """Applies `function(weights, chunk)` to each chunk of x `[C, chunks, H, W, n]`.

    The backward pass runs the function again, so that its wide tensors exist for one
    chunk at a time.
    """

    def step(i: jax.Array, out: Chunks) -> Chunks:
        return _write(out, i, function(weights, _read(x, i)))

    shapes = jax.eval_shape(function, weights, _read(x, 0))
    return lax.fori_loop(0, x.shape[1], step, _scratch(shapes, x))


def _map_chunks_forward(function: Callable, weights: Weights, x: jax.Array) -> tuple:
    return map_chunks(function, weights, x), (weights, x)


def _map_chunks_backward(function: Callable, residuals: tuple, g: Chunks) -> tuple:
    weights, x = residuals

    def step(i: jax.Array, carry: tuple) -> tuple:
        total, dx = carry
        backward = jax.vjp(function, weights, _read(x, i))[1]
        d_weights, d_chunk = backward({name: _read(g[name], i) for name in g})
        return jax.tree.map(jnp.add, total, d_weights), _write(dx, i, d_chunk)

    zeros = jax.tree.map(jnp.zeros_like, weights)
    return lax.fori_loop(0, x.shape[1], step, (zeros, _scratch(_read(x, 0), x)))


map_chunks.defvjp(_map_chunks_forward, _map_chunks_backward)


def _read(x: jax.Array, i: jax.Array | int) -> jax.Array:
    return lax.dynamic_index_in_dim(x, i, 1, keepdims=False)


def _write(buffers: Tree, i: jax.Array, chunks: Tree) -> Tree:
    def update(buffer: jax.Array, chunk: jax.Array) -> jax.Array:
        return lax.dynamic_update_index_in_dim(buffer, chunk, i, 1)

    return jax.tree.map(update, buffers, chunks)


def _scratch(shapes: Tree, x: jax.Array) -> Tree:
    """Buffers for as many chunks as x has, to be filled.

    They hold a value that is known at run time only: of equal constants XLA makes one,
    which it then copies for each loop, on one thread.
    """

    def buffer(chunk: jax.ShapeDtypeStruct) -> jax.Array:
        shape = (chunk.shape[0], x.shape[1], *chunk.shape[1:])
        return jnp.full(shape, x.ravel()[0].astype(chunk.dtype))

    return jax.tree.map(buffer, shapes)


def _branches(
    plan: tuple[tuple[Size, np.ndarray, Table], ...],
    stride: int,
    dtype: jnp.dtype,
    weights: Weights,
    x: jax.Array,
) -> Chunks:
    """One chunk `[C, H, W, n]` to "project" `[out, h, w, n]`, and "shortcut" if any."""
    size = (-(-x.shape[1] // stride), -(-x.shape[2] // stride))
    shifted, start = [], 0
    for (row, column), members, table in plan:
        group = slice(start, start := start + len(members))
        phase = x[:, row::stride, column::stride].astype(dtype)
        wide = pointwise(weights["expand"][:, group], rows(phase))
        wide = wide.astype(dtype).reshape(len(members), *phase.shape[1:])
        bias = weights["expand_bias"][group]
        shifted.append(relu_shift(wide, bias, table, size))
    out = {"project": pointwise(weights["project"], rows(jnp.concatenate(shifted)))}
    if "shortcut" in weights:
        kept = rows(x[:, ::stride, ::stride].astype(dtype))
        out["shortcut"] = pointwise(weights["shortcut"], kept)
    return jax.tree.map(lambda y: y.reshape(-1, *size, x.shape[-1]), out)


def _weights(
    params: Params,
    stats: Stats | None,
    x: Planes,
    epsilon: float,
    axis_name: str | None,
) -> tuple[Weights, Stats]:
    """The kernels of `_branches`, with every BatchNorm folded that can be.

    Of the running statistics' BatchNorms, all but the offset of those that come last.
    """
    kernels = {name: unit["conv"]["kernel"] for name, unit in params.items()}
    norms = {name: unit["norm"] for name, unit in params.items()}
    if stats is None:
        dtype = jnp.promote_types(x.parts[0].dtype, jnp.float32)
        parts = [part.astype(dtype) for part in x.parts]
        kernels["expand"], bias, batch = fold(
            kernels["expand"], norms["expand"], parts, epsilon, axis_name, covariance
        )
        return kernels | {"expand_bias": bias}, {"expand": {"norm": batch}}
    affines = {
        name: affine(norms[name], stats[name]["norm"], epsilon) for name in norms
    }
    weights = {name: kernel * affines[name][0] for name, kernel in kernels.items()}
    return weights | {"expand_bias": affines["expand"][1]}, {}


@functools.partial(
    jax.jit,
    static_argnames=(
        "kernel_size",
        "strides",
        "dilation",
        "dtype",
        "epsilon",
        "axis_name",
    ),
)
def shift_block(
    params: Params,
    stats: Stats | None,
    x: Planes,
    *,
    kernel_size: int,
    strides: int,
    dilation: int,
    dtype: jnp.dtype | None,
    epsilon: float,
    axis_name: str | None,
) -> tuple[Planes, Stats]:
    """`shiftjax.layers.ShiftConv`: the block of a CIFAR ShiftResNet.

    Args:
      params: of the units "expand", "project" and, where the shape changes, "shortcut".
      stats: running statistics to use, or None to use those of the batch.
      x: the input.
      kernel_size: side of the window of displacements.
      strides: distance between the rows and columns kept, in pixels.
      dilation: distance between neighbouring displacements, in pixels.
      dtype: what to multiply in, or None for the promoted dtype of `x` and kernels.
      epsilon: added to the variances.
      axis_name: the axis of the replicas, or None.

    Returns:
      The output, and the batch's statistics (none where `stats` is given).
    """
    weights, batch = _weights(params, stats, x, epsilon, axis_name)
    plan = phases(len(weights["project"]), kernel_size, dilation, strides)
    order = np.concatenate([members for _, members, _ in plan])
    weights |= {
        "expand": weights["expand"][:, order],
        "expand_bias": weights["expand_bias"][order],
        "project": weights["project"][order],
    }
    promoted = jnp.promote_types(x.parts[0].dtype, weights["project"].dtype)
    dtype = jnp.dtype(dtype or promoted)
    function = functools.partial(_branches, plan, strides, dtype)
    outs = [all_chunks(function, weights, part) for part in x.parts]

    def norm(name: str) -> Sequence[jax.Array]:
        """BatchNorm of a branch, or what of it is not in the kernel."""
        parts, own = [out[name] for out in outs], params[name]["norm"]
        if stats is None:
            parts, batch_stats = batch_norm(own, parts, epsilon, axis_name)
            batch[name] = {"norm": batch_stats}
            return parts
        offset = per_channel(affine(own, stats[name]["norm"], epsilon)[1])
        return [part + offset for part in parts]

    y = norm("project")
    skip = norm("shortcut") if "shortcut" in weights else x.parts
    pairs = zip(y, skip, strict=True)
    return Planes(tuple(jax.nn.relu(a) + b for a, b in pairs)), batch
