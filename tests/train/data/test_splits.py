"""The examples of each split."""

import hashlib

import numpy as np
import pytest

from shiftjax.errors import InputError, UnknownNameError
from train.data import splits
from train.data.image_set import ImageSet


def numbered(start, examples, classes=4):
    """Returns pictures of one pixel whose value is their number."""
    numbers = np.arange(start, start + examples)
    images = numbers.astype(np.uint8).reshape(-1, 1, 1, 1)
    labels = (numbers % classes).astype(np.int32)
    return ImageSet(images, labels, tuple("abcd"[:classes]))


def source(*names):
    """Returns a source with these splits: 0..99 train, 100.. validation, 200.. test."""
    first = {"train": (0, 100), "val": (100, 20), "test": (200, 30)}
    return splits.assign("somewhere", names, lambda name: numbered(*first[name]))


def numbers(official, split, validation_examples=None):
    chosen = splits.select_split(official, split, validation_examples)
    assert (chosen.labels == chosen.images.ravel() % 4).all()
    return chosen.images.ravel().tolist()


def test_train_and_validation_are_disjoint_and_together_the_training_examples():
    official = source("train", "test")
    train, validation = (numbers(official, s, 30) for s in ("train", "validation"))
    assert len(validation) == 30
    assert sorted(train + validation) == list(range(100))
    assert train == sorted(train)  # each in the official order
    assert validation == sorted(validation)
    assert numbers(official, "train+validation", 30) == list(range(100))
    assert numbers(official, "test", 30) == list(range(200, 230))


def test_a_tenth_is_held_out_by_default_and_none_with_zero():
    official = source("train", "test")
    assert len(numbers(official, "validation")) == 10
    assert numbers(official, "train", 0) == list(range(100))
    with pytest.raises(InputError, match="somewhere has no validation split"):
        numbers(official, "validation", 0)


@pytest.mark.parametrize("count", [-1, 100, 5000])
def test_an_impossible_number_names_what_is_allowed(count):
    with pytest.raises(InputError, match=rf"validation-examples {count}: .*0\.\.99"):
        numbers(source("train", "test"), "train", count)


def test_a_validation_split_of_its_own_is_taken_as_it_is():
    official = source("train", "val", "test")
    assert numbers(official, "train", 30) == list(range(100))
    assert numbers(official, "validation", 30) == list(range(100, 120))
    assert numbers(official, "train+validation", 30) == list(range(120))


def test_without_a_test_split_the_validation_split_is_kept_for_the_end():
    official = source("train", "val")
    assert numbers(official, "test") == list(range(100, 120))
    assert len(numbers(official, "validation", 7)) == 7
    assert len(numbers(official, "train", 7)) == 93


def test_with_training_examples_only_a_stratified_fifth_is_the_test_split():
    official = source("train")
    parts = [numbers(official, s, 10) for s in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [70, 10, 20]
    assert sorted(parts[0] + parts[1] + parts[2]) == list(range(100))
    assert np.bincount(np.array(parts[2]) % 4).tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize("split", splits.SPLITS)
def test_too_few_examples_for_a_test_split_are_refused_in_every_split(split):
    """Not only when the run has ended, and its test split is read."""
    official = splits.assign("pair", ["train"], lambda name: numbered(0, 2))
    with pytest.raises(InputError, match="pair has 2 training examples and no test"):
        splits.select_split(official, split, 0)
    three = splits.assign("three", ["train"], lambda name: numbered(0, 3))
    assert len(numbers(three, "test")) == 1


def test_a_source_of_test_examples_only():
    official = source("test")
    assert numbers(official, "test") == list(range(200, 230))
    with pytest.raises(InputError, match="somewhere has no training split"):
        numbers(official, "train")


def test_an_unknown_split_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'validation'"):
        splits.select_split(source("train"), "validaton")


def test_the_cuts_never_change():
    """Published accuracies belong to these examples."""
    train, validation = splits.validation_cut(50000, 5000)
    assert validation[:5].tolist() == [3, 18, 26, 30, 35]
    digest = hashlib.sha256(validation.astype("<i8").tobytes()).hexdigest()
    assert digest == (
        "4a2a519f2505910f14f876aeeb597c127f19e9d2e94c5e651f300a4f6d45c2f6"
    )
    assert np.array_equal(np.union1d(train, validation), np.arange(50000))
    _, test = splits.stratified_cut(np.arange(1000) % 7, 200)
    digest = hashlib.sha256(test.astype("<i8").tobytes()).hexdigest()
    assert digest == (
        "15e2807c9719d6aca569c023b213559e62cb49bd1d3874c1f9c883925c13eaf3"
    )


@pytest.mark.parametrize("held_out", [0, 1, 10, 77, 150])
def test_a_stratified_cut_has_of_each_class_its_share(held_out):
    counts = np.array([1, 2, 7, 40, 100])
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(5), counts))
    train, test = splits.stratified_cut(labels, held_out)
    assert len(test) == held_out
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(150))
    share = counts * held_out / counts.sum()
    assert (np.abs(np.bincount(labels[test], minlength=5) - share) <= 1).all()
