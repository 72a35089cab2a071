"""NumPy archives: their splits, sizes and classes, and what is refused."""

import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from shiftjax.errors import InputError, MissingFileError
from train.data.image_set import ImageSet
from train.data.sources import load_source


@pytest.fixture
def save(tmp_path):
    """Returns a function that writes an archive and gives the name of its source."""

    def save(**arrays):
        np.savez(tmp_path / "set.npz", **arrays)
        return f"npz:{tmp_path / 'set.npz'}"

    return save


def read(source, split="train", **options):
    found = load_source(source, split, **{"image_size": 8, **options})
    assert isinstance(found, ImageSet)
    return found


def test_splits_and_names_are_those_of_the_file(save, noise):
    images = {split: noise(6, 8, 8, 3) for split in ("train", "val", "test")}
    labels = {split: noise(6, 1) % 3 for split in images}  # as MedMNIST has them
    arrays = {f"{split}_images": x for split, x in images.items()}
    arrays |= {f"{split}_labels": x for split, x in labels.items()}
    source = save(**arrays, class_names=["a", "b", "c", "d"], other=[1])
    for ours, theirs in (("train", "train"), ("validation", "val"), ("test", "test")):
        found = read(source, ours)
        assert found.class_names == ("a", "b", "c", "d")
        np.testing.assert_array_equal(found.images, images[theirs])
        assert found.labels.tolist() == labels[theirs][:, 0].tolist()
    assert len(read(source, "train+validation")) == 12


def test_arrays_without_splits_have_numbers_as_classes(save, noise):
    images, labels = noise(20, 8, 8), np.arange(20) % 5
    source = save(images=images, labels=labels)
    parts = [
        read(source, split, channels=1, validation_examples=4)
        for split in ("train", "validation", "test")
    ]
    assert [len(part) for part in parts] == [12, 4, 4]
    assert parts[2].class_names == ("0", "1", "2", "3", "4")
    wanted = {
        image.tobytes(): label for image, label in zip(images, labels, strict=True)
    }
    found = {
        image.tobytes(): label
        for part in parts
        for image, label in zip(part.images, part.labels, strict=True)
    }
    assert found == wanted


@pytest.mark.parametrize("shape", [(12, 10, 3), (12, 10), (8, 8), (12, 10, 1)])
@pytest.mark.parametrize("options", [{}, {"channels": 1}, {"resize": 9}])
def test_images_are_those_of_a_folder_of_the_same_png_files(
    save, noise, tmp_path, shape, options
):
    images, labels = noise(10, *shape), np.repeat([0, 1], 5)
    source = save(train_images=images, train_labels=labels)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "files" / "train" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(folder / f"{i}.png")
    ours = read(source, "test", **options)
    theirs = read(f"folder:{tmp_path}/files", "test", **options)
    assert len(ours) == 2
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(ours.labels, theirs.labels)


IMAGES, LABELS = np.zeros([4, 8, 8], np.uint8), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": None}, "has no array 'images'; it has labels"),
        ({"labels": None}, "has no array 'labels'; it has images"),
        ({"test_images": IMAGES}, "has no array 'test_labels'; it has images, labels"),
        ({"images": None, "labels": None}, "no array 'train_images'; it has none"),
        ({"labels": LABELS[:3]}, "has 4 images and 3 labels"),
        ({"labels": LABELS * 0.5}, r"labels must be integers .*, not float64 \[4\]"),
        ({"labels": LABELS > 0}, r"labels must be integers .*, not bool \[4\]"),
        ({"labels": np.eye(4, dtype=int)}, r"or \[examples, 1\], not int64 \[4, 4\]"),
        ({"labels": LABELS - 1}, "labels has the label -1: labels count from 0"),
        ({"labels": LABELS * 10**10}, "the label 10000000000: without names of clas"),
        ({"class_names": ["one"]}, "the label 1, and 1 classes have names"),
        ({"class_names": [1, 2]}, r"class_names must be strings .*, not int64 \[2\]"),
        ({"class_names": np.array(["a", 1], object)}, "class_names cannot be read"),
        ({"images": IMAGES / 255}, r"images must be uint8 .*, not float64 \[4, 8, 8\]"),
        ({"images": IMAGES[:, None]}, r"1 or 3\], not uint8 \[4, 1, 8, 8\]"),
        ({"images": IMAGES[0]}, r"images must be uint8 .*, not uint8 \[8, 8\]"),
        ({"images": IMAGES[:0]}, r"images is empty, of shape \[0, 8, 8\]"),
    ],
)
def test_arrays_of_another_kind_are_refused_in_one_line(save, arrays, message):
    given = {"images": IMAGES, "labels": LABELS} | arrays
    source = save(**{name: x for name, x in given.items() if x is not None})
    with pytest.raises(InputError, match=message) as error:
        read(source)
    assert re.search(r"set\.npz\b", str(error.value))
    assert "\n" not in str(error.value)


def test_a_label_without_a_class_is_found_before_its_split_is_read(save):
    others = {"test_images": IMAGES, "test_labels": LABELS - 1}
    source = save(train_images=IMAGES, train_labels=LABELS, **others)
    with pytest.raises(InputError, match="test_labels has the label -1"):
        read(source)


def test_missing_and_damaged_files_are_named(save, tmp_path):
    with pytest.raises(MissingFileError, match=r"npz:no/set\.npz: there is no such"):
        read("npz:no/set.npz")
    source = save(images=IMAGES, labels=LABELS)
    file = tmp_path / "set.npz"
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        start = archive.getinfo("images.npy").header_offset + 300
    file.write_bytes(whole[:start] + b"X" + whole[start + 1 :])
    with pytest.raises(InputError, match=r"set\.npz: images cannot be read"):
        read(source)
    for content in (whole[:-30], b"no archive", b""):
        file.write_bytes(content)
        with pytest.raises(InputError, match="is not a whole archive of numpy"):
            read(source)
    with file.open("wb") as out:
        np.save(out, IMAGES)
    with pytest.raises(InputError, match="is one array"):
        read(source)


def test_a_file_without_permission_is_named(save, refuse):
    source = save(images=IMAGES, labels=LABELS)
    refuse("open")
    with pytest.raises(
        InputError, match=r"set\.npz cannot be read: Permission denied$"
    ):
        read(source)


def test_random_crops_are_refused(save):
    source = save(images=IMAGES, labels=LABELS)
    with pytest.raises(InputError, match=r"those of npz:.* are in memory"):
        read(source, crop_scale=(0.5, 1.0), validation_examples=0)
