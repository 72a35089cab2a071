"""TFDS data sets: read as they were written, found by name, refused where unfit."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from shiftjax.errors import InputError, MissingFileError, UnknownNameError
from train.data import cache
from train.data.encoded import Encoded
from train.data.sources import load_source

ROOT = Path(__file__).parents[3]


def examples(noise, count, *shape):
    return [(noise(*shape), i % 3) for i in range(count)]


def cache_entries():
    folder = cache.cache_directory() / "data"
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_200_pictures_come_back_in_the_order_of_tfds(noise, write_tfds):
    written = {"train": examples(noise, 200, 32, 32, 3)}
    written["test"] = examples(noise, 30, 32, 32, 3)
    data_dir = write_tfds(written, shape=(32, 32, 3))
    for ours, theirs in (("train+validation", "train"), ("test", "test")):
        received = load_source("tfds:tiny", ours, data_dir=data_dir)
        builder = tfds.builder_from_directory(f"{data_dir}/tiny/1.0.0")
        expected = list(builder.as_data_source(theirs))
        assert np.array_equal(received.images, [e["image"] for e in expected])
        assert received.labels.tolist() == [e["label"] for e in expected]
        assert received.class_names == ("class0", "class1", "class2")
        pairs = zip(received.images, received.labels, strict=True)
        assert sorted((i.tobytes(), label) for i, label in pairs) == sorted(
            (i.tobytes(), label) for i, label in written[theirs]
        )


def test_the_second_loading_comes_from_the_cache(noise, write_tfds, monkeypatch):
    data_dir = write_tfds({"train": examples(noise, 20, 32, 32, 3)})
    first = load_source("tfds:tiny", "train", data_dir=data_dir)
    monkeypatch.setattr(Encoded, "decoded", lambda _: pytest.fail("decoded again"))
    second = load_source("tfds:tiny", "train", data_dir=data_dir)
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.labels, second.labels)
    assert first.class_names == second.class_names
    assert len(cache_entries()) == 1


def test_changed_records_and_other_sizes_are_decoded_anew(noise, write_tfds):
    data_dir = write_tfds({"train": examples(noise, 20, 32, 32, 3)})
    load_source("tfds:tiny", "train", data_dir=data_dir)
    load_source("tfds:tiny", "train", data_dir=data_dir, image_size=16)
    load_source("tfds:tiny", "train", data_dir=data_dir, channels=1)
    assert len(cache_entries()) == 3
    (records,) = Path(data_dir).rglob("*.array_record*")
    os.utime(records, ns=(1, 1))
    load_source("tfds:tiny", "train", data_dir=data_dir)
    assert len(cache_entries()) == 4


def test_the_cache_can_be_turned_off(noise, write_tfds):
    data_dir = write_tfds({"train": examples(noise, 20, 32, 32, 3)})
    load_source("tfds:tiny", "train", data_dir=data_dir, use_cache=False)
    assert cache_entries() == []


def test_pictures_of_all_sizes_and_kinds_come_out_alike(noise, write_tfds):
    def jpeg(height, width):
        buffer = io.BytesIO()
        Image.fromarray(noise(height, width, 3)).save(buffer, "JPEG")
        return io.BytesIO(buffer.getvalue())

    sizes = [(40, 60), (300, 200), (8, 9), (32, 32)]
    written = [(jpeg(*size), 0) for size in sizes]
    data_dir = write_tfds({"train": [(noise(9, 9, 3), 1)], "test": written})
    received = load_source("tfds:tiny", "test", data_dir=data_dir, image_size=24)
    assert received.images.shape == (4, 24, 24, 3)


def test_grey_pictures(noise, write_tfds):
    written = [(noise(28, 28, 1), i % 3) for i in range(10)]
    as_pictures = [(Image.fromarray(image[..., 0]), label) for image, label in written]
    data_dir = write_tfds({"train": as_pictures}, shape=(28, 28, 1))
    options = {"data_dir": data_dir, "image_size": 28}
    three = load_source("tfds:tiny", "train+validation", **options)
    one = load_source("tfds:tiny", "train+validation", channels=1, **options)
    assert np.array_equal(three.images, np.repeat(one.images, 3, axis=3))


def test_supervised_keys_of_other_names(noise, write_tfds):
    data_dir = write_tfds(
        {"train": examples(noise, 20, 16, 16, 3)}, keys=("photo", "species")
    )
    received = load_source("tfds:tiny", "train", data_dir=data_dir, image_size=16)
    assert received.num_classes == 3


def test_sets_that_are_no_classification_are_refused(noise, write_tfds):
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.Text(),
    }
    data_dir = write_tfds({"train": [(noise(9, 9, 3), "a cat")]}, features=features)
    with pytest.raises(InputError, match=r"tiny/1\.0\.0 is not a set .* label: Text"):
        load_source("tfds:tiny", "train", data_dir=data_dir)


def test_validation_split_of_its_own(noise, write_tfds):
    counts = {"train": 20, "validation": 7, "test": 5}
    data_dir = write_tfds({k: examples(noise, n, 8, 8, 3) for k, n in counts.items()})
    received = {
        split: len(load_source("tfds:tiny", split, data_dir=data_dir, image_size=8))
        for split in (*counts, "train+validation")
    }
    assert received == counts | {"train+validation": 27}


def test_the_test_split_of_imagenet_has_no_labels_and_is_left_alone(noise, write_tfds):
    splits = {"train": examples(noise, 20, 8, 8, 3)}
    splits["validation"] = examples(noise, 7, 8, 8, 3)
    splits["test"] = [(noise(8, 8, 3), -1)]
    options = {"split": "test", "image_size": 8}
    data_dir = write_tfds(splits, name="imagenet2012")
    assert len(load_source("tfds:imagenet2012", data_dir=data_dir, **options)) == 7
    data_dir = write_tfds(splits)
    with pytest.raises(InputError, match=r"0\.\.2 \(3 classes\), not in -1\.\.-1"):
        load_source("tfds:tiny", data_dir=data_dir, **options)


def test_versions(noise, write_tfds):
    for count, version in ((10, "1.9.0"), (20, "1.10.0")):
        data_dir = write_tfds(
            {"train": examples(noise, count, 8, 8, 3)}, version=version
        )
    options = {"split": "train+validation", "data_dir": data_dir, "image_size": 8}
    assert len(load_source("tfds:tiny", **options)) == 16  # four fifths of the newest
    assert len(load_source("tfds:tiny:1.9.0", **options)) == 8
    with pytest.raises(UnknownNameError, match=r"unknown version of tiny '1\.9\.1'"):
        load_source("tfds:tiny:1.9.1", **options)


def test_configs(noise, write_tfds):
    data_dir = write_tfds({"train": examples(noise, 10, 8, 8, 3)}, config="small")
    options = {"split": "train+validation", "data_dir": data_dir, "image_size": 8}
    assert len(load_source("tfds:tiny", **options)) == 8
    write_tfds({"train": examples(noise, 20, 8, 8, 3)}, config="large")
    assert len(load_source("tfds:tiny/large", **options)) == 16
    assert len(load_source("tfds:tiny/small:1.0.0", **options)) == 8
    with pytest.raises(InputError, match="tfds:tiny/large, tfds:tiny/small"):
        load_source("tfds:tiny", **options)
    with pytest.raises(UnknownNameError, match="unknown config of tiny 'smal'"):
        load_source("tfds:tiny/smal", **options)


def test_a_folder_without_permission_is_named(tmp_path, refuse):
    refuse("iterdir")
    with pytest.raises(InputError, match=f"^{tmp_path} cannot be read: Permission de"):
        load_source("tfds:tiny", "train", data_dir=str(tmp_path))


def test_a_wrong_name_lists_what_there_is(noise, write_tfds):
    data_dir = write_tfds({"train": examples(noise, 3, 8, 8, 3)})
    with pytest.raises(MissingFileError, match=r"'tinny' in .*\(there are: tiny\)"):
        load_source("tfds:tinny", "train", data_dir=data_dir)


@pytest.fixture
def directory(noise, write_tfds):
    data_dir = write_tfds({"train": examples(noise, 300, 8, 8, 3)})
    return Path(data_dir) / "tiny" / "1.0.0"


def read(directory, split="train"):
    return load_source(
        "tfds:tiny", split, data_dir=str(directory.parents[1]), image_size=8
    )


def test_another_file_format_says_how_to_get_array_record(directory):
    info = json.loads((directory / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (directory / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=r"tfrecord, .* tiny --file_format=array"):
        read(directory)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_a_directory_that_is_not_whole(directory, file):
    (directory / file).write_text("{")
    with pytest.raises(InputError, match=r"1\.0\.0 is not a whole TFDS data set"):
        read(directory)
    (directory / file).unlink()
    with pytest.raises(InputError, match=r"1\.0\.0 is not a whole TFDS data set"):
        read(directory)


def test_missing_and_damaged_records_are_named(directory):
    (records,) = directory.glob("*.array_record*")
    data = bytearray(records.read_bytes())
    data[len(data) // 2] ^= 1
    records.write_bytes(data)
    message = rf"{re.escape(str(records))} cannot be read \(.*prepare it again"
    with pytest.raises(InputError, match=message):
        read(directory)
    records.unlink()
    with pytest.raises(InputError, match=message):
        read(directory)


@pytest.mark.parametrize("decode", ["once", "each_epoch"])
@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_cut_file_is_named_in_one_line(directory, share, decode):
    (records,) = directory.glob("*.array_record*")
    os.truncate(records, int(share * records.stat().st_size))
    with pytest.raises(InputError) as error:
        load_source(
            "tfds:tiny",
            "train",
            data_dir=str(directory.parents[1]),
            image_size=8,
            decode=decode,
        ).batch(np.arange(3))
    message = str(error.value)
    assert message.startswith(f"{records} cannot be read")
    assert "\n" not in message


def test_a_set_can_be_decoded_at_each_epoch(noise, write_tfds):
    counts = {"train": 40, "test": 5}
    written = {k: examples(noise, n, 30, 40, 3) for k, n in counts.items()}
    options = {"data_dir": write_tfds(written), "image_size": 8}
    for split in ("train", "validation", "train+validation", "test"):
        memory = load_source("tfds:tiny", split, **options)
        encoded = load_source("tfds:tiny", split, decode="each_epoch", **options)
        assert isinstance(encoded, Encoded)
        images, labels = encoded.batch(np.arange(len(memory))[::-1])
        np.testing.assert_array_equal(images, memory.images[::-1])
        np.testing.assert_array_equal(labels, memory.labels[::-1])
        np.testing.assert_array_equal(encoded.labels, memory.labels)


def test_a_test_split_is_cut_without_decoding_an_image(noise, write_tfds, monkeypatch):
    data_dir = write_tfds({"train": examples(noise, 30, 9, 9, 3)})
    monkeypatch.setattr("train.data.decoding.image_files.decode", pytest.fail)
    options = {"data_dir": data_dir, "decode": "each_epoch"}
    test = load_source("tfds:tiny", "test", **options)
    assert np.bincount(test.labels).tolist() == [2, 2, 2]


def test_unlabelled_examples_are_refused_in_a_batch(noise, write_tfds):
    written = {"train": examples(noise, 3, 8, 8, 3), "test": [(noise(8, 8, 3), -1)]}
    options = {"data_dir": write_tfds(written), "image_size": 8}
    test = load_source("tfds:tiny", "test", decode="each_epoch", **options)
    with pytest.raises(InputError, match=r"0\.\.2 \(3 classes\), not in -1\.\.-1"):
        test.batch(np.array([0]))


def test_a_damaged_picture_is_named(noise, write_tfds):
    buffer = io.BytesIO()
    Image.fromarray(noise(40, 40, 3)).save(buffer, "PNG")
    broken = io.BytesIO(buffer.getvalue()[:500])
    data_dir = write_tfds({"train": [(broken, 0)]})
    with pytest.raises(InputError, match=r"train example 0: .* cannot be read as a"):
        load_source("tfds:tiny", "train", data_dir=data_dir)


def test_tensorflow_is_never_imported(directory):
    """In a process of its own: other tests may have imported what they like."""
    program = (
        "import sys; from train.data.sources import load_source; "
        f"folder = {str(directory.parents[1])!r}; "
        "x = load_source('tfds:tiny', 'test', data_dir=folder); "
        "assert 'tensorflow_datasets' in sys.modules; "
        "assert 'tensorflow' not in sys.modules; print(len(x))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "60\n"), done.stderr


def test_the_default_folder_is_that_of_tfds(directory, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(directory.parents[1]))
    assert len(load_source("tfds:tiny", "test")) == 60
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.move(directory.parents[1], tmp_path / "tensorflow_datasets")
    assert len(load_source("tfds:tiny", "test")) == 60
