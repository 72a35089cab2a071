"""What is compared on a GPU: the shift, the block and the net, each in its forms.

A case is a pure function and the shapes of its arguments, for `benchmarks.gpu` to time
and for `benchmarks.gpu_costs` to compile.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import shiftjax
from shiftjax import gpu
from shiftjax.layers import ShiftConv

Middle = Callable[..., jax.Array]

# images, side, channels, expansion, kernel_size, strides
BLOCKS = {
    "128 x 32 x 32 x 16, E 3": (128, 32, 16, 3, 3, 1),
    "128 x 16 x 16 x 32, E 3": (128, 16, 32, 3, 3, 1),
    "128 x 8 x 8 x 64, E 3": (128, 8, 64, 3, 3, 1),
    "1024 x 32 x 32 x 16, E 3": (1024, 32, 16, 3, 3, 1),
    "1024 x 16 x 16 x 32, E 3": (1024, 16, 32, 3, 3, 1),
    "1024 x 8 x 8 x 64, E 3": (1024, 8, 64, 3, 3, 1),
    "1024 x 32 x 32 x 16, E 9": (1024, 32, 16, 9, 3, 1),
    "128 x 56 x 56 x 64, E 4, K 5": (128, 56, 64, 4, 5, 1),
    "128 x 28 x 28 x 128, E 3, K 5": (128, 28, 128, 3, 5, 1),
    "128 x 14 x 14 x 256, E 2": (128, 14, 256, 2, 3, 1),
    "1024 x 32 x 32 x 16 to 32, E 3, stride 2": (1024, 32, 16, 3, 3, 2),
}


@dataclasses.dataclass(frozen=True)
class Block:
    """The shapes of a block, and the least that it has to do.

    Attributes:
      images: in a batch.
      side: height and width of an image.
      channels: of the input.
      expansion: E.
      kernel_size: K.
      strides: of the shift; the output has `strides * channels` features.
    """

    images: int
    side: int
    channels: int
    expansion: int
    kernel_size: int
    strides: int

    @property
    def features(self) -> int:
        """Of the output."""
        return self.channels * self.strides

    @property
    def narrow_bytes(self) -> tuple[int, int]:
        """Bytes of the input and of the output, in bfloat16."""
        x = 2 * self.images * self.side**2 * self.channels
        return x, x * self.features // self.channels // self.strides**2

    def floor_bytes(self, backward: bool) -> int:
        """Bytes that must move where the wide tensor never does.

        BatchNorm needs a statistic of all before it can give any, so forward: x for
        its covariance; x to y; y and x (the skip) to the output. Backward: the
        gradient g and y for their sums; g, y and x to dx; then dx, x and g (the skip)
        to the sum, once the weights' gradients are known.
        """
        x, y = self.narrow_bytes
        forward = 3 * x + 3 * y if self.strides == 1 else 3 * x + 5 * y
        if not backward:
            return forward
        gradients = 6 * x + 4 * y if self.strides == 1 else 6 * x + 8 * y
        return forward + gradients

    def flops(self, backward: bool) -> int:
        """Of the two pointwise products; backward runs the first one again."""
        rows = self.images * self.side**2 // self.strides**2
        wide = self.expansion * self.features
        first, second = self.channels * wide, wide * self.features
        once = 2 * rows * (first + second)
        return once + (2 * rows * first + 2 * once if backward else 0)


def fold(project: jax.Array, kernel_size: int, dilation: int) -> jax.Array:
    """The shift and the projection as one convolution `[K, K, expanded, features]`."""
    moves = shiftjax.displacements(len(project), kernel_size) + kernel_size // 2
    taps = np.zeros((kernel_size, kernel_size, len(project)), np.float32)
    taps[moves[:, 0], moves[:, 1], np.arange(len(project))] = 1
    del dilation  # belongs to the convolution
    return jnp.asarray(taps)[..., None] * project


def folded(
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    *,
    kernel_size: int,
    strides: int,
    dilation: int,
) -> jax.Array:
    """Expand and ReLU, then one K x K convolution."""
    wide = x @ expand.astype(x.dtype) + bias.astype(x.dtype)
    kernel = fold(project, kernel_size, dilation).astype(x.dtype)
    reach = dilation * (kernel_size // 2)
    return lax.conv_general_dilated(
        jax.nn.relu(wide),
        kernel,
        (strides, strides),
        [(reach, reach)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def by_lowering(
    lowering: str,
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    *,
    kernel_size: int,
    strides: int,
    dilation: int,
) -> jax.Array:
    """Expand and ReLU, the shift in one of its lowerings, then the projection."""
    wide = jax.nn.relu(x @ expand.astype(x.dtype) + bias.astype(x.dtype))
    table = shiftjax.displacements(len(project), kernel_size, dilation=dilation)
    wide = shiftjax.displace(wide, table, stride=strides, lowering=lowering)
    return wide @ project.astype(x.dtype)


LOWERINGS = ("select", "pad", "slice", "gather", "depthwise")


def middles(sizes: Mapping[str, gpu.Sizes | None]) -> dict[str, Middle | None]:
    """Every form of a block: what it has in its middle, or None for the definition."""
    forms: dict[str, Middle | None] = {"plain": None}
    for lowering in LOWERINGS:
        forms[f"narrow, {lowering}"] = functools.partial(by_lowering, lowering)
    forms["narrow, folded"] = folded
    for name, size in sizes.items():
        forms[f"kernel{name}"] = functools.partial(gpu.shift_project, sizes=size)
    return forms


SIZES = {
    "": None,
    ", 8 warps": gpu.Sizes(pixels=256, warps=8, back_pixels=128, back_warps=8),
    ", 2 stages": gpu.Sizes(back_stages=2),
    ", 132 programs": gpu.Sizes(programs=132),
    ", two passes, small sums": gpu.Sizes(fused=False, sums=2**15),
    ", large sums": gpu.Sizes(sums=2**19),
    ", tiles of 32": gpu.Sizes(width=32),
}


def block(
    shapes: Block, middle: Middle | None, backward: bool, dtype: Any = jnp.bfloat16
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A block in training: output and statistics, and all gradients if `backward`.

    Returns:
      The function, and the shapes of its arguments: variables, x and its cotangent.
    """
    module = ShiftConv(
        shapes.features,
        shapes.kernel_size,
        shapes.strides,
        expansion=shapes.expansion,
        dtype=dtype,
    )
    x = jax.ShapeDtypeStruct(
        (shapes.images, shapes.side, shapes.side, shapes.channels), dtype
    )
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    g = jax.eval_shape(module.apply, variables, x)

    def forward(params: Any, x: jax.Array) -> Any:
        if middle is None:
            y, updates = module.apply(
                {"params": params, "batch_stats": variables_of(params)},
                x,
                train=True,
                mutable=["batch_stats"],
            )
            return y, updates["batch_stats"]
        return gpu.shift_block(
            params,
            None,
            x,
            kernel_size=shapes.kernel_size,
            strides=shapes.strides,
            dilation=1,
            dtype=dtype,
            epsilon=module.epsilon,
            axis_name=None,
            middle=middle,
        )

    def both(params: Any, x: jax.Array, g: jax.Array) -> Any:
        y, pull, stats = jax.vjp(forward, params, x, has_aux=True)
        return y, stats, pull(g)

    arguments = (variables["params"], x)
    return (both, (*arguments, g)) if backward else (forward, arguments)


def variables_of(params: Any) -> Any:
    """Running statistics for params: those of BatchNorm that has seen nothing."""
    return {
        name: {
            "norm": {
                "mean": jnp.zeros_like(unit["norm"]["bias"]),
                "var": jnp.ones_like(unit["norm"]["scale"]),
            }
        }
        for name, unit in params.items()
    }


def shift(
    lowering: str, shape: tuple[int, ...], kernel_size: int, backward: bool
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A shift alone, bfloat16; "copy" adds one to each number instead."""
    table = shiftjax.displacements(shape[-1], kernel_size)

    def forward(x: jax.Array) -> jax.Array:
        if lowering == "copy":
            return x + jnp.ones((), x.dtype)
        return shiftjax.displace(x, table, lowering=lowering)

    def both(x: jax.Array, g: jax.Array) -> Any:
        y, pull = jax.vjp(forward, x)
        return y, pull(g)

    def copies(x: jax.Array, g: jax.Array) -> Any:
        return forward(x), forward(g)

    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    if not backward:
        return forward, (x,)
    return (copies if lowering == "copy" else both), (x, x)
