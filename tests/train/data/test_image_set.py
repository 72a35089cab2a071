"""The checks of an ImageSet."""

import numpy as np
import pytest

from shiftjax.errors import InputError
from train.data.image_set import ImageSet

IMAGES = np.zeros([3, 8, 8, 3], np.uint8)
LABELS = np.array([0, 1, 1], np.int32)


def test_length_classes_and_selection():
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    whole = ImageSet(images, LABELS, ("a", "b"))
    part = whole.take(np.array([2, 0]))
    assert (len(whole), whole.num_classes, len(part)) == (3, 2, 2)
    assert part.images.ravel().tolist() == [2, 0]
    assert part.labels.tolist() == [1, 0]
    assert part.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("images", "labels", "named"),
    [
        (IMAGES.astype(np.float32), LABELS, "float32"),
        (IMAGES[0], LABELS, r"\[8, 8, 3\]"),
        (IMAGES[..., :2], LABELS, "1 or 3 channels"),
        (IMAGES, LABELS.astype(np.int64), "int64"),
        (IMAGES, LABELS[:2], r"int32 \[3\]"),
        (IMAGES, LABELS + 1, r"0..1 \(2 classes\), not in 1..2"),
        (IMAGES, LABELS - 1, "not in -1..0"),
    ],
)
def test_what_does_not_fit_is_refused(images, labels, named):
    with pytest.raises(InputError, match=named):
        ImageSet(images, labels, ("a", "b"))


def test_an_empty_set_is_allowed():
    assert len(ImageSet(IMAGES[:0], LABELS[:0], ("a", "b"))) == 0
