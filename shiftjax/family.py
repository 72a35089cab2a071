"""The family of the shift: other displacements, fixed or learned.

Fixed displacements are tables for `shiftjax.displace`, one row for each channel, or
functions that use one:

    four_connected    A. Brown et al. 2019, https://arxiv.org/abs/1910.09931
    axial             D. Lian et al. 2021 (AS-MLP), https://arxiv.org/abs/2107.08391
    temporal_shift    J. Lin et al. 2018 (TSM), https://arxiv.org/abs/1811.08383

Learned displacements belong to Flax modules with a parameter "offsets" `[channels, 2]`
of real `(dy, dx)`, in pixels:

    ActiveShift       Y. Jeon and J. Kim 2018, https://arxiv.org/abs/1806.07370
    SparseShift       W. Chen et al. 2019, https://arxiv.org/abs/1903.05285
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from shiftjax.errors import InputError
from shiftjax.shift import as_feature_map, displace, gathered, positive

OFFSETS = "offsets"
Initializer = Callable[..., jax.Array]
Move = Callable[..., jax.Array]


def four_connected(channels: int, *, dilation: int = 1) -> np.ndarray:
    """Returns a table of the center and its four neighbors, in contiguous groups.

    The remaining channels stay in place, like those of the center.

    Args:
      channels: the number of channels.
      dilation: distance to the neighbors, in pixels.

    Returns:
      int64 `[channels, 2]` of `(dy, dx)`.

    Raises:
      InputError: if an argument is not a positive integer.

    Example:
      >>> four_connected(11)[::2].tolist()
      [[-1, 0], [0, -1], [0, 0], [0, 1], [1, 0], [0, 0]]
    """
    steps = np.array([(-1, 0), (0, -1), (0, 0), (0, 1), (1, 0)])
    per_group, rest = divmod(positive("channels", channels), len(steps))
    table = np.concatenate([steps.repeat(per_group, 0), np.zeros((rest, 2), int)])
    return table * positive("dilation", dilation)


def axial(
    channels: int, kernel_size: int = 5, *, axis: int, dilation: int = 1
) -> np.ndarray:
    """Returns a table of displacements along one axis, as in AS-MLP.

    A group has `ceil(channels / kernel_size)` channels. The displacement of the first
    group is `kernel_size // 2` times the dilation, and decreases by one dilation from
    group to group.

    Args:
      channels: the number of channels.
      kernel_size: number of displacements, odd.
      axis: 0 for the height, 1 for the width.
      dilation: distance between neighboring displacements, in pixels.

    Returns:
      int64 `[channels, 2]` of `(dy, dx)`.

    Raises:
      InputError: if an argument is not a positive integer, the kernel size is even or
        the axis is neither 0 nor 1.

    Example:
      >>> axial(5, 3, axis=1).tolist()
      [[0, 1], [0, 1], [0, 0], [0, 0], [0, -1]]
    """
    if positive("kernel_size", kernel_size) % 2 == 0:
        raise InputError(f"kernel_size={kernel_size}: it must be odd")
    if axis not in (0, 1):
        raise InputError(f"axis={axis}: it must be 0 (height) or 1 (width)")
    group = np.arange(positive("channels", channels)) // -(-channels // kernel_size)
    table = np.zeros((channels, 2), int)
    table[:, axis] = (kernel_size // 2 - group) * positive("dilation", dilation)
    return table


def temporal_shift(
    x: ArrayLike, *, fraction: float = 0.125, causal: bool = False
) -> jax.Array:
    """Moves some channels of a video to the previous frame, and some to the next one.

    Args:
      x: `[..., time, height, width, channels]`.
      fraction: share of the channels that come from the next frame, and share of those
        that come from the previous one; 0 to 0.5.
      causal: if True, the first `fraction` of the channels comes from the previous
        frame and the others stay, so that a stream can be computed frame by frame.

    Returns:
      The same shape and dtype; frames before the first and after the last are zero.

    Raises:
      InputError: if the shape or the fraction does not fit.

    Example:
      >>> video = jnp.arange(1.0, 4.0).reshape(3, 1, 1, 1) * jnp.ones(8)
      >>> temporal_shift(video)[:, 0, 0, :3].T.tolist()
      [[2.0, 3.0, 0.0], [0.0, 1.0, 2.0], [1.0, 2.0, 3.0]]
    """
    x = jnp.asarray(x)
    if x.ndim < 4:
        raise InputError(
            f"x is {list(x.shape)}: it must be [..., time, height, width, channels]"
        )
    if not 0 <= fraction <= 0.5:
        raise InputError(f"fraction={fraction}: it must be in 0 to 0.5")
    channels = x.shape[-1]
    moved = int(round(channels * fraction, 6))  # 0.29 of 100 is 28.999...
    table = np.zeros((channels, 3), int)
    table[:moved, 0] = -1 if causal else 1
    if not causal:
        table[moved : 2 * moved, 0] = -1
    return displace(x, table)


def interpolate(x: ArrayLike, offsets: ArrayLike, *, stride: int = 1) -> jax.Array:
    """Moves each channel by a real displacement, with bilinear interpolation.

    `out[..., h, w, c]` is `x[..., stride * h + dy, stride * w + dx, c]` with
    `(dy, dx) = offsets[c]`, interpolated between the four pixels around that place,
    zero outside. It is differentiable in both arrays. Where a displacement is whole,
    its derivative is the one from the larger side. The computation is in float32 at
    least: 16-bit numbers are rounded once, and the gradient of a displacement, a sum
    over all pixels, stays precise. If explicit axes of a mesh split height or width,
    each device has the whole result.

    Args:
      x: floats `[..., height, width, channels]`.
      offsets: floats `[channels, 2]` of `(dy, dx)`, in pixels; they may be traced.
      stride: distance between the rows and columns kept, in pixels. The others are not
        computed.

    Returns:
      `[..., ceil(height / stride), ceil(width / stride), channels]`, the dtype of `x`.

    Raises:
      InputError: if a shape does not fit, x is not of floats, or the stride is not a
        positive integer.

    Example:
      >>> row = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1)
      >>> interpolate(row, [(0.0, 0.25)])[0, :, 0].tolist()
      [1.25, 2.25, 3.25, 3.0]
    """
    x, offsets = _floats(as_feature_map(x)), jnp.asarray(offsets)
    if offsets.shape != (x.shape[-1], 2):
        raise InputError(
            f"offsets are {list(offsets.shape)}; x has {x.shape[-1]} channels, so they "
            f"must be [{x.shape[-1]}, 2]"
        )
    stride = positive("stride", stride)
    wide = np.promote_types(x.dtype, np.float32)
    dy, dx = offsets.astype(wide).T
    rows = _along(x.astype(wide), dy, -3, stride)
    return _along(rows, dx, -2, stride).astype(x.dtype)


def _floats(x: jax.Array) -> jax.Array:
    """Returns an array of floats as it is, and raises for another one."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"x is {x.dtype}: only floats can be interpolated")
    return x


def _of_channels(values: jax.Array, ndim: int) -> jax.Array:
    """Returns `[channels]` with leading axes of 1, for an array of more axes."""
    return values.reshape((1,) * (ndim - 1) + values.shape)


def _along(x: jax.Array, offsets: jax.Array, axis: int, stride: int) -> jax.Array:
    """Moves channels along one axis, with linear interpolation."""
    whole = lax.stop_gradient(jnp.floor(offsets))
    near, far = (_gather(x, whole + step, axis, stride) for step in (0, 1))
    share, rise = _of_channels(offsets - whole, x.ndim), far - near
    # At a whole displacement `far` has no share, but 0 times infinity is not 0.
    rise = jnp.where((share == 0) & ~jnp.isfinite(rise), 0, rise)
    return near + share * rise


def _move(x: jax.Array, offsets: jax.Array, stride: int) -> jax.Array:
    """Moves channels by the nearest whole numbers of pixels."""
    dy, dx = jnp.round(offsets).T
    moved = _gather(_gather(_floats(x), dy, -3, stride), dx, -2, stride)
    total = _of_channels(dy + dx, x.ndim).astype(x.dtype)
    return jnp.where(jnp.isnan(total), total, moved)


# A straight-through estimator: it moves by whole numbers, and its derivative is the one
# at the real numbers.
_move_through = jax.custom_jvp(_move, nondiff_argnums=(2,))


@_move_through.defjvp
def _slope(
    stride: int,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Returns the value and the tangent: `interpolate` gives that of the offsets."""
    x, offsets = primals
    moved = functools.partial(interpolate, x, stride=stride)
    _, slope = jax.jvp(moved, (offsets,), tangents[1:])
    value = _move_through(x, offsets, stride)
    return value, _move(tangents[0], offsets, stride) + slope


def _gather(x: jax.Array, steps: jax.Array, axis: int, stride: int) -> jax.Array:
    """Moves channels by whole numbers `[channels]` of pixels along one axis."""
    x, length = gathered(x, 2), x.shape[axis]
    # All displacements beyond the image are equal, and the bound keeps them in int32.
    steps = jnp.clip(steps.astype(jnp.float32), -length, length).astype(jnp.int32)
    index = jnp.arange(0, length, stride, jnp.int32)[:, None] + steps[None]
    # A negative index would count from the end; `length` is outside.
    index = jnp.where(index < 0, length, index)
    index = index if axis == -2 else index[:, None]
    index = index.reshape((1,) * (x.ndim - index.ndim) + index.shape)
    return jnp.take_along_axis(x, index, axis, mode="fill", fill_value=0)


def uniform_offsets(
    key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> jax.Array:
    """Draws displacements uniformly between -1 and 1 pixel, as for Active Shift.

    Args:
      key: random key.
      shape: shape of the result.
      dtype: dtype of the result.

    Returns:
      Displacements, in pixels.
    """
    return jax.random.uniform(key, shape, dtype, -1, 1)


class ActiveShift(nn.Module):
    """A shift with learned real displacements, by bilinear interpolation.

    Its authors divide the gradient of an offset by its length, and give it a learning
    rate of its own. The optimizer can do so (`optax.partition` by the name "offsets").
    Weight decay would pull the displacements to the center.

    Attributes:
      offsets_init: initializer of the displacements, in pixels.
      param_dtype: dtype of the displacements.
      strides: distance between the rows and columns kept, in pixels.

    Example:
      >>> x = jnp.ones((1, 8, 8, 16))
      >>> variables = ActiveShift().init(jax.random.key(0), x)
      >>> jax.tree.map(jnp.shape, variables["params"])
      {'offsets': (16, 2)}
      >>> ActiveShift().apply(variables, x).shape
      (1, 8, 8, 16)
    """

    offsets_init: Initializer = uniform_offsets
    param_dtype: Any = jnp.float32
    strides: int = 1

    moved: ClassVar[Move] = staticmethod(interpolate)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Moves the channels of a feature map.

        Args:
          x: floats `[..., height, width, channels]`.

        Returns:
          `[..., ceil(height / strides), ceil(width / strides), channels]`, the dtype of
          `x`.

        Raises:
          InputError: if `x` has fewer than three axes or cannot be interpolated, or
            the strides are not a positive integer.
        """
        x, strides = as_feature_map(x), positive("strides", self.strides)
        shape = (x.shape[-1], 2)
        offsets = self.param(OFFSETS, self.offsets_init, shape, self.param_dtype)
        return self.moved(x, offsets, stride=strides)


class SparseShift(ActiveShift):
    """A shift with learned displacements that are rounded to whole numbers.

    The output and the gradient of the input use the rounded displacements. The gradient
    of the displacements uses the real ones, as in `ActiveShift`. After training,
    `shiftjax.displace` computes the same shift faster, with the table
    `np.round(offsets).astype(int)`. With `offset_penalty` in the loss, channels whose
    displacement does not pay stay in place.

    Attributes:
      offsets_init: initializer of the displacements, in pixels.
      param_dtype: dtype of the displacements.
      strides: distance between the rows and columns kept, in pixels.

    Example:
      >>> x = jnp.arange(4.0).reshape(1, 4, 1)
      >>> y = SparseShift().apply({"params": {"offsets": jnp.array([[0.2, 0.8]])}}, x)
      >>> y[0, :, 0].tolist()
      [1.0, 2.0, 3.0, 0.0]
    """

    moved: ClassVar[Move] = staticmethod(_move_through)


def offset_penalty(params: Any) -> jax.Array:
    """Sums the lengths of all learned displacements: the L1 penalty of Sparse Shift.

    Args:
      params: a tree of params; the leaves with the name "offsets" count, also in boxes
        with names of axes and in a state of NNX.

    Returns:
      A scalar, to be added to the loss with a small weight; 0 without such leaves.

    Example:
      >>> offset_penalty({"shift": {"offsets": jnp.array([[0.5, -2.0]])}}).item()
      2.5
    """
    found = [
        jnp.abs(leaf).sum(dtype=np.promote_types(leaf.dtype, np.float32))
        for path, leaf in jax.tree.leaves_with_path(params)
        if _name(path) == OFFSETS
    ]
    return jnp.asarray(sum(found, 0.0))


def _name(path: tuple[Any, ...]) -> Any:
    """Returns the name of a leaf, without the box that Flax may have around it."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return getattr(path[-1], "key", getattr(path[-1], "name", None)) if path else None
