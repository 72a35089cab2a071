"""Augmentation and normalization inside the compiled step.

Each random choice is a function of a key and of a number of the example, so it does not
depend on how a batch is divided over devices; see `numbers`. The partner of an example
in mixup and CutMix is the exception: it is a neighbor on the same device.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from train.config import Augment
from train.data.operations import blend, gray, mean_gray


def numbers(item: dict[str, jax.Array]) -> jax.Array:
    """Returns the numbers that distinguish the examples of a step, int32 `[batch]`.

    Args:
      item: the examples of a step, as of `train.data.stream.items`. The numbers are
        their positions in the data set, or, if the step may have an example repeatedly,
        their places in the step.
    """
    return item["place"] if "place" in item else item["index"]


def crop_and_flip(
    key: jax.Array, images: jax.Array, index: jax.Array, options: Augment
) -> jax.Array:
    """Shifts each image by a random offset, and mirrors it with probability one half.

    Args:
      key: the random key of the step.
      images: `[batch, height, width, channels]`, any dtype; padded with zeros.
      index: `[batch]`, the number of each example, as of `numbers`.
      options: the padding of the crop, and True or False for the flip.

    Returns:
      The images, of the same shape and dtype.
    """
    pad = options.crop_padding
    if pad:
        images = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def one(image: jax.Array, i: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(jax.random.fold_in(key, i))
        if pad:
            height, width, channels = image.shape
            dy, dx = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
            size = (height - 2 * pad, width - 2 * pad, channels)
            image = jax.lax.dynamic_slice(image, (dy, dx, 0), size)
        if options.flip:
            mirrored = jax.random.bernoulli(flip_key)
            image = jnp.where(mirrored, image[:, ::-1], image)
        return image

    return jax.vmap(one)(images, index)


def normalize(images: jax.Array, mean: Any, std: Any) -> jax.Array:
    """Normalizes uint8 images to zero mean and unit deviation, as float32.

    Args:
      images: `[..., channels]`, 0 to 255.
      mean: the mean of each channel, for values in 0 .. 1.
      std: the standard deviation of each channel, for values in 0 .. 1.

    Returns:
      Float32 of the same shape.
    """
    scale = 255 * jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) - 255 * jnp.asarray(mean, jnp.float32)) / scale


def jitter(
    key: jax.Array, images: jax.Array, index: jax.Array, options: Augment
) -> jax.Array:
    """Changes brightness, contrast and saturation by random factors, in random order.

    The operations are those of torchvision's ColorJitter and Pillow's ImageEnhance.

    Args:
      key: the random key of the step.
      images: uint8 `[batch, height, width, 3]`.
      index: `[batch]`, the number of each example, as of `numbers`.
      options: the strength: factors are in 1 - strength .. 1 + strength; 0 for none.

    Returns:
      The images, of the same shape and dtype.
    """
    strength = options.jitter

    def one(image: jax.Array, i: jax.Array) -> jax.Array:
        order_key, factor_key = jax.random.split(jax.random.fold_in(key, i))
        order = jax.random.permutation(order_key, 3)
        low, high = 1 - strength, 1 + strength
        factors = jax.random.uniform(factor_key, (3,), minval=low, maxval=high)
        for kind in order:
            black, mean = jnp.uint8(0), mean_gray(image).astype(jnp.uint8)
            base = jnp.select([kind == 0, kind == 1], [black, mean], gray(image))
            image = blend(base, image, factors[kind])
        return image

    return jax.vmap(one)(images, index) if strength else images


def erase(
    key: jax.Array, images: jax.Array, index: jax.Array, options: Augment
) -> jax.Array:
    """Sets a random rectangle of an image to zero, with a given probability.

    The rectangle has 2% to 33% of the image's area, and its height is 0.3 to 3.3 times
    its width. A side is cut off at the image's.

    Source: Zhong et al. 2017, https://arxiv.org/abs/1708.04896.

    Args:
      key: the random key of the step.
      images: `[batch, height, width, channels]`, normalized, so that zero is the mean.
      index: `[batch]`, the number of each example, as of `numbers`.
      options: the probability; 0 for none.

    Returns:
      The images, of the same shape and dtype.
    """
    height, width = images.shape[1:3]

    def interval(key: jax.Array, side: jax.Array, length: int) -> jax.Array:
        side = jnp.clip(jnp.round(side), 1, length).astype(jnp.int32)
        start = jax.random.randint(key, (), 0, length - side + 1)
        place = jnp.arange(length)
        return (place >= start) & (place < start + side)

    def one(image: jax.Array, i: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.fold_in(key, i), 5)
        area = height * width * jax.random.uniform(keys[0], minval=0.02, maxval=1 / 3)
        low, high = math.log(0.3), math.log(3.3)
        aspect = jnp.exp(jax.random.uniform(keys[1], minval=low, maxval=high))
        rows = interval(keys[2], jnp.sqrt(area * aspect), height)
        columns = interval(keys[3], jnp.sqrt(area / aspect), width)
        erased = jax.random.bernoulli(keys[4], options.erase)
        box = rows[:, None, None] & columns[:, None] & erased
        return jnp.where(box, 0, image)

    return jax.vmap(one)(images, index) if options.erase else images


def mix(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    index: jax.Array,
    options: Augment,
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image and its target with a neighbor's: mixup or CutMix.

    The neighbor is the example before it on the same device. Each example has a share
    of its own. If both methods are enabled, each example is mixed by one of them, with
    probability one half.

    Source: Zhang et al. 2017, https://arxiv.org/abs/1710.09412 (mixup); Yun et al.
    2019, https://arxiv.org/abs/1905.04899 (CutMix).

    Args:
      key: the random key of the step.
      images: `[batch, height, width, channels]` floats.
      targets: `[batch, classes]`, probabilities.
      index: `[batch]`, the number of each example, as of `numbers`.
      options: the parameters of the Beta distributions; 0 for none.

    Returns:
      The mixed images and targets.
    """
    if not (options.mixup or options.cutmix):
        return images, targets
    height, width = images.shape[1:3]

    def draw(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        coin_key, mixup_key, cutmix_key = jax.random.split(
            jax.random.fold_in(key, i), 3
        )
        drawn = []
        if options.mixup:
            drawn.append(_mixup(mixup_key, options.mixup, (height, width)))
        if options.cutmix:
            drawn.append(_cutmix(cutmix_key, options.cutmix, (height, width)))
        first = jax.random.bernoulli(coin_key)
        return jax.tree.map(lambda x, y: jnp.where(first, x, y), drawn[0], drawn[-1])

    def mixed(x: jax.Array, weight: jax.Array) -> jax.Array:
        return weight * x + (1 - weight) * jnp.roll(x, 1, 0)

    weights, shares = jax.vmap(draw)(index)
    return mixed(images, weights[..., None]), mixed(targets, shares[:, None])


def _mixup(
    key: jax.Array, alpha: float, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Draws the weight of each pixel `[height, width]`, and their mean."""
    share = jax.random.beta(key, alpha, alpha)
    return jnp.full(size, share), share


def _cutmix(
    key: jax.Array, alpha: float, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Draws the weight of each pixel `[height, width]`, and their mean."""
    share_key, row_key, column_key = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))

    def inside(key: jax.Array, length: int) -> jax.Array:
        center = jax.random.randint(key, (), 0, length)
        distance = jnp.abs(jnp.arange(length) - center)
        return distance * 2 < jnp.round(side * length)

    box = inside(row_key, size[0])[:, None] & inside(column_key, size[1])
    weights = 1 - box.astype(jnp.float32)
    return weights, weights.mean()
