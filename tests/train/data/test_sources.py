"""The names of sources, and what is said of wrong ones."""

import numpy as np
import pytest

from shiftjax.errors import InputError, MissingFileError, UnknownNameError
from train.config import Config, Data, absolute, published
from train.data import sources, splits
from train.data.image_set import ImageSet
from train.data.sources import Request, Source, load_source


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
        load_source(source, "train")


def test_every_source_with_a_path_is_known_as_one(monkeypatch, tmp_path):
    """It is recorded from the root, and released by its name."""
    monkeypatch.chdir(tmp_path)
    forms = [form for source in sources.SOURCES.values() for form in source.forms]
    kinds = {form.removesuffix("PATH") for form in forms if form.endswith(":PATH")}
    assert kinds == {"folder:", "npz:", "tar:", "hf:"}
    for kind in kinds:
        run = absolute(Config(data=Data(f"{kind}nets/cells")))
        assert run.data.source == f"{kind}{tmp_path}/nets/cells"
        assert published(run).data.source == f"{kind}cells"


@pytest.mark.parametrize("source", ["tfds:", "folder:", "tfds"])
def test_a_source_without_a_name_is_refused(source):
    with pytest.raises(InputError, match=f"'{source}' names no data"):
        load_source(source, "train")


def test_an_unknown_split_is_named_before_anything_is_read():
    with pytest.raises(UnknownNameError, match="unknown split 'tests': did you mean"):
        load_source("tfds:not_there", "tests")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"channels": 4}, r"channels=4: .* 3 \(RGB\)"),
        ({"image_size": 32, "resize": 31}, "resize=31: it must be at least image_size"),
    ],
)
def test_sizes_that_no_picture_can_have(options, message):
    with pytest.raises(InputError, match=message):
        load_source("digits", "train", **options)


def test_missing_data_say_what_to_run_and_where_was_looked(tmp_path):
    with pytest.raises(MissingFileError) as error:
        load_source("tfds:cifar10", "train")
    message = str(error.value)
    assert "`python -m train prepare cifar10`" in message
    assert str(tmp_path / "default") in message
    assert "\n" not in message
    with pytest.raises(MissingFileError, match="tfds build imagenette --file_format="):
        load_source("tfds:imagenette", "train", data_dir=str(tmp_path))


def test_addresses_elsewhere_are_refused():
    with pytest.raises(InputError, match=r"gs://bucket/sets.*only local folders"):
        load_source("tfds:cifar10", "train", data_dir="gs://bucket/sets")


def open_ramp(request: Request) -> splits.OfficialSplits:
    """Ten images of each of so many grey values as the name says."""

    def read(split: str) -> ImageSet:
        labels = np.repeat(np.arange(int(request.name), dtype=np.int32), 10)
        shape = (len(labels), *request.image_shape)
        images = np.broadcast_to(labels[:, None, None, None], shape).astype(np.uint8)
        return ImageSet(images, labels, tuple(map(str, range(int(request.name)))))

    return splits.assign(f"ramp:{request.name}", ["train", "test"], read)


def test_a_new_source_is_a_row(monkeypatch):
    row = {"ramp": Source(open_ramp, ("ramp:VALUES",))}
    monkeypatch.setattr(sources, "SOURCES", sources.SOURCES | row)
    train = load_source("ramp:4", "train", image_size=8, validation_examples=8)
    assert train.images.shape == (32, 8, 8, 3)
    assert train.num_classes == 4
    np.testing.assert_array_equal(train.images[:, 0, 0, 0], train.labels)
    assert len(load_source("ramp:4", "test", image_size=8)) == 40
    with pytest.raises(InputError, match=r"'ramp:' names no data: .*, ramp:VALUES"):
        load_source("ramp:", "train")
    with pytest.raises(UnknownNameError, match="did you mean 'ramp:VALUES'"):
        load_source("rump:VALUES", "train")
