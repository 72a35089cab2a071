"""Random-resized crops: their boxes, and the random numbers that they are drawn by."""

import math

import numpy as np
import pytest

from train.data.random_crop import TRIES, random_box, uniforms

SCALE = (0.08, 1.0)
SIZES = [(500, 375), (375, 500), (64, 64), (1000, 100), (30, 900), (1, 1), (3, 2)]


def numbers(seed=0, epoch=0, examples=1000):
    return np.stack([uniforms(seed, epoch, i) for i in range(examples)])


def torchvision_box(width, height, draws, scale):
    """RandomResizedCrop.get_params, with the given numbers instead of torch's."""
    area = width * height
    for one in draws:
        target = area * (scale[0] * (1 - one[0]) + scale[1] * one[0])
        aspect = np.exp(np.log(3 / 4) * (1 - one[1]) + np.log(4 / 3) * one[1])
        w = int(np.rint(np.sqrt(target * aspect)))
        h = int(np.rint(np.sqrt(target / aspect)))
        if 0 < w <= width and 0 < h <= height:
            i, j = int(one[2] * (height - h + 1)), int(one[3] * (width - w + 1))
            return j, i, j + w, i + h
    if width / height < 3 / 4:
        w, h = width, int(np.rint(width / (3 / 4)))
    elif width / height > 4 / 3:
        w, h = int(np.rint(height * (4 / 3))), height
    else:
        w, h = width, height
    i, j = (height - h) // 2, (width - w) // 2
    return j, i, j + w, i + h


@pytest.mark.parametrize("size", SIZES)
def test_boxes_are_those_of_torchvision(size):
    for draws in numbers(examples=300):
        assert random_box(*size, draws, SCALE) == torchvision_box(*size, draws, SCALE)


def test_an_image_in_which_no_box_fits_is_cropped_in_its_center():
    """The largest box of an allowed aspect ratio: 100 / (4 / 3) = 133 / 1.33."""
    whole = np.full((TRIES, 4), 0.999)
    assert random_box(1000, 100, whole, SCALE) == (433, 0, 566, 100)
    assert random_box(30, 900, whole, SCALE) == (0, 430, 30, 470)


def test_area_shape_and_place_have_their_distributions():
    """Means and variances, within 5 standard errors. In a square image every box of
    at most half of its area fits, so none is drawn again.
    """
    count, side, scale = 4000, 10_000, (0.1, 0.5)
    boxes = np.array(
        [random_box(side, side, x, scale) for x in numbers(examples=count)]
    )
    left, top, right, bottom = boxes.T.astype(float)
    w, h = right - left, bottom - top
    for values, low, high in (
        (w * h / side**2, *scale),
        (np.log(w / h), math.log(3 / 4), math.log(4 / 3)),
        (left / (side - w), 0, 1),
        (top / (side - h), 0, 1),
    ):
        deviation = (high - low) / math.sqrt(12)
        assert values.min() > low - 1e-3
        assert values.max() < high + 1e-3
        error = 5 * deviation / math.sqrt(count)
        assert abs(values.mean() - (low + high) / 2) < error
        # The kurtosis of a uniform number is 9/5: its variance has less than its error.
        assert abs(values.std() - deviation) < error
    together = np.corrcoef(
        np.stack([w * h, w / h, left / (side - w), top / (side - h)])
    )
    assert np.abs(together - np.eye(4)).max() < 5 / math.sqrt(count)


def test_numbers_depend_on_seed_epoch_and_example_alone():
    one = numbers(examples=50)
    assert one.shape == (50, TRIES, 4)
    assert (one >= 0).all()
    assert (one < 1).all()
    np.testing.assert_array_equal(uniforms(0, 0, 7), one[7])
    other_epoch, other_seed = numbers(epoch=1, examples=50), numbers(1, examples=50)
    everything = np.concatenate([one, other_epoch, other_seed]).ravel()
    assert len(np.unique(everything)) == len(everything)
