"""The shift block with a kernel that never stores the wide tensor.

`fused_shift_project` computes expand, ReLU, shift and project, the part of the block
between its two norms, as a differentiable function. A program compiled for the kernels'
platform uses the kernels, and any other program `definition`. `fused_shift_block`
computes the whole block. BatchNorm after the expanding product is folded into it, with
statistics of its narrow input. These are known before the wide tensor, which therefore
need not exist. `shiftjax.fast.tpu` and `shiftjax.fast.gpu` provide the kernels and the
statistics.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from shiftjax.errors import InputError
from shiftjax.fast.batchnorm import (
    Norm,
    Pair,
    Params,
    Statistic,
    Stats,
    affine,
    fold,
    kernels_and_norms,
    product_statistics,
    whole_batch,
)
from shiftjax.lowerings import Size, Table
from shiftjax.shift import displace_p, displacements

PIXELS = (0, 1, 2)  # the axes of an NHWC array that statistics reduce
Middle = Callable[..., jax.Array]
Tree = TypeVar("Tree")
Arrays = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # x, expand, bias, project


class Kernel(Protocol):
    """A platform's kernels for expand, ReLU, shift and project; hashable.

    Attributes:
      platform: the platform of the kernels, a name of `jax.lax.platform_dependent`.
      interpret: if True, the kernels are interpreted, on any platform.
    """

    @property
    def platform(self) -> str:
        """The platform of the kernels."""
        ...

    @property
    def interpret(self) -> bool:
        """True if the kernels are interpreted."""
        ...

    def forward(self, table: Table, stride: int, *inputs: jax.Array) -> jax.Array:
        """Computes the output from x, expand, bias and project."""
        ...

    def backward(
        self, table: Table, stride: int, g: jax.Array, *inputs: jax.Array
    ) -> Arrays:
        """Computes the gradients of x, expand, bias and project."""
        ...


def definition(
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    table: Table,
    stride: int = 1,
    size: Size | None = None,
) -> jax.Array:
    """Computes `displace(relu(x @ expand + bias), table, stride=stride) @ project`.

    Args:
      x: `[batch, height, width, channels]`, in the dtype of the operands of products.
      expand: `[channels, wide]`.
      bias: `[wide]`.
      project: `[wide, features]`.
      table: a row (dy, dx) for each wide channel.
      stride: distance between the rows and columns kept, in pixels.
      size: height and width of the output; None for all rows and columns kept.

    Returns:
      `[batch, *size, features]`, float32 or wider.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    dot = functools.partial(jnp.dot, preferred_element_type=dtype)
    size = size or (-(-x.shape[1] // stride), -(-x.shape[2] // stride))
    wide = dot(x, expand.astype(x.dtype)) + bias[None, None, None]
    wide = jax.nn.relu(wide).astype(x.dtype)
    wide = displace_p.bind(wide, table=table, stride=stride, size=size, lowering=None)
    return dot(wide, project.astype(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def fused_shift_project(
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    kernel: Kernel,
    table: Table,
    stride: int,
) -> jax.Array:
    """Expands, applies ReLU, shifts and projects, like `definition`.

    Args:
      x: the input.
      expand: the weights of the first product.
      bias: the bias, added before ReLU.
      project: the weights of the second product.
      kernel: the kernels for their platform; on others `definition` computes the
        result.
      table: a row (dy, dx) for each wide channel.
      stride: distance between the rows and columns kept, in pixels.

    Returns:
      `[batch, height, width, features]`, in the dtype of `x`.
    """

    def other(*inputs: Any) -> jax.Array:
        return definition(*inputs, table=table, stride=stride).astype(x.dtype)

    own = functools.partial(kernel.forward, table, stride)
    return _on_platform(kernel, own, other, x, expand, bias, project)


def _forward(*arguments: Any) -> tuple[jax.Array, Arrays]:
    return fused_shift_project(*arguments), arguments[:4]


def _backward(
    kernel: Kernel, table: Table, stride: int, inputs: Arrays, g: jax.Array
) -> Arrays:
    def own(g: jax.Array, *inputs: jax.Array) -> Arrays:
        gradients = kernel.backward(table, stride, g, *inputs)
        pairs = zip(gradients, inputs, strict=True)
        dx, d_expand, d_bias, d_project = (d.astype(a.dtype) for d, a in pairs)
        return dx, d_expand, d_bias, d_project

    def other(g: jax.Array, *inputs: jax.Array) -> Arrays:
        function = functools.partial(definition, table=table, stride=stride)
        y, pull = jax.vjp(function, *inputs)
        return pull(g.astype(y.dtype))

    return _on_platform(kernel, own, other, g, *inputs)


fused_shift_project.defvjp(_forward, _backward)


def _on_platform(
    kernel: Kernel,
    own: Callable[..., Tree],
    other: Callable[..., Tree],
    *arguments: jax.Array,
) -> Tree:
    """Calls `own` if the program is compiled for the platform of the kernel.

    The choice is made at compilation: a program can be traced on another machine.
    """
    if kernel.interpret:
        return own(*arguments)
    return lax.platform_dependent(*arguments, **{kernel.platform: own}, default=other)


def check_shapes(
    x: jax.Array, expand: jax.Array, bias: jax.Array, project: jax.Array
) -> None:
    """Checks that the shapes of the arrays fit each other.

    Raises:
      InputError: if they do not.
    """
    shapes = [a.shape for a in (x, expand, bias, project)]
    wide, features = expand.shape[-1], project.shape[-1]
    if shapes[1:] != [(x.shape[-1], wide), (wide,), (wide, features)]:
        raise InputError(
            f"x, expand, bias and project have shapes {', '.join(map(str, shapes))}; "
            f"they need [batch, height, width, C], [C, E], [E] and [E, features]"
        )


def reachable_moves(
    channels: int, kernel_size: int, dilation: int, size: Sequence[int]
) -> Table:
    """Returns `shiftjax.displacements` as a key of JAX's caches.

    Displacements are clipped to the size of the image: all beyond it read zeros.
    """
    table = displacements(channels, kernel_size, dilation=dilation)
    return tuple(map(tuple, np.clip(table, np.negative(size), size).tolist()))


def product(a: jax.Array, b: jax.Array, a_axis: int = 1, b_axis: int = 0) -> jax.Array:
    """Multiplies two matrices and adds in float32, within a kernel."""
    axes = (((a_axis,), (b_axis,)), ((), ()))
    return lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns `[C, D]`, the products of a and b `[..., C or D]` over all pixels."""
    return lax.dot_general(
        a,
        b,
        ((PIXELS, PIXELS), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(a.dtype, jnp.float32),
    )


def per_channel(v: jax.Array) -> jax.Array:
    """Reshapes `[C]` to `[1, 1, 1, C]`, to broadcast with an NHWC array."""
    return v[None, None, None]


def mean_of(x: jax.Array) -> jax.Array:
    """Returns the mean `[C]` of `[batch, height, width, C]`, added in float32."""
    return x.mean(PIXELS, dtype=jnp.promote_types(x.dtype, jnp.float32))


def moments_backward(x: jax.Array, mean: jax.Array, g: Pair) -> jax.Array:
    """Computes the gradient of a mean and a variance."""
    slope = 2 * g[1]
    dx = (x - per_channel(mean)) * per_channel(slope) + per_channel(g[0])
    return (dx * (x.shape[-1] / x.size)).astype(x.dtype)


def two_passes(x: jax.Array) -> Pair:
    """Returns mean `[C]` and covariance `[C, C]` of x `[batch, height, width, C]`."""
    mean = mean_of(x)
    centered = (x - per_channel(mean)).astype(x.dtype)
    return mean, inner(centered, centered) * (x.shape[-1] / x.size)


def _batch_norm_nhwc(
    moments: Statistic,
    norm: Norm,
    stats: Norm | None,
    x: jax.Array,
    epsilon: float,
    axis_name: str | None,
) -> tuple[jax.Array, Norm]:
    """Normalizes an NHWC array, with its own statistics if none are given."""
    if stats is None:
        mean, var = whole_batch(moments, x, axis_name)
        stats = {"mean": mean, "var": var}
    gain, offset = map(per_channel, affine(norm, stats, epsilon))
    return (x * gain + offset).astype(x.dtype), stats


@functools.partial(
    jax.jit,
    static_argnames=(
        "kernel_size",
        "strides",
        "dilation",
        "dtype",
        "epsilon",
        "axis_name",
        "middle",
        "moments",
        "covariance",
    ),
)
def fused_shift_block(
    params: Params,
    stats: Stats | None,
    x: jax.Array,
    *,
    kernel_size: int,
    strides: int,
    dilation: int,
    dtype: jnp.dtype | None,
    epsilon: float,
    axis_name: str | None,
    middle: Middle,
    moments: Statistic,
    covariance: Statistic,
) -> tuple[jax.Array, Stats]:
    """Computes `shiftjax.layers.ShiftConv`, the block of a CIFAR ShiftResNet.

    Args:
      params: params of the units "expand" and "project", and of "shortcut" if there
        is one.
      stats: running statistics to use, or None to use those of the batch.
      x: `[batch, height, width, channels]`, of a shape and dtype that `middle`
        supports.
      kernel_size: side of the window of displacements.
      strides: distance between the rows and columns kept, in pixels.
      dilation: distance between neighboring displacements, in pixels.
      dtype: dtype of the products, or None for the promoted dtype of `x` and kernels.
      epsilon: added to the variances.
      axis_name: the axis of the replicas, or None.
      middle: maps x, the expanding kernel, its bias and the projecting kernel to the
        output of the latter, with options `kernel_size`, `strides` and `dilation`.
      moments: computes mean and variance of an NHWC array.
      covariance: computes mean and covariance of an NHWC array.

    Returns:
      `[batch, ceil(height / strides), ceil(width / strides), features]`, and the
      statistics of the batch (empty if `stats` is given).
    """
    kernels, norms = kernels_and_norms(params)
    used: Stats = {name: stats and stats[name]["norm"] for name in params}
    inputs = x.astype(dtype or jnp.promote_types(x.dtype, kernels["expand"].dtype))

    def norm(name: str, y: jax.Array) -> jax.Array:
        y, used[name] = _batch_norm_nhwc(
            moments, norms[name], used[name], y, epsilon, axis_name
        )
        return y

    if stats is None:
        used["expand"] = product_statistics(
            kernels["expand"], whole_batch(covariance, inputs, axis_name)
        )
    expand, bias = fold(kernels["expand"], norms["expand"], used["expand"], epsilon)
    y = middle(
        inputs,
        expand,
        bias,
        kernels["project"],
        kernel_size=kernel_size,
        strides=strides,
        dilation=dilation,
    )
    y, skip = norm("project", y), x
    if "shortcut" in params:
        kept = inputs[:, ::strides, ::strides]
        kernel = kernels["shortcut"].astype(inputs.dtype)
        skip = norm("shortcut", jnp.dot(kept, kernel))
    batch = {} if stats is not None else {name: {"norm": used[name]} for name in used}
    return jax.nn.relu(y) + skip.astype(y.dtype), batch
