"""The names of sources, and what is said of wrong ones."""

import pytest

from shiftjax.errors import InputError, MissingFileError, UnknownNameError
from train.data.sources import load


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("cifar10", "did you mean 'tfds:cifar10'"),
        ("tdfs:cifar100", "did you mean 'tfds:cifar100'"),
        ("digits:8", "did you mean 'digits'"),
        ("", "unknown source ''"),
    ],
)
def test_an_unknown_source_is_named_with_the_nearest_one(source, message):
    with pytest.raises(UnknownNameError, match=message):
        load(source, "train")


@pytest.mark.parametrize("source", ["tfds:", "folder:", "tfds"])
def test_a_source_without_a_name_is_refused(source):
    with pytest.raises(InputError, match=f"'{source}' names no data"):
        load(source, "train")


def test_an_unknown_split_is_named_before_anything_is_read():
    with pytest.raises(UnknownNameError, match="unknown split 'tests': did you mean"):
        load("tfds:not_there", "tests")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size 0"),
        ({"channels": 4}, r"channels 4 .* 3 \(RGB\)"),
    ],
)
def test_sizes_that_no_picture_can_have(options, message):
    with pytest.raises(InputError, match=message):
        load("digits", "train", **options)


def test_missing_data_say_what_to_run_and_where_was_looked(tmp_path):
    with pytest.raises(MissingFileError) as error:
        load("tfds:cifar10", "train")
    message = str(error.value)
    assert "`python -m train prepare cifar10`" in message
    assert str(tmp_path / "default") in message
    assert "\n" not in message
    with pytest.raises(MissingFileError, match="tfds build imagenette --file_format="):
        load("tfds:imagenette", "train", data_dir=str(tmp_path))


def test_addresses_elsewhere_are_refused():
    with pytest.raises(InputError, match=r"gs://bucket/sets.*only local folders"):
        load("tfds:cifar10", "train", data_dir="gs://bucket/sets")
