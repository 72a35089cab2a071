"""The digits against scikit-learn's own arrays."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from train.data.sources import load_source


@pytest.fixture(scope="module")
def everything():
    """All digits at their own size, by split."""
    return {
        s: load_source("digits", s, image_size=8, channels=1) for s in ("train", "test")
    }


def test_every_digit_is_in_one_split_with_its_own_values(everything):
    expected = load_digits()
    wanted = sorted(
        (tuple(int(v * 255 / 16 + 0.5) for v in image), int(label))
        for image, label in zip(expected.data, expected.target, strict=True)
    )
    whole = load_source("digits", "train+validation", image_size=8, channels=1)
    parts = (whole, everything["test"])
    assert [len(part) for part in parts] == [1437, 360]
    received = sorted(
        (tuple(image.ravel().tolist()), int(label))
        for part in parts
        for image, label in zip(part.images, part.labels, strict=True)
    )
    assert received == wanted


def test_the_test_split_has_a_fifth_of_each_class(everything):
    totals = np.bincount(load_digits().target)
    received = np.bincount(everything["test"].labels)
    assert (np.abs(received - totals * 360 / 1797) <= 1).all()


def test_the_default_validation_split_is_a_tenth(everything):
    assert len(everything["train"]) == 1437 - 143


def bilinear(image, size):
    """Enlarges by linear interpolation between pixel centres, in plain loops."""
    scale = image.shape[0] / size
    last = image.shape[0] - 1
    result = np.empty((size, size))
    for y in range(size):
        for x in range(size):
            v, u = (y + 0.5) * scale - 0.5, (x + 0.5) * scale - 0.5
            top, left = int(np.floor(v)), int(np.floor(u))
            total = 0.0
            for dy in (0, 1):
                for dx in (0, 1):
                    weight = abs(1 - dy - (v - top)) * abs(1 - dx - (u - left))
                    py = min(max(top + dy, 0), last)
                    px = min(max(left + dx, 0), last)
                    total += weight * image[py, px]
            result[y, x] = total
    return result


def test_enlarging_is_bilinear_and_grey_is_repeated(everything):
    small = everything["test"]
    large = load_source("digits", "test", image_size=32)
    assert large.images.shape == (360, 32, 32, 3)
    assert (large.images == large.images[..., :1]).all()
    assert np.array_equal(large.labels, small.labels)
    for i in (0, 100, 359):
        expected = bilinear(small.images[i, ..., 0].astype(float), 32)
        # Pillow rounds after each of the two directions.
        assert np.abs(large.images[i, ..., 0] - expected).max() <= 1


def test_class_names():
    names = load_source("digits", "test").class_names
    assert names == tuple("0123456789")
