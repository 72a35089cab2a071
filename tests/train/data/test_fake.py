"""Random images of any number."""

import numpy as np
import pytest

from shiftjax.errors import InputError
from train.data.encoded import Encoded
from train.data.image_set import ImageSet
from train.data.sources import load_source


def test_any_number_of_images_takes_no_memory():
    train = load_source("fake:1000000", "train", image_size=224, validation_examples=10)
    assert isinstance(train, Encoded)
    assert (len(train), train.num_classes) == (999_990, 1000)
    assert len(load_source("fake:1000000", "test")) == 100_000
    images, labels = train.batch(np.array([999_989, 5]))
    assert images.shape == (2, 224, 224, 3)
    assert (images[0] != images[1]).mean() > 0.99
    assert labels.dtype == np.int32


def test_images_are_the_same_in_every_batch_and_uniform():
    one = load_source("fake:40x3", "train+validation", image_size=9)
    images, labels = one.batch(np.arange(40))
    again, _ = one.batch(np.array([7, 39]))
    np.testing.assert_array_equal(again, images[[7, 39]])
    assert labels.tolist() == [i % 3 for i in range(40)] == one.labels.tolist()
    assert one.class_names == ("0", "1", "2")
    # The mean of 40 * 9 * 9 * 3 values of deviation 74, within 5 standard errors.
    assert abs(images.mean() - 127.5) < 5 * 74 / np.sqrt(images.size)
    assert len({image.tobytes() for image in images}) == 40
    test, _ = load_source("fake:40x3", "test", image_size=9).batch(np.arange(4))
    assert not {x.tobytes() for x in test} & {x.tobytes() for x in images}


def test_they_can_be_kept_in_memory():
    memory = load_source("fake:40x3", "test", image_size=9, decode="once")
    assert isinstance(memory, ImageSet)
    images, _ = load_source("fake:40x3", "test", image_size=9).batch(np.arange(4))
    np.testing.assert_array_equal(memory.images, images)


@pytest.mark.parametrize("name", ["many", "0", "10x0", "10x", "-3", "10x3x4"])
def test_another_name_is_refused(name):
    with pytest.raises(InputError, match=r"must be fake:COUNT or fake:COUNTxCLASSES"):
        load_source(f"fake:{name}", "train")
