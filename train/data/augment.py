"""Augmentation and normalization inside the compiled step.

Each random choice is a function of a key and of the example's index in its data set,
so it does not depend on how a batch is divided over devices. mixup and CutMix are the
exception: they mix the examples of one device.
"""

from typing import Any

import jax
import jax.numpy as jnp

from train.config import Augment


def crop_and_flip(
    key: jax.Array, images: jax.Array, index: jax.Array, options: Augment
) -> jax.Array:
    """Shifts each image by a random offset, and mirrors it with probability one half.

    Args:
      key: the random key of the step.
      images: `[batch, height, width, channels]`, any dtype; padded with zeros.
      index: `[batch]`, the position of each example in the data set.
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


def mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, options: Augment
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image and its target with the next example's: mixup or CutMix.

    If both are enabled, each step applies one of them with probability one half.

    Source: Zhang et al. 2017, https://arxiv.org/abs/1710.09412 (mixup); Yun et al.
    2019, https://arxiv.org/abs/1905.04899 (CutMix).

    Args:
      key: the random key of the step and the device.
      images: `[batch, height, width, channels]` floats.
      targets: `[batch, classes]`, probabilities.
      options: the parameters of the Beta distributions; 0 for none.

    Returns:
      The mixed images and targets.
    """
    coin_key, mixup_key, cutmix_key = jax.random.split(key, 3)
    mixed = {
        "mixup": lambda: _mixup(mixup_key, images, targets, options.mixup),
        "cutmix": lambda: _cutmix(cutmix_key, images, targets, options.cutmix),
    }
    wanted = [mixed[name] for name in mixed if getattr(options, name)]
    if not wanted:
        return images, targets
    if len(wanted) == 1:
        return wanted[0]()
    return jax.lax.cond(jax.random.bernoulli(coin_key), *wanted)


def _mixup(
    key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    share = jax.random.beta(key, alpha, alpha)

    def blend(x: jax.Array) -> jax.Array:
        return share * x + (1 - share) * jnp.roll(x, 1, 0)

    return blend(images), blend(targets)


def _cutmix(
    key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    height, width = images.shape[1:3]
    share_key, row_key, column_key = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))

    def inside(key: jax.Array, length: int) -> jax.Array:
        center = jax.random.randint(key, (), 0, length)
        distance = jnp.abs(jnp.arange(length) - center)
        return distance * 2 < jnp.round(side * length)

    box = inside(row_key, height)[:, None] & inside(column_key, width)
    share = 1 - box.mean()
    images = jnp.where(box[:, :, None], jnp.roll(images, 1, 0), images)
    return images, share * targets + (1 - share) * jnp.roll(targets, 1, 0)
