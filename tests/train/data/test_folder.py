"""Folders of pictures: layouts, order, and what is said of unfit ones."""

import numpy as np
import pytest
from PIL import Image

from shiftjax.errors import InputError, MissingFileError, UnknownNameError
from train.data.sources import load_source


def fill(root, classes, count=3, size=(12, 10), kind="png", start=0):
    """Writes pictures whose value is their number in the folder."""
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(start, start + count):
            Image.new("RGB", size, (i, i, i)).save(root / name / f"{i:03d}.{kind}")


def read(root, split, **options):
    return load_source(f"folder:{root}", split, image_size=8, **options)


def values(pictures):
    return pictures.images[:, 0, 0, 0].tolist()


def test_splits_in_folders(tmp_path):
    fill(tmp_path / "train", ["dog", "cat"])
    fill(tmp_path / "val", ["cat", "dog"], count=2, start=10)
    fill(tmp_path / "test", ["cat", "dog"], count=1, start=20)
    train, validation, test, both = (
        read(tmp_path, s) for s in ("train", "validation", "test", "train+validation")
    )
    assert train.class_names == test.class_names == ("cat", "dog")
    assert values(train) == [0, 1, 2, 0, 1, 2]
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert values(validation) == [10, 11, 10, 11]
    assert values(test) == [20, 20]
    assert len(both) == 10
    assert train.images.shape == (6, 8, 8, 3)


def test_classes_that_are_left_out(tmp_path, caplog):
    """In all splits, with the labels of the others, and in one line of the log."""
    fill(tmp_path / "train", ["ape", "bat", "cat", "dog"], count=2)
    fill(tmp_path / "test", ["bat", "cat", "dog"], count=1, start=20)
    without = frozenset({"ape", "cat", "eel"})
    train, test = (
        read(tmp_path, s, without=without, validation_examples=0)
        for s in ("train", "test")
    )
    assert train.class_names == test.class_names == ("bat", "dog")
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert test.labels.tolist() == [0, 1]
    line = f"{tmp_path}/train: 2 of 4 classes are left out: ape, cat"
    assert caplog.messages.count(line) == 1
    with pytest.raises(InputError, match="one class only, 'dog'"):
        read(tmp_path, "train", without=without | {"bat"})


def test_small_classes_are_left_out(tmp_path, caplog):
    """By their training images, and together with those that are named."""
    for name, count in {"ape": 1, "bat": 2, "cat": 3, "dog": 2, "eel": 1}.items():
        fill(tmp_path / "train", [name], count=count)
        fill(tmp_path / "test", [name], count=1, start=20)
    (tmp_path / "train" / "fox").mkdir()  # without images
    options = {"min_images": 2, "without": frozenset({"dog"})}
    train, test = (
        read(tmp_path, s, validation_examples=0, **options) for s in ("train", "test")
    )
    assert train.class_names == test.class_names == ("bat", "cat")
    assert train.labels.tolist() == [0, 0, 1, 1, 1]
    line = f"{tmp_path}/train: 4 of 6 classes are left out: ape, dog, eel, fox"
    assert caplog.messages.count(line) == 1


def test_no_test_split_is_cut_if_the_test_is_elsewhere(tmp_path):
    fill(tmp_path, ["cat", "dog"], count=10)
    parts = [
        read(tmp_path, split, cut_test=False, validation_examples=4)
        for split in ("train", "validation")
    ]
    assert [len(part) for part in parts] == [16, 4]


def test_train_and_val_only(tmp_path):
    fill(tmp_path / "train", ["cat", "dog"], count=10)
    fill(tmp_path / "validation", ["cat", "dog"], count=1, start=50)
    assert values(read(tmp_path, "test")) == [50, 50]
    assert len(read(tmp_path, "validation", validation_examples=4)) == 4
    assert len(read(tmp_path, "train", validation_examples=4)) == 16


def test_classes_only(tmp_path):
    fill(tmp_path, ["cat", "dog", "eel"], count=10)
    parts = [read(tmp_path, s) for s in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [22, 2, 6]
    assert np.bincount(parts[2].labels).tolist() == [2, 2, 2]
    received = sorted(
        (label, value)
        for part in parts
        for label, value in zip(part.labels.tolist(), values(part), strict=True)
    )
    assert received == [(label, value) for label in range(3) for value in range(10)]
    again = read(tmp_path, "test")
    assert np.array_equal(again.images, parts[2].images)


def test_the_order_is_by_path_and_other_files_are_left_alone(tmp_path):
    fill(tmp_path / "train", ["a", "b"], count=1, start=5)
    fill(tmp_path / "train" / "a", ["inner"], count=1, start=7)
    fill(tmp_path / "train", ["a"], count=1, start=3, kind="webp")
    fill(tmp_path / "train", ["a"], count=1, start=4, kind="JPEG")
    (tmp_path / "train" / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "train" / "a" / "._005.png").write_text("no picture")
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "__MACOSX").mkdir()
    (tmp_path / "train" / "list.csv").write_text("no class")
    fill(tmp_path / "test", ["a", "b"])
    train = read(tmp_path, "train", validation_examples=0)
    assert values(train) == [3, 4, 5, 7, 5]
    assert train.labels.tolist() == [0, 0, 0, 0, 1]


def test_a_linked_class_folder_is_followed(tmp_path):
    fill(tmp_path / "elsewhere", ["b"])
    fill(tmp_path / "set" / "train", ["a"])
    fill(tmp_path / "set" / "test", ["a", "b"])
    (tmp_path / "set" / "train" / "b").symlink_to(tmp_path / "elsewhere" / "b")
    assert len(read(tmp_path / "set", "train+validation")) == 6


@pytest.fixture
def corrupt(tmp_path):
    fill(tmp_path / "train", ["a", "b"], count=4)
    fill(tmp_path / "test", ["a", "b"])
    (tmp_path / "train" / "b" / "002.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "train" / "b" / "003.png").write_bytes(b"")
    return tmp_path


def test_a_corrupt_picture_is_named(corrupt):
    with pytest.raises(InputError, match=r"train/b/00[23]\.png: cannot be read"):
        read(corrupt, "train")


def test_corrupt_pictures_are_left_out_with_a_warning(corrupt):
    first = r"2 of 8 images are left out, the first is .*train/b/002\.png"
    with pytest.warns(UserWarning, match=first):
        train = read(corrupt, "train", validation_examples=0, on_corrupt="skip")
    assert values(train) == [0, 1, 2, 3, 0, 1]
    assert train.labels.tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(("kind", "names"), [("Train", "Test"), ("TRAIN", "VAL")])
def test_splits_are_recognized_in_any_capitals(tmp_path, kind, names):
    fill(tmp_path / kind, ["cat", "dog"])
    fill(tmp_path / names, ["cat", "dog"], count=1, start=9)
    assert read(tmp_path, "train").class_names == ("cat", "dog")
    assert values(read(tmp_path, "test")) == [9, 9]


def test_a_split_that_is_there_twice_is_named(tmp_path):
    for name in ("Train", "train"):
        fill(tmp_path / name, ["cat", "dog"])
    with pytest.raises(InputError, match="one split twice: Train, train"):
        read(tmp_path, "train")


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    fill(tmp_path / "train", ["bus", "train"], count=10)
    assert read(tmp_path / "train", "train").class_names == ("bus", "train")
    fill(tmp_path / "test", ["bus", "train"], count=2, start=30)
    assert read(tmp_path, "train").class_names == ("bus", "train")
    assert values(read(tmp_path, "test")) == [30, 31, 30, 31]


def test_images_without_classes_are_not_taken_for_classes(tmp_path):
    fill(tmp_path, ["train", "test"])
    with pytest.raises(InputError, match="train has no folders of classes"):
        read(tmp_path, "train")


def test_a_validation_split_for_testing_is_said_once(tmp_path, caplog):
    fill(tmp_path / "train", ["cat", "dog"], count=10)
    fill(tmp_path / "val", ["cat", "dog"])
    for split in ("train", "validation", "test"):
        read(tmp_path, split)
    (message,) = [text for text in caplog.messages if "test split" in text]
    assert message.startswith(f"folder:{tmp_path} has no test split: its split val is")


def test_a_dangling_link_is_reported_or_skipped(tmp_path):
    fill(tmp_path, ["cat", "dog"], count=6)
    (tmp_path / "cat" / "000.png").unlink()
    (tmp_path / "cat" / "000.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"cat/000\.png: cannot be read") as error:
        read(tmp_path, "train")
    assert "\n" not in str(error.value)
    with pytest.warns(UserWarning, match=r"1 of \d+ images are left out.*No such file"):
        parts = [
            read(tmp_path, s, on_corrupt="skip") for s in ("train+validation", "test")
        ]
    assert sum(map(len, parts)) == 11


def test_a_dangling_link_of_a_class_is_reported(tmp_path):
    fill(tmp_path, ["cat", "dog"])
    (tmp_path / "eel").symlink_to(tmp_path / "gone")
    with pytest.raises(
        InputError, match=r"eel is a link to .*gone, which is not there"
    ):
        read(tmp_path, "train")


def test_the_same_image_in_two_classes_is_a_warning(tmp_path, caplog):
    fill(tmp_path / "train", ["cat", "dog"], count=10)
    fill(tmp_path / "test", ["cat", "dog"])
    (tmp_path / "train" / "dog" / "003.png").write_bytes(
        (tmp_path / "train" / "cat" / "007.png").read_bytes()
    )
    for number in set(range(10)) - {3}:
        image = Image.new("RGB", (12, 10), (number, 50, 0))
        image.save(tmp_path / "train" / "dog" / f"{number:03d}.png")
    assert len(read(tmp_path, "train+validation")) == 20
    (message,) = caplog.messages
    assert "cat/007.png" in message
    assert "dog/003.png are the same image in two classes" in message


def test_an_unknown_way_with_corrupt_pictures(tmp_path):
    with pytest.raises(UnknownNameError, match="'skp': did you mean 'skip'"):
        read(tmp_path, "train", on_corrupt="skp")


def test_a_missing_folder(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere: there is no such folder"):
        read(tmp_path / "nowhere", "train")


def test_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match="has no folders of classes"):
        read(tmp_path, "train")


def test_a_folder_without_permission_is_named(tmp_path, refuse):
    refuse("iterdir")
    with pytest.raises(InputError, match=f"^{tmp_path} cannot be read: Permission de"):
        read(tmp_path, "train")


def test_a_single_class(tmp_path):
    fill(tmp_path / "train", ["cat"])
    with pytest.raises(InputError, match="one class only, 'cat'"):
        read(tmp_path, "train")


def test_a_class_without_pictures(tmp_path):
    fill(tmp_path, ["cat", "dog"])
    (tmp_path / "eel").mkdir()
    with pytest.raises(InputError, match=r"eel has no images.*\.webp"):
        read(tmp_path, "train")


def test_classes_that_differ_between_splits_are_named(tmp_path):
    fill(tmp_path / "train", ["cat", "dog", "eel"])
    fill(tmp_path / "test", ["cat", "Dog", "eel"])
    message = r"test has not the same classes as .*train: missing dog; extra Dog"
    with pytest.raises(InputError, match=message):
        read(tmp_path, "train")


def test_a_test_folder_without_a_training_folder(tmp_path):
    fill(tmp_path / "test", ["cat", "dog"])
    with pytest.raises(InputError, match="has test/ and no train/"):
        read(tmp_path, "test")
