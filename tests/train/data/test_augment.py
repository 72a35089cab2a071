"""Augmentation: what comes out is one of what may come out, and each about as often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from train.config import Augment
from train.data.augment import crop_and_flip, erase, jitter, mix, normalize

pytestmark = pytest.mark.usefixtures("quick")

CROP = Augment(crop_padding=2, flip=False)
FLIP = Augment(crop_padding=0, flip=True)
BOTH = Augment(crop_padding=2, flip=True)
NEITHER = Augment(crop_padding=0, flip=False)

augmented = jax.jit(crop_and_flip, static_argnames="options")
mixed = jax.jit(mix, static_argnames="options")


def key(step: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(0), step)


def pictures(count: int) -> np.ndarray:
    """Noise, of another height than width, so that every crop is another picture."""
    return np.random.default_rng(0).integers(1, 256, (count, 5, 7, 3), np.uint8)


def outcomes(image: np.ndarray, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """Every crop of the picture with zeros around it, and its mirror image."""
    height, width, _ = image.shape
    wide = np.zeros((height + 2 * padding, width + 2 * padding, 3), image.dtype)
    wide[padding : padding + height, padding : padding + width] = image
    found = {}
    for dy in range(2 * padding + 1):
        for dx in range(2 * padding + 1):
            crop = wide[dy : dy + height, dx : dx + width]
            found[crop.tobytes()] = (dy, dx, False)
            found[crop[:, ::-1].tobytes()] = (dy, dx, True)
    return found


# --- crops and mirror images --------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_every_result_is_a_crop_mirrored_or_not(dtype):
    images = pictures(64).astype(dtype)
    results = augmented(key(0), images, np.arange(64), BOTH)
    assert results.dtype == images.dtype
    assert results.shape == images.shape
    for image, result in zip(images, np.asarray(results), strict=True):
        assert result.tobytes() in outcomes(image, 2)


@pytest.mark.parametrize(
    ("options", "possible"), [(CROP, 25), (FLIP, 2), (BOTH, 50)], ids=str
)
def test_all_outcomes_are_equally_likely(options, possible):
    """Chi-squared of 5000 examples: a fair draw exceeds its mean by 7 deviations, of
    sqrt(2 * degrees of freedom), less than once in 100,000 keys; this one is fixed.
    """
    draws = 5000
    image = pictures(1)
    many = np.broadcast_to(image, (draws, *image.shape[1:]))
    results = np.asarray(augmented(key(1), many, np.arange(draws), options))
    known = outcomes(image[0], options.crop_padding)
    counts: dict = {}
    for result in results:
        outcome = known[result.tobytes()]
        counts[outcome] = counts.get(outcome, 0) + 1
    assert len(counts) == possible
    expected = draws / possible
    deviation = sum((n - expected) ** 2 / expected for n in counts.values())
    freedom = possible - 1
    assert deviation < freedom + 7 * np.sqrt(2 * freedom)


def test_without_either_images_stay():
    images = pictures(8)
    np.testing.assert_array_equal(
        augmented(key(0), images, np.arange(8), NEITHER), images
    )


def test_the_result_depends_on_the_step_and_the_example_alone():
    """Not on the place in the batch, nor on what else is in it."""
    images = pictures(64)
    index = np.arange(100, 164)
    whole = np.asarray(augmented(key(3), images, index, BOTH))
    order = np.random.default_rng(1).permutation(64)
    for part in (order, order[:7], order[40:], order[5:6]):
        alone = augmented(key(3), images[part], index[part], BOTH)
        np.testing.assert_array_equal(alone, whole[part])


@pytest.mark.parametrize("change", ["step", "example"])
def test_another_step_or_example_is_another_draw(change):
    image = np.broadcast_to(pictures(1), (64, 5, 7, 3))
    index = np.arange(64)
    one = np.asarray(augmented(key(0), image, index, BOTH))
    if change == "step":
        other = np.asarray(augmented(key(1), image, index, BOTH))
    else:
        other = np.asarray(augmented(key(0), image, index + 64, BOTH))
    same = (one == other).all((1, 2, 3)).sum()
    assert same < 12  # of 50 outcomes: 1.3 are expected


def test_normalisation():
    """Float32: differences of numbers up to 255, rounded, over 255 * std > 50."""
    images = np.arange(256, dtype=np.uint8).reshape(1, 8, 32, 1).repeat(3, -1)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    received = normalize(jnp.asarray(images), mean, std)
    assert received.dtype == jnp.float32
    wanted = (images.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(received, wanted, rtol=0, atol=1e-6)


# --- color jitter -------------------------------------------------------------------

jittered = jax.jit(jitter, static_argnames="options")
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def test_jitter_is_three_of_pillows_enhancements_in_random_order():
    """The order and the factors are drawn again here, as documented; a blend of
    rounded numbers may be off by one, and three in a row by a few.
    """
    options = Augment(jitter=0.4)
    images = pictures(20)
    results = np.asarray(jittered(key(2), images, np.arange(20), options))
    orders = set()
    for i, (image, result) in enumerate(zip(images, results, strict=True)):
        keys = jax.random.split(jax.random.fold_in(key(2), i))
        order = tuple(map(int, jax.random.permutation(keys[0], 3)))
        factors = jax.random.uniform(keys[1], (3,), minval=0.6, maxval=1.4)
        wanted = Image.fromarray(image)
        for kind in order:
            wanted = ENHANCERS[kind](wanted).enhance(float(factors[kind]))
        assert np.abs(result.astype(int) - np.asarray(wanted)).max() <= 3
        orders.add(order)
    assert len(orders) > 3


def test_factors_of_jitter_are_uniform():
    """Of a gray image without contrast only the brightness changes."""
    image = np.full((4000, 2, 2, 3), 100, np.uint8)
    results = np.asarray(jittered(key(0), image, np.arange(4000), Augment(jitter=0.5)))
    assert np.ptp(results, (1, 2, 3)).max() == 0
    factors = results[:, 0, 0, 0] / 100
    assert factors.min() >= 0.49  # rounded down
    assert factors.max() <= 1.5
    counts, _ = np.histogram(factors, 10, (0.495, 1.495))
    # 400 in each of ten intervals, within 6 standard deviations of 19
    assert np.abs(counts - 400).max() < 114


# --- random erasing -----------------------------------------------------------------

erased = jax.jit(erase, static_argnames="options")


def test_erasing_sets_one_rectangle_to_zero():
    count, height, width = 2000, 20, 30
    images = np.ones((count, height, width, 3), np.float32)
    results = np.asarray(erased(key(0), images, np.arange(count), Augment(erase=0.3)))
    holes = results == 0
    assert ((results == 1) | holes).all()
    assert (holes == holes[..., :1]).all()
    boxes = holes[..., 0][holes.any((1, 2, 3))]
    # A binomial count, within 6 standard deviations of 20.5
    assert abs(len(boxes) - 600) < 123
    for box in boxes:
        rows, columns = box.any(1), box.any(0)
        np.testing.assert_array_equal(box, rows[:, None] & columns)
        for side in (rows, columns):
            assert np.abs(np.diff(side.astype(int))).sum() <= 2  # in one piece
    tall, wide = boxes.any(2).sum(1), boxes.any(1).sum(1)
    # A side is rounded by half a pixel at most.
    assert ((tall - 0.5) * (wide - 0.5) <= height * width / 3).all()
    assert ((tall + 0.5) * (wide + 0.5) >= height * width * 0.02).all()
    assert ((tall - 0.5) / (wide + 0.5) <= 3.3).all()
    whole = tall == height  # a side that is cut off
    assert ((tall + 0.5) / (wide - 0.5) >= 0.3)[~whole].all()
    assert (boxes.mean((1, 2)) > 0.25).any()
    hit = boxes.mean(0)
    assert hit.min() > 0  # also the corners
    assert hit[10, 15] > 2 * hit[0, 0]


@pytest.mark.parametrize(
    ("function", "options"),
    [(jittered, Augment(jitter=0.5)), (erased, Augment(erase=0.5))],
    ids=["jitter", "erase"],
)
def test_a_draw_depends_on_the_step_and_the_example_alone(function, options):
    images = pictures(16)
    index = np.arange(50, 66)
    whole = np.asarray(function(key(3), images, index, options))
    order = np.random.default_rng(1).permutation(16)
    alone = function(key(3), images[order[:5]], index[order[:5]], options)
    np.testing.assert_array_equal(alone, whole[order[:5]])
    for step, examples in ((4, index), (3, index + 16)):
        assert (
            np.asarray(function(key(step), images, examples, options)) != whole
        ).any()


@pytest.mark.parametrize("function", [jittered, erased], ids=["jitter", "erase"])
def test_by_default_nothing_is_done(function):
    images = pictures(4)
    received = function(key(0), images, np.arange(4), Augment())
    np.testing.assert_array_equal(received, images)


# --- mixup and CutMix ---------------------------------------------------------------

BATCH = 6
EXAMPLES = np.arange(BATCH)
NEIGHBOURS = np.roll(EXAMPLES, 1)
MIXUP = Augment(mixup=0.4)
CUTMIX = Augment(cutmix=1.0)
EITHER = Augment(mixup=0.4, cutmix=1.0)


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Images that tell from each pixel whose it is, and targets of a class each."""
    base = np.random.default_rng(0).normal(size=(1, 8, 10, 3))
    images = base + 10 * np.arange(BATCH)[:, None, None, None]
    return images.astype(np.float32), np.eye(BATCH, dtype=np.float32)


def shares(targets: np.ndarray) -> np.ndarray:
    """Returns the share of each example, and checks that its neighbor has the rest."""
    assert (targets >= 0).all()
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)  # float32
    own = targets[EXAMPLES, EXAMPLES]
    others = targets[EXAMPLES, NEIGHBOURS]
    np.testing.assert_allclose(own + others, 1, atol=1e-6)  # float32
    return own


def draws(options: Augment, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and targets of so many steps."""
    keys = jax.random.split(jax.random.key(5), count)
    many = jax.jit(jax.vmap(lambda k: mix(k, *batch(), EXAMPLES, options)))(keys)
    return np.asarray(many[0]), np.asarray(many[1])


def test_without_mixing_nothing_changes():
    images, targets = batch()
    received = mixed(key(0), images, targets, EXAMPLES, Augment())
    np.testing.assert_array_equal(received[0], images)
    np.testing.assert_array_equal(received[1], targets)


def test_mixup_blends_image_and_target_alike():
    images, _ = batch()
    for step in range(5):
        blended, targets = map(np.asarray, mixed(key(step), *batch(), EXAMPLES, MIXUP))
        own = shares(targets)
        assert len(set(own.round(3))) > 2  # each example has a share of its own
        s = own.astype(np.float64)[:, None, None, None]
        wanted = s * images + (1 - s) * np.roll(images, 1, 0)
        # float32: values up to 60, a share known to 1e-7
        np.testing.assert_allclose(blended, wanted, atol=3e-5)


def test_mixup_draws_from_its_beta_distribution():
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1)), within 6 standard errors."""
    alpha, count = 0.4, 4000
    _, targets = draws(Augment(mixup=alpha), count // BATCH + 1)
    share = targets[:, EXAMPLES, EXAMPLES].astype(np.float64).ravel()
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(share.mean() - 0.5) < 6 * np.sqrt(variance / count)
    # A variable in 0 .. 1 has a fourth central moment of at most a quarter of its
    # variance, which bounds the error of the sample's variance.
    assert abs(share.var() - variance) < 6 * np.sqrt(variance / 4 / count)


def test_cutmix_cuts_boxes_and_shares_the_targets_by_their_pixels():
    images, _ = batch()
    neighbours = np.roll(images, 1, 0)
    cut = np.zeros(images.shape[1:3], int)
    areas = []
    steps = 50
    for patched, targets in zip(*draws(CUTMIX, steps), strict=True):
        own = (patched == images).all(-1)
        assert (own | (patched == neighbours).all(-1)).all()
        # The share is a mean of 80 pixels in float32.
        np.testing.assert_allclose(shares(targets), own.mean((1, 2)), atol=1e-6)
        for box in ~own:
            np.testing.assert_array_equal(box, box.any(1)[:, None] & box.any(0))
            for side in (box.any(0), box.any(1)):
                assert np.abs(np.diff(side.astype(int))).sum() <= 2  # in one piece
            cut += box
            areas.append(box.mean())
        assert len({box.tobytes() for box in own}) > 1  # each example has its own
    assert (cut > 0).all()
    assert (cut < steps * BATCH).all()
    assert min(areas) < 0.1
    assert max(areas) > 0.5


def test_with_both_each_example_has_one_of_them_as_often():
    images, _ = batch()
    neighbours = np.roll(images, 1, 0)
    cuts, steps = [], 70
    for one, targets in zip(*draws(EITHER, steps), strict=True):
        shares(targets)
        own, other = (one == images).all(-1), (one == neighbours).all(-1)
        cuts.append((own | other).all((1, 2)))
    # A fair coin, within 6 standard deviations of 10.2; mixup with a share that rounds
    # to 0 or 1 looks like a cut, but is rarer than that.
    assert abs(np.sum(cuts) - steps * BATCH / 2) < 62
    assert any(0 < sum(batch) < BATCH for batch in cuts)


@pytest.mark.parametrize("options", [MIXUP, CUTMIX, EITHER], ids=str)
def test_the_share_depends_on_the_step_and_the_example_alone(options):
    """Not on the place in the batch, nor on the neighbor."""
    images, targets = batch()
    whole = shares(np.asarray(mixed(key(3), images, targets, EXAMPLES + 9, options)[1]))
    part = np.array([4, 1, 2])
    some = mixed(key(3), images[part], targets[part], part + 9, options)[1]
    np.testing.assert_array_equal(np.asarray(some)[np.arange(3), part], whole[part])
    other = mixed(key(4), images, targets, EXAMPLES + 9, options)[1]
    assert (shares(np.asarray(other)) != whole).any()
