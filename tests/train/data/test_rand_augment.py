"""RandAugment's operations against Pillow's, and how they are drawn."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from train.config import Augment
from train.data.operations import histogram, replace_values
from train.data.rand_augment import OPERATIONS, apply, rand_augment

pytestmark = pytest.mark.usefixtures("quick")

HEIGHT, WIDTH = 23, 37
applied = jax.jit(apply, static_argnames="magnitude")
augmented = jax.jit(rand_augment, static_argnames="options")


def key(step: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(0), step)


def pictures() -> dict[str, np.ndarray]:
    """Noise, slow waves of a narrow range of values, and a single color."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin(x / 9 + i) * np.cos(y / 7 - i) for i in range(3)]
    smooth = np.uint8(90 + 60 * np.stack(waves, -1))
    return {"noise": noise, "smooth": smooth, "flat": np.full_like(noise, 77)}


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


# What Pillow does for a magnitude m, with its sign: torchvision's largest magnitudes
# are 0.3, 150 / 331 of a side, 30 degrees and 0.9, for m = 30.
PILLOW: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "identity": lambda x, m: x,
    "shear_x": lambda x, m: affine(x, 1, m / 100, 0, 0, 1, 0),
    "shear_y": lambda x, m: affine(x, 1, 0, 0, m / 100, 1, 0),
    "translate_x": lambda x, m: affine(
        x, 1, 0, int(150 / 331 * WIDTH * m / 30), 0, 1, 0
    ),
    "translate_y": lambda x, m: affine(
        x, 1, 0, 0, 0, 1, int(150 / 331 * HEIGHT * m / 30)
    ),
    "rotate": lambda x, m: x.rotate(m),
    "brightness": lambda x, m: ImageEnhance.Brightness(x).enhance(1 + 0.03 * m),
    "color": lambda x, m: ImageEnhance.Color(x).enhance(1 + 0.03 * m),
    "contrast": lambda x, m: ImageEnhance.Contrast(x).enhance(1 + 0.03 * m),
    "sharpness": lambda x, m: ImageEnhance.Sharpness(x).enhance(1 + 0.03 * m),
    "posterize": lambda x, m: ImageOps.posterize(x, 8 - round(abs(m) / 7.5)),
    "solarize": lambda x, m: ImageOps.solarize(x, 255 - 8.5 * abs(m)),
    "auto_contrast": lambda x, m: ImageOps.autocontrast(x),
    "equalize": lambda x, m: ImageOps.equalize(x),
}
# Pillow computes coordinates in 1 / 65536 of a pixel, so that points near the border
# of two pixels may fall on the other.
MOVES = ("shear_x", "shear_y", "rotate")


@pytest.mark.parametrize("picture", pictures())
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(name, picture):
    image = pictures()[picture]
    for magnitude in (0, 1, 9, 17, 30):
        for sign in (0, 1):
            received = np.asarray(
                applied(image, OPERATIONS.index(name), sign, magnitude=magnitude)
            )
            assert received.dtype == np.uint8
            signed = magnitude * (1 - 2 * sign)
            wanted = np.asarray(PILLOW[name](Image.fromarray(image), signed))
            error = np.abs(received.astype(int) - wanted)
            if name in MOVES:
                assert (error.max(-1) > 0).mean() < 0.01
            else:
                # A blend that is close to a whole number may be rounded down.
                assert error.max() <= 1
                assert (error > 0).mean() < 0.01


def test_an_operation_on_a_gray_image_is_pillows():
    image = pictures()["smooth"][..., :1]
    for name in OPERATIONS:
        received = applied(image, OPERATIONS.index(name), 0, magnitude=9)
        assert received.shape == image.shape
        wanted = np.asarray(PILLOW[name](Image.fromarray(image[..., 0]), 9))
        error = np.abs(np.asarray(received)[..., 0].astype(int) - wanted)
        assert (error > (0 if name in MOVES else 1)).mean() < 0.01, name


def test_operations_change_the_image():
    image = pictures()["smooth"]
    for name in OPERATIONS[1:]:
        received = applied(image, OPERATIONS.index(name), 0, magnitude=20)
        assert (np.asarray(received) != image).mean() > 0.03, name


def test_histogram_and_lookup():
    image = pictures()["smooth"]
    counts = np.asarray(histogram(jnp.asarray(image)))
    table = np.random.default_rng(0).integers(0, 256, (256, 3))
    received = np.asarray(replace_values(jnp.asarray(table), jnp.asarray(image)))
    for channel in range(3):
        wanted = np.bincount(image[..., channel].ravel(), minlength=256)
        np.testing.assert_array_equal(counts[:, channel], wanted)
        np.testing.assert_array_equal(
            received[..., channel], table[image[..., channel], channel]
        )


def test_each_operation_is_drawn_as_often():
    """Of 14 operations with two signs, recognized by their results."""
    image, count = pictures()["smooth"][:12, :16], 1400
    options = Augment(rand_augment=1, rand_augment_magnitude=20)
    many = np.broadcast_to(image, (count, *image.shape))
    results = np.asarray(augmented(key(0), many, np.arange(count), options))
    assert results.dtype == np.uint8
    known: dict[bytes, set] = {}
    for number, name in enumerate(OPERATIONS):
        for sign in (0, 1):
            result = np.asarray(applied(image, number, sign, magnitude=20))
            known.setdefault(result.tobytes(), set()).add((name, sign))
    counts = dict.fromkeys(known, 0)
    for result in results:
        counts[result.tobytes()] += 1
    for result, outcomes in known.items():
        mean = count / (2 * len(OPERATIONS)) * len(outcomes)
        assert abs(counts[result] - mean) < 6 * np.sqrt(mean)


def test_operations_follow_each_other():
    """The results of two operations are those of pairs, and of many pairs."""
    image = pictures()["smooth"][:12, :16]
    every = jax.jit(jax.vmap(lambda x, k, s: apply(x, k, s, 9), in_axes=(None, 0, 0)))
    choices, signs = (x.ravel() for x in np.mgrid[: len(OPERATIONS), :2])
    firsts = np.asarray(every(image, choices, signs))
    pairs = {
        result.tobytes()
        for first in firsts
        for result in np.asarray(every(first, choices, signs))
    }
    many = np.broadcast_to(image, (100, *image.shape))
    options = Augment(rand_augment=2)
    results = np.asarray(augmented(key(1), many, np.arange(100), options))
    found = {result.tobytes() for result in results}
    assert found <= pairs
    assert len(found) > 60


def test_the_result_depends_on_the_step_and_the_example_alone():
    image = pictures()["noise"][:12, :16]
    many = np.broadcast_to(image, (16, *image.shape))
    options = Augment(rand_augment=2)
    index = np.arange(50, 66)
    whole = np.asarray(augmented(key(3), many, index, options))
    part = np.random.default_rng(1).permutation(16)[:5]
    alone = augmented(key(3), many[part], index[part], options)
    np.testing.assert_array_equal(alone, whole[part])
    for step, examples in ((4, index), (3, index + 16)):
        other = np.asarray(augmented(key(step), many, examples, options))
        assert (other != whole).any()


def test_by_default_nothing_is_done():
    images = pictures()["noise"][None]
    received = augmented(key(0), images, np.arange(1), Augment())
    np.testing.assert_array_equal(received, images)
