"""The shift operation, which moves every channel by a whole number of pixels.

`out[..., y, x, c] = in[..., y + dy[c], x + dx[c], c]`, zero outside the image. The
operation has no parameters and no arithmetic. A shift between two pointwise
convolutions replaces a spatial convolution.

`shift` is the paper's operation. It is built on `displace`, which takes any table of
displacements, one row `(dy, dx)` per channel. `shiftjax.family` has other tables.
`displace` is a linear JAX primitive, whose transpose is the opposite displacement. XLA
compiles it from one of the lowerings in `shiftjax.lowerings`.

Source: B. Wu et al., "Shift: A Zero FLOP, Zero Parameter Alternative to Spatial
Convolutions", CVPR 2018, https://arxiv.org/abs/1711.08141, section 3.1.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from shiftjax.errors import InputError, unknown_name
from shiftjax.lowerings import DEFAULT_LOWERING, LOWERINGS, Size, Table

# What is read outside of the image, by the name that `jnp.pad` has for it.
BORDERS = {"zeros": "constant", "edge": "edge", "wrap": "wrap", "reflect": "reflect"}
AXES = {1: "length", 2: "height, width", 3: "depth, height, width"}


def displacements(
    channels: int, kernel_size: int = 3, *, dilation: int = 1
) -> np.ndarray:
    """Returns the displacement of each channel, in the paper's contiguous groups.

    The `kernel_size**2` displacements of a window are taken row by row. Each one moves
    a group of `channels // kernel_size**2` channels, and the remaining channels stay in
    place: with fewer channels than displacements, no channel moves. A window of even
    size reaches one pixel further up and left than down and right.

    Args:
      channels: the number of channels.
      kernel_size: side K of the window, at least 1.
      dilation: distance between neighboring displacements, in pixels.

    Returns:
      int64 `[channels, 2]` of `(dy, dx)`, in pixels of the input.

    Raises:
      InputError: if an argument is not a positive integer.

    Example:
      >>> displacements(10, 3)[[0, 1, 4, 8, 9]].tolist()
      [[-1, -1], [-1, 0], [0, 0], [1, 1], [0, 0]]
    """
    channels = positive("channels", channels)
    kernel_size = positive("kernel_size", kernel_size)
    dilation = positive("dilation", dilation)
    per_group = channels // kernel_size**2
    group = np.arange(channels) // max(per_group, 1)
    offsets = np.stack(np.divmod(group, kernel_size), 1) - kernel_size // 2
    moved = np.arange(channels) < per_group * kernel_size**2
    return np.where(moved[:, None], offsets * dilation, 0)


def shift(
    x: ArrayLike,
    kernel_size: int = 3,
    *,
    dilation: int = 1,
    stride: int = 1,
    border: str = "zeros",
) -> jax.Array:
    """Shifts each group of channels by its own displacement.

    For one row of an image, `K = 3` and three channels (the borders are zero):

        channel 0 (dx = -1)    1234 -> 0123
        channel 1 (dx =  0)    1234 -> 1234
        channel 2 (dx = +1)    1234 -> 2340

    A `stride` keeps every stride-th row and column of the shift at full resolution,
    from the first one on. The others are not computed.

    Args:
      x: `[..., height, width, channels]`, any leading axes, any dtype.
      kernel_size: side K of the window of displacements, at least 1.
      dilation: distance between neighboring displacements, in pixels.
      stride: distance between the rows and columns kept, in pixels.
      border: what is read outside of the image; see `displace`.

    Returns:
      `[..., ceil(height / stride), ceil(width / stride), channels]`, the dtype of `x`.

    Raises:
      InputError: if `x` has fewer than three axes or an option is not a positive
        integer.
      UnknownNameError: if there is no such border.

    Example:
      >>> x = jnp.arange(1, 5).reshape(1, 4, 1) * jnp.ones(9, int)
      >>> shift(x)[0, :, [3, 4, 5]].tolist()
      [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 0]]
    """
    kernel_size = positive("kernel_size", kernel_size)
    dilation, stride = positive("dilation", dilation), positive("stride", stride)
    _check_name("border", border, BORDERS)
    return _shift(as_feature_map(x), kernel_size, dilation, stride, border)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4), inline=True)
def _shift(
    x: jax.Array, kernel_size: int, dilation: int, stride: int, border: str
) -> jax.Array:
    table = displacements(x.shape[-1], kernel_size, dilation=dilation)
    return displace(x, table, stride=stride, border=border)


def displace(
    x: ArrayLike,
    table: ArrayLike,
    *,
    stride: int = 1,
    border: str = "zeros",
    lowering: str | None = None,
) -> jax.Array:
    """Moves each channel by its row of a table; every shift is built on it.

    `out[..., h, w, c] = x[..., stride * h + dy, stride * w + dx, c]` with
    `(dy, dx) = table[c]`. It is differentiable to any order, in forward and reverse
    mode, because its transpose is the opposite displacement. A table of one column
    moves along the last axis before the channels, and one of three columns along depth,
    height and width, in two steps.

    Args:
      x: `[..., height, width, channels]`, any leading axes, any dtype; for a table of
        one column `[..., length, channels]`, and for one of three `[..., depth, height,
        width, channels]`.
      table: integers `[channels, 2]`, or of 1 or 3 columns, known when the program is
        traced.
      stride: distance between the rows and columns kept, in pixels.
      border: what is read outside of the image: "zeros", the pixel at the "edge", the
        pixel at the other side ("wrap"), or the mirror image, without the edge twice
        ("reflect"). All but zeros copy the image with a margin.
      lowering: one of `LOWERINGS`, or None for the platform's default.

    Returns:
      `[..., ceil(height / stride), ceil(width / stride), channels]`, the dtype of `x`.

    Raises:
      InputError: if a shape or the dtype of the table does not fit, it is traced or
        has a displacement of 2**31 or more, or the stride is not a positive integer.
      UnknownNameError: if there is no such border or lowering.

    Example:
      >>> rows = jnp.arange(6.0).reshape(3, 2, 1)  # an image with one channel
      >>> displace(rows, [(1, 0)])[:, :, 0].tolist()  # one row up
      [[2.0, 3.0], [4.0, 5.0], [0.0, 0.0]]
      >>> displace(rows, [(1, 0)], border="wrap")[:, :, 0].tolist()
      [[2.0, 3.0], [4.0, 5.0], [0.0, 1.0]]
    """
    moves = _as_table(table)
    axes = moves.shape[1]
    x, stride = as_feature_map(x, axes), positive("stride", stride)
    if len(moves) != x.shape[-1]:
        raise InputError(
            f"the table is {moves.dtype} {list(moves.shape)}; {x.shape[-1]} channels "
            f"need integers [{x.shape[-1]}, {axes}]"
        )
    _check_name("border", border, BORDERS)
    if lowering is not None:
        _check_name("lowering", lowering, LOWERINGS)
    lengths = x.shape[-1 - axes : -1]
    kept = tuple(-(-length // stride) for length in lengths)
    if 0 in x.shape:
        return jnp.zeros((*x.shape[: -1 - axes], *kept, x.shape[-1]), x.dtype)
    if border != "zeros":
        return _displace_within(x, moves, stride, border, lowering)
    if axes == 1:
        moves = np.pad(moves, ((0, 0), (1, 0)))
        row = x[..., None, :, :]
        return displace(row, moves, stride=stride, lowering=lowering)[..., 0, :, :]
    if axes == 3:
        return _displace_volume(x, moves, stride, lowering)
    operation = functools.partial(
        displace_p.bind,
        table=tuple(map(tuple, moves.tolist())),
        stride=stride,
        size=kept,
        lowering=lowering,
    )
    return _on_explicit_axes(operation, x, kept)


def _displace_volume(
    x: jax.Array, moves: np.ndarray, stride: int, lowering: str | None
) -> jax.Array:
    """Moves the channels along the depth, and then along height and width."""
    x = gathered(x, 3)
    if moves[:, 0].any():
        # The depth replaces the height, and the pixels of a slice the width.
        *_, height, width, channels = x.shape
        flat = x.reshape(*x.shape[:-3], height * width, channels)
        along = np.stack([moves[:, 0], 0 * moves[:, 0]], 1)
        x = displace(flat, along, lowering=lowering).reshape(x.shape)
    x, moves = x[..., ::stride, :, :, :], moves[:, 1:]
    if stride == 1 and not moves.any():
        return x
    return displace(x, moves, stride=stride, lowering=lowering)


def _on_explicit_axes(
    operation: Callable[[jax.Array], jax.Array], x: jax.Array, size: tuple[int, ...]
) -> jax.Array:
    """Runs the operation, also where pixels are split over explicit axes of a mesh.

    There the compiler exchanges the pixels at the borders of the parts, and the result
    is split likewise. If the mesh does not divide the result, each device has it whole.
    """
    sharding = jax.typeof(x).sharding
    pixels = sharding.spec[-3:-1]
    if pixels == (None, None):
        return operation(x)
    names = [axes if isinstance(axes, tuple) else (axes,) for axes in pixels]
    parts = [math.prod(sharding.mesh.shape[a] for a in axes if a) for axes in names]
    if any(length % count for length, count in zip(size, parts, strict=True)):
        return operation(gathered(x, 2))
    split: Any = jax.sharding.auto_axes(operation, out_sharding=sharding.spec)
    with jax.sharding.use_abstract_mesh(sharding.mesh):
        return split(x)


def gathered(x: jax.Array, axes: int) -> jax.Array:
    """Returns `x` with all pixels on each device, in place of explicit axes."""
    sharding = jax.typeof(x).sharding
    spec, lead = sharding.spec, x.ndim - 1 - axes
    if all(name is None for name in spec[lead:-1]):
        return x
    whole = PartitionSpec(*spec[:lead], *[None] * axes, spec[-1])
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, whole))


def _displace_within(
    x: jax.Array, moves: np.ndarray, stride: int, border: str, lowering: str | None
) -> jax.Array:
    """Moves the channels of an image with a margin, and cuts the margin off."""
    axes = moves.shape[1]
    lengths = np.array(x.shape[-1 - axes : -1])
    # Equal displacements that need the smallest margin.
    if border == "edge":
        moves = np.clip(moves, -lengths, lengths)
    else:
        period = lengths if border == "wrap" else np.maximum(2 * lengths - 2, 1)
        moves = np.fmod(moves, period)
    before, after = np.maximum(-moves.min(0), 0), np.maximum(moves.max(0), 0)
    margin = [(0, 0)] * (x.ndim - axes - 1) + [*zip(before, after, strict=True), (0, 0)]
    padded = jnp.pad(gathered(x, axes), margin, mode=BORDERS[border])
    moved = displace(padded, moves, lowering=lowering)
    window = (
        slice(start, start + length, stride)
        for start, length in zip(before, lengths, strict=True)
    )
    return moved[(..., *window, slice(None))]


def _check_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Raises UnknownNameError for another name, or for what is no name."""
    if name not in list(known):  # a list compares: it needs no hash
        raise unknown_name(kind, name, known)


def _as_table(table: ArrayLike) -> np.ndarray:
    """Converts a table to NumPy; raises InputError if it is none."""
    try:
        moves = np.asarray(table)
    except jax.errors.TracerArrayConversionError as error:
        raise InputError(
            "the table is traced: it must be known when the program is traced; "
            "shiftjax.family.interpolate takes traced displacements"
        ) from error
    except ValueError as error:
        raise InputError("the table has rows of different lengths") from error
    is_table = moves.ndim == 2 and moves.shape[1] in AXES
    if not is_table or not np.issubdtype(moves.dtype, np.integer):
        raise InputError(
            f"the table is {moves.dtype} {list(moves.shape)}: it must be integers "
            "[channels, 2], or of 1 or 3 columns"
        )
    far = moves[(moves <= -(2**31)) | (moves >= 2**31)]
    if far.size:
        raise InputError(f"the table has {far[0]}: displacements must be below 2**31")
    return moves.astype(np.int64)


def positive(name: str, value: int) -> int:
    """Checks that an option is a positive integer.

    Args:
      name: name of the option, for the error.
      value: its value.

    Returns:
      The value as an int.

    Raises:
      InputError: if it is not an integer of at least 1; a bool is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name}={value!r}: it must be an integer of at least 1")
    return int(value)


def as_feature_map(x: ArrayLike, axes: int = 2) -> jax.Array:
    """Converts `x` to an array, and checks that it has channels and the axes of pixels.

    Args:
      x: the array.
      axes: 1 for length, 2 for height and width, 3 for depth, height and width.

    Raises:
      InputError: if it has fewer axes.
    """
    x = jnp.asarray(x)
    if x.ndim <= axes:
        raise InputError(
            f"x has shape {list(x.shape)}; a shift needs [..., {AXES[axes]}, channels]"
        )
    return x


# The primitive. The platform is known when a program is lowered, not when it is traced.
# So a program can be compiled for another platform than the one it was traced on.


def lower(
    platform: str | None,
    x: jax.Array,
    *,
    table: Table,
    stride: int,
    size: Size,
    lowering: str | None,
) -> jax.Array:
    """Runs the given lowering, or the default of the platform."""
    name = lowering or DEFAULT_LOWERING.get(platform or "", "select")
    return LOWERINGS[name](x, table, stride, size)


def transpose(
    cotangent: jax.Array,
    x: ad.UndefinedPrimal,
    *,
    table: Table,
    stride: int,
    size: Size,
    lowering: str | None,
) -> list[jax.Array]:
    """Returns the opposite displacement; rows and columns not kept become zeros."""
    del size
    if stride > 1:
        spread = [(0, 0, 0)] * cotangent.ndim
        spread[-3] = spread[-2] = (0, 0, stride - 1)
        cotangent = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), spread)
    back = tuple((-dy, -dx) for dy, dx in table)
    options = {"table": back, "stride": 1, "lowering": lowering}
    return [displace_p.bind(cotangent, size=x.aval.shape[-3:-1], **options)]


def batch(
    arguments: Sequence[jax.Array], axes: Sequence[int], **options: object
) -> tuple[jax.Array, int]:
    """Moves the mapped axis to the front, as one more leading axis."""
    return displace_p.bind(jnp.moveaxis(arguments[0], axes[0], 0), **options), 0


def implement(x: ArrayLike, **options: Any) -> jax.Array:
    """Computes the result outside of `jax.jit`, on the device that holds the array."""
    x = jnp.asarray(x)  # one of NumPy may come from a function that JAX has traced
    return lower(next(iter(x.devices())).platform, x, **options)


displace_p = Primitive("displace")
displace_p.def_impl(implement)
displace_p.def_abstract_eval(
    lambda x, *, size, **_: x.update(shape=(*x.shape[:-3], *size, x.shape[-1]))
)
ad.deflinear2(displace_p, transpose)
jet.deflinear(displace_p)
batching.primitive_batchers[displace_p] = batch
for _platform in (None, *DEFAULT_LOWERING):
    _rule = mlir.lower_fun(functools.partial(lower, _platform), multiple_results=False)
    mlir.register_lowering(displace_p, _rule, platform=_platform)
