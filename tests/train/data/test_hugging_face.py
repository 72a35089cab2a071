"""Data sets of Hugging Face on the disk: columns, splits, and what is refused."""

import functools
import sys

import numpy as np
import pytest

from shiftjax.errors import InputError, MissingFileError
from tests.train.data.pngs import assert_any_order, gray_values, numbered, png
from train.data.encoded import Encoded
from train.data.image_set import ImageSet
from train.data.sources import load_source


def test_without_the_library_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = r"hf:.* needs datasets: pip install 'shiftjax\[huggingface\]'"
    with pytest.raises(InputError, match=message):
        load_source(f"hf:{tmp_path}", "train")


def test_a_missing_folder_is_named():
    with pytest.raises(
        MissingFileError, match=r"hf:no/set: there is no .*save_to_disk"
    ):
        load_source("hf:no/set", "train")


@pytest.fixture
def hf(tmp_path, monkeypatch):
    """The library, with its cache in a folder of the test and without its bars."""
    hf = pytest.importorskip("datasets")
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    hf.disable_progress_bars()
    yield hf
    hf.enable_progress_bars()


def entry(encoded):
    """An image as the library keeps it."""
    return {"bytes": encoded, "path": None}


@pytest.fixture
def table(hf):
    """Returns a function that makes a table; an image has its number as gray value."""

    def table(numbers, labels=None, *, names=("cat", "dog"), image="image", **other):
        images = [entry(numbered(i)) for i in numbers]
        labels = [i % 2 for i in numbers] if labels is None else labels
        kind = hf.ClassLabel(names=list(names)) if names else hf.Value("int64")
        features = {image: hf.Image(), "label": kind}
        columns = {image: images, "label": labels}
        for name, (feature, values) in other.items():
            features[name], columns[name] = feature, values
        return hf.Dataset.from_dict(columns, features=hf.Features(features))

    return table


def read(path, split="train", **options):
    options = {"image_size": 8, "validation_examples": 0, **options}
    return load_source(f"hf:{path}", split, **options)


@pytest.fixture
def saved(hf, table, tmp_path):
    """A data set of three splits; the test split is a selection of rows."""
    parts = {"train": table(range(12)), "validation": table([20, 21, 22])}
    parts["test"] = table(range(30, 40)).select([7, 2, 4])
    hf.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def parquet(table, tmp_path):
    """The same images in Parquet files, as the Hub has them."""
    names = {"train-00000-of-00002": range(7), "train-00001-of-00002": range(7, 12)}
    names |= {"validation-00000-of-00001": [20, 21, 22], "test": [37, 32, 34]}
    for name, numbers in names.items():
        path = tmp_path / "parquet" / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table(numbers).to_parquet(path)
    return tmp_path / "parquet"


@pytest.mark.parametrize("form", ["saved", "parquet"])
@pytest.mark.parametrize("decode", ["once", "each_epoch"])
def test_splits_are_read_in_their_order(request, form, decode):
    path = request.getfixturevalue(form)
    expected = {"train": [*range(12)], "validation": [20, 21, 22], "test": [37, 32, 34]}
    for split, numbers in expected.items():
        found = read(path, split, decode=decode)
        assert isinstance(found, ImageSet if decode == "once" else Encoded)
        assert gray_values(found) == numbers
        assert found.labels.tolist() == [i % 2 for i in numbers]
        assert found.class_names == ("cat", "dog")


def test_rows_are_read_in_any_order_and_on_any_number_of_threads(saved):
    assert_any_order(functools.partial(read, saved, decode="each_epoch"))


def test_batches_are_those_of_a_folder_of_the_same_files(hf, tmp_path, noise):
    """Also of images that are files elsewhere, and of a table in another format."""
    images = []
    for i in range(12):
        encoded = entry(png(noise(10 + i, 20 - i, 3)))
        file = tmp_path / "files" / "train" / "ab"[i // 6] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded["bytes"])
        images.append(encoded if i % 2 else {"bytes": None, "path": str(file)})
    features = {"img": hf.Image(), "y": hf.ClassLabel(names=["a", "b"])}
    table = hf.Dataset.from_dict(
        {"img": images, "y": [i // 6 for i in range(12)]}, hf.Features(features)
    )
    table.with_format("numpy").save_to_disk(tmp_path / "set")
    options = {"decode": "each_epoch", "crop_scale": (0.3, 1.0), "resize": 12}
    ours = read(tmp_path / "set", **options)
    theirs = load_source(
        f"folder:{tmp_path}/files",
        "train",
        image_size=8,
        validation_examples=0,
        **options,
    )
    assert ours.class_names == theirs.class_names
    for epoch in (0, 1):
        given = np.array([9, 3, 5]), np.full(3, epoch)
        for one, other in zip(ours.batch(*given), theirs.batch(*given), strict=True):
            np.testing.assert_array_equal(one, other)


def test_labels_may_be_integers_and_images_have_any_name(hf, table, tmp_path):
    other = {"number": (hf.Value("int32"), [5, 6, 7])}
    made = table([1, 2, 3], [0, 2, 2], names=None, image="photo", **other)
    made.save_to_disk(tmp_path / "set")
    found = read(tmp_path / "set", cut_test=False)
    assert gray_values(found) == [1, 2, 3]
    assert found.labels.tolist() == [0, 2, 2]
    assert found.class_names == ("0", "1", "2")


def test_a_split_without_published_labels_is_left_out(hf, table, tmp_path, caplog):
    parts = {"train": table(range(4)), "validation": table([8, 9])}
    parts |= {"test": table([5, 6], [-1, -1]), "more": table([1], [-1])}
    hf.DatasetDict(parts).save_to_disk(tmp_path / "set")
    assert gray_values(read(tmp_path / "set", "test")) == [8, 9]
    assert gray_values(read(tmp_path / "set")) == [0, 1, 2, 3]
    assert sum("test is left out" in message for message in caplog.messages) == 1


def test_a_damaged_image_is_named_or_skipped(table, tmp_path):
    made = table(range(4)).to_dict()
    made["image"][1] = {"bytes": b"no image", "path": None}
    made["image"][2] = None
    table([0]).from_dict(made, table([0]).features).save_to_disk(tmp_path / "set")
    options = {"decode": "each_epoch", "cut_test": False}
    with pytest.raises(InputError, match=r"set: train row [12]: .* be read as an im"):
        gray_values(read(tmp_path / "set", **options))
    assert gray_values(read(tmp_path / "set", **options, on_corrupt="skip")) == [
        0,
        3,
        3,
        3,
    ]


def test_tables_that_cannot_be_used_are_refused_in_one_line(hf, table, tmp_path):
    text, image = (hf.Value("string"), ["a", "b"]), (hf.Image(), [None, None])
    label = (hf.ClassLabel(names=["x"]), [0, 0])
    two = table([1, 2], image="a", b=image)
    cases = [
        (two, "train has 2 columns of type Image, a, b: rename .* to 'image'"),
        (
            table([1, 2], fine=label, coarse=label).remove_columns("label"),
            "2 columns of type ClassLabel .*, fine, coarse: rename .* to 'label'",
        ),
        (
            table([1, 2], text=text).remove_columns("image"),
            "no column of type Image; its columns are label: ClassLabel, text: Value",
        ),
        (table([1, 2]).remove_columns("label"), "no column of type ClassLabel"),
        (table([1, 2], [0, None]), "train has 1 rows without a label"),
        (table([1, 2], [0, -1]), "train has the label -1: labels count from 0"),
        (table([1, 2], [-1, -1]), "has no labels: all are -1"),
        (hf.DatasetDict(all=table([1])), "has the splits all; it needs train or test"),
        (
            hf.DatasetDict(train=table([1]), test=table([1], names=["dog", "cat"])),
            "set10: test has not the same classes as train",
        ),
    ]
    for number, (made, message) in enumerate(cases):
        path = tmp_path / f"set{number + 2}"
        made.save_to_disk(path)
        with pytest.raises(InputError, match=message) as error:
            read(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_what_is_damaged_or_of_another_form_is_named(saved, parquet, tmp_path):
    with pytest.raises(InputError, match="is neither a folder of save_to_disk nor one"):
        read(tmp_path)
    broken = [saved / "train" / "data-00000-of-00001.arrow"]
    broken += [parquet / "data" / "test.parquet"]
    for file, root in zip(broken, (saved, parquet), strict=True):
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(
            InputError, match=f"{root} is not a whole data set"
        ) as error:
            read(root)
        assert "\n" not in str(error.value)
