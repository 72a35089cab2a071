"""RandAugment: a few random operations on each image, inside the compiled step.

The operations and their magnitudes are those of torchvision's RandAugment with 31
magnitudes. Under `jax.vmap` a switch over the operations would compute each of them.
Therefore they are grouped into three kinds, each of which leaves the image as it is if
an operation of another kind is chosen:

    tone    a table of the 256 values of each channel: brightness, contrast, ...
    blend   with a grayscale or a blurred copy: color, sharpness
    warp    an affine map: shear, translation, rotation

The cost of an operation, whichever it is, is a histogram and a lookup, a 3x3 filter,
and a gather of the pixels.
"""

import math

import jax
import jax.numpy as jnp

from train.config import Augment
from train.data.operations import (
    blend,
    equalizing_table,
    gray,
    histogram,
    mean_gray,
    replace_values,
    smooth,
    stretch,
    warp,
)

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "auto_contrast",
    "equalize",
)
HIGHEST = 30  # magnitude


def rand_augment(
    key: jax.Array, images: jax.Array, index: jax.Array, options: Augment
) -> jax.Array:
    """Applies random operations to each image, one after the other.

    Source: Cubuk et al. 2019, https://arxiv.org/abs/1909.13719.

    Args:
      key: the random key of the step.
      images: uint8 `[batch, height, width, channels]`, gray or RGB.
      index: `[batch]`, the number of each example, as of `train.data.augment.numbers`.
      options: the number of operations, 0 for none, and their magnitude.

    Returns:
      The images, of the same shape and dtype.
    """
    count, magnitude = options.rand_augment, options.rand_augment_magnitude

    def one(image: jax.Array, i: jax.Array) -> jax.Array:
        choice_key, sign_key = jax.random.split(jax.random.fold_in(key, i))
        choices = jax.random.randint(choice_key, (count,), 0, len(OPERATIONS))
        signs = jax.random.bernoulli(sign_key, shape=(count,)).astype(jnp.int32)
        for choice, sign in zip(choices, signs, strict=True):
            image = apply(image, choice, sign, magnitude)
        return image

    return jax.vmap(one)(images, index) if count else images


def apply(
    image: jax.Array, choice: jax.Array, sign: jax.Array, magnitude: int
) -> jax.Array:
    """Applies one operation to an image.

    Args:
      image: uint8 `[height, width, channels]`, gray or RGB.
      choice: the operation, a position in `OPERATIONS`.
      sign: 0, or 1 for the opposite direction, of operations that have one.
      magnitude: 0 to `HIGHEST`.

    Returns:
      The image, of the same shape and dtype.
    """
    height, width, _ = image.shape
    factor = 1 + 0.9 * magnitude / HIGHEST * (1 - 2 * sign)

    tables = _tables(image, factor, magnitude)
    table = jnp.stack([tables.get(name, tables["identity"]) for name in OPERATIONS])
    image = replace_values(table[choice], image)

    is_color = choice == OPERATIONS.index("color")
    is_sharpness = choice == OPERATIONS.index("sharpness")
    base = jnp.where(is_sharpness, smooth(image), image)
    image = blend(jnp.where(is_color, gray(image), base), image, factor)

    maps = [_matrices(height, width, way * magnitude) for way in (1, -1)]
    maps = [[m.get(name, m["identity"]) for name in OPERATIONS] for m in maps]
    return warp(image, jnp.array(maps, jnp.float32)[sign, choice])


def _tables(
    image: jax.Array, factor: jax.Array, magnitude: int
) -> dict[str, jax.Array]:
    """Returns the tables `[256, channels]` of the operations on single values."""
    values = jnp.broadcast_to(jnp.arange(256)[:, None], (256, image.shape[-1]))
    counts = histogram(image)
    kept_bits = 8 - round(4 * magnitude / HIGHEST)
    threshold = 255 * (1 - magnitude / HIGHEST)
    tables = {
        "identity": values,
        "brightness": blend(0, values, factor),
        "contrast": blend(mean_gray(image), values, factor),
        "posterize": values & (256 - 2 ** (8 - kept_bits)),
        "solarize": jnp.where(values < threshold, values, 255 - values),
        "auto_contrast": stretch(counts),
        "equalize": equalizing_table(counts),
    }
    return {name: table.astype(jnp.int32) for name, table in tables.items()}


def _matrices(height: int, width: int, magnitude: int) -> dict[str, tuple[float, ...]]:
    """Returns the affine maps, see `train.data.operations.warp`."""
    share = magnitude / HIGHEST
    shear = 0.3 * share
    right, down = (int(150 / 331 * share * size) for size in (width, height))
    cos, sin = (f(math.radians(30 * share)) for f in (math.cos, math.sin))
    x, y = width / 2, height / 2  # the center of the rotation
    return {
        "identity": (1, 0, 0, 0, 1, 0),
        "shear_x": (1, shear, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, shear, 1, 0),
        "translate_x": (1, 0, right, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, down),
        "rotate": (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y),
    }
