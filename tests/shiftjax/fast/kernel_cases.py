"""Calls of the kernels for TPUs and GPUs, and what they compute."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shiftjax import shift
from shiftjax.fast import gpu, tpu
from shiftjax.fast.gpu import Sizes


class Case(NamedTuple):
    """A call of a kernel.

    Attributes:
      platform: "tpu" or "gpu".
      shape: batch, height, width and channels of the input.
      wide: number of shifted channels.
      features: channels of the output.
      window: kernel_size, strides and dilation.
      sizes: the division of the work on a GPU.
    """

    platform: str
    shape: tuple[int, ...]
    wide: int
    features: int
    window: tuple[int, int, int]
    sizes: Sizes | None = None

    @property
    def options(self) -> dict[str, int]:
        """The options of the kernel; that for TPUs has no strides."""
        kernel_size, strides, dilation = self.window
        options = {"kernel_size": kernel_size, "dilation": dilation}
        return options if self.platform == "tpu" else options | {"strides": strides}

    def numbers(self, rng: np.random.Generator, dtype: Any) -> list[jax.Array]:
        """x, expand, bias, project and a cotangent, as the kernels of a network are."""
        batch, height, width, channels = self.shape
        shapes = [(channels, self.wide), (self.wide,), (self.wide, self.features)]
        arrays = [
            rng.normal(size=s) / np.sqrt(s[0] if len(s) == 2 else 1)
            for s in (self.shape, *shapes)
        ]
        stride = self.window[1]
        size = (batch, -(-height // stride), -(-width // stride), self.features)
        arrays.append(rng.normal(size=size))
        return [jnp.asarray(array, dtype) for array in arrays]

    def kernel(self, *, interpret: bool = False) -> Callable[..., jax.Array]:
        """The function of this case's platform."""
        if self.platform == "tpu":
            return functools.partial(tpu.shift_project, interpret=interpret)
        sizes = self.sizes
        return functools.partial(gpu.shift_project, sizes=sizes, interpret=interpret)

    def everything(
        self, function: Callable[..., jax.Array], *arrays: jax.Array
    ) -> dict[str, jax.Array]:
        """The output of a function, and the gradients of all four inputs."""
        with jax.default_matmul_precision("highest"):
            return _everything(function, tuple(self.options.items()), *arrays)


def definition(
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    kernel_size: int,
    dilation: int,
    strides: int = 1,
) -> jax.Array:
    """Computes the same as the kernels."""
    wide = jax.nn.relu(x @ expand + bias)
    return shift(wide, kernel_size, dilation=dilation, stride=strides) @ project


@functools.partial(jax.jit, static_argnums=(0, 1))
def _everything(
    function: Callable[..., jax.Array],
    options: tuple[tuple[str, int], ...],
    *arrays: jax.Array,
) -> dict[str, jax.Array]:
    *inputs, g = arrays
    y, pull = jax.vjp(functools.partial(function, **dict(options)), *inputs)
    names = ("x", "expand", "bias", "project")
    return {"y": y} | dict(zip(names, pull(g), strict=True))


SMALL = Sizes(pixels=16, back_pixels=16, programs=3)  # several steps and programs
APART = Sizes(pixels=16, back_pixels=16, programs=2, fused=False)
CHUNKS = Sizes(pixels=32, back_pixels=16, programs=2, sums=2**13)

TPU = {
    "one pixel a row": ((128, 3, 1, 8), 16, 8, (3, 1, 1)),
    "odd": ((128, 5, 3, 16), 48, 16, (3, 1, 1)),
    "two blocks of images": ((256, 3, 4, 8), 24, 8, (3, 1, 1)),
    "K = 1": ((128, 2, 3, 8), 16, 8, (1, 1, 1)),
    "K = 2": ((128, 3, 5, 8), 16, 24, (2, 1, 1)),
    "K = 5": ((128, 6, 7, 8), 32, 16, (5, 1, 1)),
    "K = 5, nothing moves": ((128, 3, 2, 16), 24, 8, (5, 1, 1)),
    "dilation 2": ((128, 5, 6, 8), 24, 8, (3, 1, 2)),
    "K = 4, dilation 2": ((128, 4, 3, 8), 16, 8, (4, 1, 2)),
    "farther than the image": ((128, 2, 3, 8), 16, 8, (3, 1, 5)),
    "more features": ((128, 3, 4, 8), 16, 40, (3, 1, 1)),
    "K = 2, in full tiles": ((128, 3, 2, 16), 48, 16, (2, 1, 1)),
    "dilation 2, in full tiles": ((128, 4, 3, 16), 32, 32, (3, 1, 2)),
}
GPU = {
    "one pixel": ((1, 1, 1, 16), 16, 16, (3, 1, 1), SMALL),
    "one pixel a row": ((3, 5, 1, 16), 16, 16, (3, 1, 1), SMALL),
    "odd": ((2, 5, 7, 16), 48, 16, (3, 1, 1), SMALL),
    "channels of no power of two": ((2, 4, 5, 5), 21, 7, (3, 1, 1), SMALL),
    "K = 1": ((2, 3, 3, 8), 20, 8, (1, 1, 1), SMALL),
    "K = 2": ((1, 3, 5, 8), 16, 24, (2, 1, 1), SMALL),
    "K = 5": ((1, 6, 7, 8), 60, 16, (5, 1, 1), CHUNKS),
    "K = 5, nothing moves": ((1, 3, 2, 16), 24, 8, (5, 1, 1), SMALL),
    "dilation 2": ((2, 5, 6, 8), 24, 8, (3, 1, 2), SMALL),
    "farther than the image": ((1, 2, 3, 8), 16, 8, (3, 1, 5), SMALL),
    "stride 2": ((2, 6, 4, 8), 36, 16, (3, 2, 1), SMALL),
    "stride 2, odd": ((1, 5, 7, 8), 18, 16, (3, 2, 1), APART),
    "stride 2, farther than the image": ((1, 2, 5, 8), 18, 8, (3, 2, 7), SMALL),
    "stride 3, dilation 2": ((1, 8, 7, 9), 20, 9, (3, 3, 2), SMALL),
    "K = 5, stride 2": ((1, 7, 6, 4), 50, 8, (5, 2, 1), APART),
    "full tiles": ((1, 4, 4, 16), 144, 16, (3, 1, 1), CHUNKS),
    "tiles of 32": ((1, 4, 3, 32), 96, 16, (3, 1, 1), Sizes(width=32)),
    "one tile": ((1, 4, 3, 16), 48, 16, (3, 1, 1), Sizes(width=64)),
    "one pass": ((1, 5, 5, 8), 54, 8, (3, 1, 1), APART),
}
CASES = {
    f"{platform}, {name}": Case(platform, *case)
    for platform, cases in {"tpu": TPU, "gpu": GPU}.items()
    for name, case in cases.items()
}
