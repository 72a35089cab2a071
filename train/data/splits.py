"""Training, validation and test split of any source, the same on every machine.

A validation split chooses, the test split is read once, at the end. Where a source has
none, it is cut out by a fixed seed: it depends neither on the run's seed nor on the
version of NumPy (`RandomState` is frozen, `Generator` may change).
"""

import dataclasses
from collections.abc import Callable, Collection

import numpy as np

from shiftjax.errors import InputError, unknown_name
from train.data.image_set import ImageSet

SPLITS = ("train", "validation", "train+validation", "test")

_VALIDATION_SEED = 20180618
_TEST_SEED = 20180619
_VALIDATION_NAMES = ("validation", "val", "valid")
SPLIT_NAMES = ("train", "test", *_VALIDATION_NAMES)


@dataclasses.dataclass(frozen=True)
class OfficialSplits:
    """The splits that a source has itself, each read when it is called.

    Attributes:
      source: the source's name, for messages.
      train: reads the official training examples; `None` where there are none.
      validation: the same for a validation split of the source's own.
      test: the same for the examples that are kept for the end.
    """

    source: str
    train: Callable[[], ImageSet] | None
    validation: Callable[[], ImageSet] | None
    test: Callable[[], ImageSet] | None


def assign(
    source: str, names: Collection[str], read: Callable[[str], ImageSet]
) -> OfficialSplits:
    """Finds out which of a source's splits plays which part.

    A source with training and validation split only, as ImageNet in practice, keeps its
    validation split for the end: it is the test split, by the field's convention.

    Args:
      source: the source's name.
      names: the names of its splits.
      read: reads the split of a name.

    Returns:
      The splits.

    Example:
      >>> splits = assign("imagenette", ["train", "validation"], print)
      >>> splits.validation is None
      True
      >>> splits.test()
      validation
    """

    def reader(name: str | None) -> Callable[[], ImageSet] | None:
        return None if name is None else lambda: read(name)

    validation = next((name for name in _VALIDATION_NAMES if name in names), None)
    train = "train" if "train" in names else None
    if "test" in names:
        return OfficialSplits(source, reader(train), reader(validation), reader("test"))
    return OfficialSplits(source, reader(train), None, reader(validation))


def select(
    official: OfficialSplits, split: str, validation_examples: int | None = None
) -> ImageSet:
    """Reads one of the four splits, cutting what the source does not have.

    A missing test split is a fifth of the training examples, stratified by class. A
    missing validation split is cut out of the training examples that are left. Training
    and validation split are disjoint and together the official training examples; each
    keeps their order.

    Args:
      official: the source's own splits.
      split: `"train"`, `"validation"`, `"train+validation"` or `"test"`.
      validation_examples: size of a validation split to be cut; `None` is a tenth
        (5,000 of CIFAR's 50,000), 0 is none. A source's own validation split is taken
        as it is.

    Returns:
      The examples.

    Raises:
      UnknownNameError: no such split.
      InputError: the source has no such examples, or fewer than asked for.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if split == "test" and official.test is not None:
        return official.test()
    if official.train is None:
        raise InputError(f"{official.source} has no training split, only a test split")
    training = official.train()
    if official.test is None:
        rest, test = stratified_cut(training.labels, round(0.2 * len(training)))
        training = training.take(test if split == "test" else rest)
    if split == "test":
        return training
    if official.validation is not None:
        return _own_validation(training, official.validation, split)
    return _cut_validation(official.source, training, split, validation_examples)


def _own_validation(
    training: ImageSet, validation: Callable[[], ImageSet], split: str
) -> ImageSet:
    """Selects where the source has a validation split."""
    if split == "train":
        return training
    own = validation()
    if split == "validation":
        return own
    return ImageSet(
        np.concatenate([training.images, own.images]),
        np.concatenate([training.labels, own.labels]),
        training.class_names,
    )


def _cut_validation(
    source: str, training: ImageSet, split: str, validation_examples: int | None
) -> ImageSet:
    """Selects where a validation split has to be cut."""
    if validation_examples is None:
        validation_examples = len(training) // 10
    if not 0 <= validation_examples < len(training):
        raise InputError(
            f"validation_examples {validation_examples} is not allowed: {source} has "
            f"{len(training)} training examples, so 0..{len(training) - 1}"
        )
    if split == "validation" and not validation_examples:
        raise InputError(
            f"{source} has no validation split and validation_examples is 0: set it to "
            "the number of training examples to hold out"
        )
    if split == "train+validation" or not validation_examples:
        return training
    train, validation = validation_cut(len(training), validation_examples)
    return training.take(train if split == "train" else validation)


def validation_cut(
    examples: int, validation_examples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a validation split out of training examples.

    A pure function of the two numbers.

    Args:
      examples: number of training examples.
      validation_examples: how many of them to hold out.

    Returns:
      The positions that stay and those held out, each ascending.

    Example:
      >>> train, validation = validation_cut(10, 3)
      >>> train, validation
      (array([1, 3, 4, 6, 7, 8, 9]), array([0, 2, 5]))
    """
    order = np.random.RandomState(_VALIDATION_SEED).permutation(examples)
    return np.sort(order[validation_examples:]), np.sort(order[:validation_examples])


def stratified_cut(labels: np.ndarray, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a test split that has of each class its share, to within one example.

    A pure function of the labels and the number.

    Args:
      labels: int `[examples]`.
      held_out: how many examples to hold out.

    Returns:
      The positions that stay and those held out, each ascending.

    Example:
      >>> train, test = stratified_cut(np.array([0, 0, 0, 0, 1, 1]), 3)
      >>> np.bincount(test < 4)
      array([1, 2])
    """
    order = np.random.RandomState(_TEST_SEED).permutation(len(labels))
    # The i-th of the n examples of a class stands at (i + 1/2) / n: up to any point of
    # this scale there is of each class the same share.
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    ranked = np.argsort(position, kind="stable")
    return np.sort(ranked[held_out:]), np.sort(ranked[:held_out])
