"""A stylizer on a picture that is too large for the memory in one piece, exactly.

The network is computed layer by layer, each layer in bands of rows that overlap by the
reach of its window. So instance norm has the statistics of the whole picture before the
next layer begins, and the result is, to rounding, that of one pass, without seams.

What is kept are two layers' outputs at a time, about 200 bytes for each pixel of the
picture: for twelve million pixels, measured on a CPU, the process takes 3.7 GiB.
"""

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from shiftjax.instancenorm import COLLECTION, InstanceNorm
from shiftjax.models.stylizer import MULTIPLE, StyleBlock, StyleConv, StyleNet

PIXELS = 2**19  # of a band, after upsampling
REACH = 8  # rows: more than half of any window, a multiple of any stride


def apply_in_bands(
    model: StyleNet, variables: Any, image: np.ndarray, pixels: int = PIXELS
) -> np.ndarray:
    """Computes what `model.apply(variables, image[None])[0]` does, in less memory.

    Args:
      model: the network.
      variables: its "params".
      image: float32 `[height, width, 3]`, normalised.
      pixels: of a band, about.

    Returns:
      float32 `[height, width, 3]`.
    """
    params = variables["params"]
    height, width, _ = image.shape
    x = np.pad(
        image, ((0, -height % MULTIPLE), (0, -width % MULTIPLE), (0, 0)), "reflect"
    )
    norm: Any = None
    for layer in model.encoder():
        x, norm = _layer(layer, params[layer.name], norm, x, pixels)
    y = _activate(norm, model.epsilon, x[None])
    for block in model.trunk():
        y = _block(_alone(block), params[block.name], y)
    x, norm = np.asarray(y)[0], None
    for layer in model.decoder():
        x, norm = _layer(layer, params[layer.name], norm, x, pixels)
    return x[:height, :width].astype(np.float32)


def _layer(
    layer: StyleConv, params: Any, before: Any, x: np.ndarray, pixels: int
) -> tuple[np.ndarray, Any]:
    """Computes a layer up to its norm, which is left to the next one.

    Args:
      layer: the layer.
      params: of it.
      before: variables of the norm that was left, which ReLU follows; or None.
      x: `[height, width, channels]`.
      pixels: of a band, about.

    Returns:
      `[h, w, features]`, and the variables of its norm with the statistics.
    """
    height, width, _ = x.shape
    up, down = layer.upsampling, layer.strides
    conv = _alone(layer.clone(normalized=False))
    whole = np.empty(0)
    count, mean, square = 0, np.float64(0), np.float64(0)
    for low, high, start, stop in _bands(height, pixels // (width * up**2)):
        crop = (start - low) * up // down, (stop - start) * up // down
        band = x[None, low:high]
        y, own = _band(conv, params["conv"], before, crop[1], crop[0], band)
        if not start:
            whole = np.empty((height * up // down, *y.shape[2:]), y.dtype)
        whole[start * up // down : stop * up // down] = y[0]
        # The mean and the squared distance from it of both parts together.
        size = y.shape[1] * y.shape[2]
        part, var = (np.asarray(s, np.float64) for s in own)
        apart = part - mean
        square = square + size * (var + apart**2 * count / (count + size))
        mean = mean + apart * size / (count + size)
        count += size
    stats = {"mean": jnp.float32(mean), "var": jnp.float32(square / count)}
    return whole, {"params": params.get("norm"), COLLECTION: stats}


def _bands(height: int, rows: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields rows to read and, within them, rows to compute, of bands of one size.

    Example:
      >>> list(_bands(60, 24))
      [(0, 40, 0, 24), (16, 56, 24, 48), (20, 60, 48, 60)]
    """
    rows = max(rows // REACH, 1) * REACH
    size = min(rows + 2 * REACH, height)
    for start in range(0, height, rows):
        low = min(max(start - REACH, 0), height - size)
        yield low, low + size, start, min(start + rows, height)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _band(
    conv: StyleConv, params: Any, before: Any, rows: int, start: jax.Array, x: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Computes some rows of a layer, and their mean and variance `[1, features]`."""
    if before is not None:
        x = _activate(before, conv.epsilon, x)
    y: Any = conv.apply({"params": {"conv": params}}, x)
    y = lax.dynamic_slice_in_dim(y, start, rows, 1)
    values = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    return y, (values.mean((1, 2)), values.var((1, 2)))


@functools.partial(jax.jit, static_argnums=1)
def _activate(norm: Any, epsilon: float, x: jax.Array) -> jax.Array:
    """Instance norm with given statistics, and ReLU."""
    y: Any = InstanceNorm(epsilon).apply(norm, x)
    return nn.relu(y).astype(x.dtype)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _block(block: StyleBlock, params: Any, x: jax.Array) -> jax.Array:
    """A residual block on the whole picture, at a quarter of its height and width."""
    y: Any = block.apply({"params": params}, x)
    return y


def _alone(module: Any) -> Any:
    """The module without its name, so that equal ones are compiled once."""
    return module.clone(name=None)
