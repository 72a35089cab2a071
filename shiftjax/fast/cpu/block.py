"""The ShiftResNet block on planes: expand, ReLU, shift and project.

Three ideas make it fast. First, BatchNorm is folded into the expanding product, with
statistics from its narrow input, so the wide tensor is computed a chunk at a time and
never leaves the cache. Second, one pass computes ReLU and shift, and writes each group
of channels to its destination. Third, a strided shift is computed on the phases of the
image, row and column modulo the stride: each channel is expanded on the one phase that
it reads, and shifted there with stride 1.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shiftjax.fast.batchnorm import (
    Pair,
    Params,
    Stats,
    affine,
    fold,
    kernels_and_norms,
    merge,
    product_statistics,
    whole_batch,
)
from shiftjax.fast.cpu.chunks import Function, Moment, group_count, map_chunks
from shiftjax.fast.cpu.layout import Planes, rows
from shiftjax.fast.cpu.products import pointwise
from shiftjax.fast.cpu.shift import (
    Phase,
    ShiftOptions,
    plan_phases,
    relu_shift,
    with_firsts,
)
from shiftjax.fast.cpu.statistics import COVARIANCE, MOMENTS, covariance, per_plane
from shiftjax.lowerings import Size

Weights = dict[str, jax.Array]


class Middle(NamedTuple):
    """The computation between the narrow tensors of a block, for a group of chunks.

    Attributes:
      shift: the options of the shift.
      dtype: dtype of the operands of products, and of the result.
    """

    shift: ShiftOptions
    dtype: jnp.dtype

    def plan(self, weights: Weights, x: jax.Array) -> tuple[Phase, ...]:
        """Returns the phases of x `[C, chunks, H, W, n]`."""
        return plan_phases(len(weights["project"]), self.shift, x.shape[2:4])

    def prepare(self, weights: Weights, x: jax.Array) -> Weights:
        """Brings the wide channels into the order of the phases."""
        plan = self.plan(weights, x)
        if len(plan) == 1:
            return weights
        order = np.concatenate([phase.channels for phase in plan])
        return weights | {
            "expand": weights["expand"][:, order],
            "expand_bias": weights["expand_bias"][order],
            "project": weights["project"][order],
        }

    def out_size(self, x: jax.Array) -> Size:
        """Returns height and width of the result."""
        strides = self.shift.strides
        return -(-x.shape[2] // strides), -(-x.shape[3] // strides)

    def memory(self, weights: Weights, x: jax.Array) -> tuple[int, tuple]:
        """Returns the number of groups of chunks, and the memory of wide tensors.

        Returns:
          The number, and zeros for the shifted tensor and for its gradient.
        """
        channels, n = len(weights["project"]), x.shape[4]
        height, width = self.out_size(x)
        size = channels * height * width * n * self.dtype.itemsize
        groups = group_count(x.shape[1], size)
        group, n = self.cut(x.shape[1] // groups, n)
        forward = jnp.zeros((channels, group, height, width * n), self.dtype)
        back = [
            jnp.zeros((len(p.channels), group, p.size[0], p.size[1] * n), self.dtype)
            for p in self.plan(weights, x)
        ]
        return groups, (forward, back)

    def cut(self, group: int, n: int) -> tuple[int, int]:
        """Returns the numbers of chunks, and of their images, in the result of a group.

        A stride leaves few pixels of an image, so it merges a group into one chunk.
        """
        return (group, n) if self.shift.strides == 1 else (1, group * n)

    def kept(self, x: jax.Array, start: Size) -> jax.Array:
        """Returns every strides-th row and column of a group, in `dtype`."""
        strides, (row, column) = self.shift.strides, start
        x = x[:, :, row::strides, column::strides].astype(self.dtype)
        if strides == 1:
            return x
        channels, group, height, width, n = x.shape
        return x.transpose(0, 2, 3, 1, 4).reshape(channels, 1, height, width, group * n)

    def branches(
        self, weights: Weights, x: jax.Array, scratch: tuple
    ) -> tuple[Weights, jax.Array]:
        """Returns both branches of `[C, group, H, W, n]`, and the scratch memory."""
        plan, wide = self.plan(weights, x), []
        for first, phase in with_firsts(plan):
            channels = slice(first, first + len(phase.channels))
            own = self.kept(x, phase.start)
            y = pointwise(weights["expand"][:, channels], rows(own))
            y = (y + weights["expand_bias"][channels, None]).astype(self.dtype)
            wide.append(y.reshape(len(y), *own.shape[1:3], own.shape[3] * own.shape[4]))
        shifted: Any = relu_shift(plan, wide, *scratch)
        out = {"project": pointwise(weights["project"], rows(shifted))}
        if "shortcut" in weights:
            kept = rows(self.kept(x, (0, 0)))
            out["shortcut"] = pointwise(weights["shortcut"], kept)
        group, n = self.cut(x.shape[1], x.shape[4])
        shape = (-1, group, *self.out_size(x), n)
        return {name: y.reshape(shape) for name, y in out.items()}, shifted

    def finish(
        self, weights: Weights, x: dict[str, jax.Array], scratch: tuple
    ) -> tuple[jax.Array, tuple]:
        """Normalizes and adds both branches."""

        def norm(name: str) -> jax.Array:
            gain, offset = weights[name]
            return x[name] * per_plane(gain) + per_plane(offset)

        y = norm("project")
        skip = norm("shortcut") if "shortcut" in weights else x["shortcut"]
        y = (jax.nn.relu(y) + skip.reshape(y.shape)).astype(self.dtype)
        return y, scratch[0]

    def infer(
        self, weights: Weights, x: jax.Array, scratch: tuple
    ) -> tuple[jax.Array, jax.Array]:
        """Computes the whole block, with every BatchNorm folded."""
        out, shifted = self.branches(weights, x, scratch)
        y = out["project"] + per_plane(weights["project_bias"])
        skip = x
        if "shortcut" in out:
            skip = out["shortcut"] + per_plane(weights["shortcut_bias"])
        y = (jax.nn.relu(y) + skip.reshape(y.shape)).astype(self.dtype)
        return y, shifted


def input_statistics(x: Planes, axis_name: str | None) -> Pair:
    """Returns the mean and covariance over all replicas."""
    if x.statistics is not None:
        return merge(x.statistics, axis_name)
    dtype = jnp.promote_types(x.array.dtype, jnp.float32)
    return whole_batch(covariance, x.array.astype(dtype), axis_name)


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
def shift_block_planes(
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
    """Computes `shiftjax.layers.ShiftConv`, the block of a CIFAR ShiftResNet.

    Args:
      params: params of the units "expand" and "project", and of "shortcut" if there
        is one.
      stats: running statistics to use, or None to use those of the batch.
      x: the input.
      kernel_size: side of the window of displacements.
      strides: distance between the rows and columns kept, in pixels.
      dilation: distance between neighboring displacements, in pixels.
      dtype: dtype of the products, or None for the promoted dtype of `x` and kernels.
      epsilon: added to the variances.
      axis_name: the axis of the replicas, or None.

    Returns:
      The output, and the statistics of the batch (empty if `stats` is given).
    """
    kernels, norms = kernels_and_norms(params)
    promoted = jnp.promote_types(x.array.dtype, kernels["expand"].dtype)
    middle = Middle(
        ShiftOptions(kernel_size, dilation, strides), jnp.dtype(dtype or promoted)
    )
    batch: Stats = {}
    if stats is None:
        narrow = input_statistics(x, axis_name)
        batch["expand"] = {"norm": product_statistics(kernels["expand"], narrow)}
    for name, known in (batch if stats is None else stats).items():
        kernels[name], kernels[f"{name}_bias"] = fold(
            kernels[name], norms[name], known["norm"], epsilon
        )
    weights = middle.prepare(kernels, x.array)
    groups, scratch = middle.memory(weights, x.array)

    def run(function: Function, moment: Moment | None) -> Any:
        return map_chunks(function, moment, groups, weights, x.array, scratch)

    if stats is not None:
        return Planes(run(middle.infer, None)[0]), batch
    branches, moments = run(middle.branches, MOMENTS)
    affines = {}
    for name in branches:
        mean, var = merge(moments[name], axis_name)
        own = {"mean": mean, "var": var}
        batch[name] = {"norm": own}
        affines[name] = affine(norms[name], own, epsilon)
    inputs = {"shortcut": x.array} | branches
    y: Any = map_chunks(middle.finish, COVARIANCE, groups, affines, inputs, ((), ()))
    return Planes(*y), batch
