"""Training, validation and test splits of any source, the same on every machine.

The validation split selects checkpoints; the test split is read once, at the end. A
split that the source lacks is cut from the training examples with a fixed seed. It
depends neither on the seed of the run nor on the version of NumPy (`RandomState` is
frozen, `Generator` may change).
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Collection

import numpy as np

from shiftjax.errors import InputError, unknown_name
from train.data.examples import Examples

SPLITS = ("train", "validation", "train+validation", "test")

_LOG = logging.getLogger(__name__)
_VALIDATION_SEED = 20180618
_TEST_SEED = 20180619
_VALIDATION_NAMES = ("validation", "val", "valid")
SPLIT_NAMES = ("train", "test", *_VALIDATION_NAMES)


@dataclasses.dataclass(frozen=True)
class OfficialSplits:
    """The official splits of a source, as functions that read them.

    Attributes:
      source: the name of the source, for messages.
      train: reads the official training examples; None if there are none.
      validation: reads the official validation examples; None if there are none.
      test: reads the official test examples; None if there are none.
    """

    source: str
    train: Callable[[], Examples] | None
    validation: Callable[[], Examples] | None
    test: Callable[[], Examples] | None


def assign(
    source: str, names: Collection[str], read: Callable[[str], Examples]
) -> OfficialSplits:
    """Assigns the splits of a source to training, validation and test.

    If a source has only a training and a validation split, like ImageNet in practice,
    its validation split is used as the test split, by convention.

    Args:
      source: the name of the source.
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

    def reader(name: str | None) -> Callable[[], Examples] | None:
        return None if name is None else lambda: read(name)

    validation = next((name for name in _VALIDATION_NAMES if name in names), None)
    train = "train" if "train" in names else None
    if "test" in names:
        return OfficialSplits(source, reader(train), reader(validation), reader("test"))
    if train and validation:
        _note(source, validation)
    return OfficialSplits(source, reader(train), None, reader(validation))


@functools.cache  # once for each source
def _note(source: str, validation: str) -> None:
    """Logs that a validation split is used as the test split."""
    _LOG.warning(
        "%s has no test split: its split %s is the test split, and a validation split "
        "is held out of the training examples",
        source,
        validation,
    )


def select_split(
    official: OfficialSplits,
    split: str,
    validation_examples: int | None = None,
    *,
    cut_test: bool = True,
) -> Examples:
    """Reads one of the four splits, which is cut if the source does not have it.

    A missing test split is a fifth of the training examples, stratified by class. A
    missing validation split is cut from the remaining training examples. Training and
    validation split are disjoint, and their union is the official training examples;
    each keeps their order.

    Args:
      official: the official splits of the source.
      split: `"train"`, `"validation"`, `"train+validation"` or `"test"`.
      validation_examples: size of the validation split to cut; None for a tenth (5,000
        of CIFAR's 50,000), 0 for none. An official validation split is used as it is.
      cut_test: False to train on the examples of which a missing test split is cut.

    Returns:
      The examples.

    Raises:
      UnknownNameError: if there is no such split.
      InputError: if the source has no such examples, or too few.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if split == "test" and official.test is not None:
        return official.test()
    if official.train is None:
        raise InputError(f"{official.source} has no training split, only a test split")
    training = official.train()
    if official.test is None and (cut_test or split == "test"):
        held_out = round(0.2 * len(training))
        if not held_out:
            raise InputError(
                f"{official.source} has {len(training)} training examples and no test "
                "split: a fifth of them are held out for testing, so three at least"
            )
        rest, test = stratified_cut(training.labels, held_out)
        training = training.take(test if split == "test" else rest)
    if split == "test":
        return training
    if official.validation is not None:
        return _own_validation(training, official.validation, split)
    return _cut_validation(official.source, training, split, validation_examples)


def _own_validation(
    training: Examples, validation: Callable[[], Examples], split: str
) -> Examples:
    """Selects a split of a source that has a validation split."""
    if split == "train":
        return training
    own = validation()
    if split == "validation":
        return own
    return training.joined(own)


def _cut_validation(
    source: str, training: Examples, split: str, validation_examples: int | None
) -> Examples:
    """Selects a split of a source whose validation split has to be cut."""
    if validation_examples is None:
        validation_examples = len(training) // 10
        if split == "validation" and not validation_examples:
            raise InputError(
                f"{source} has no validation split, and a tenth of its {len(training)} "
                "training examples is none: set --data.validation-examples to the "
                "number of them to hold out, or to 0"
            )
    if not 0 <= validation_examples < len(training):
        raise InputError(
            f"--data.validation-examples {validation_examples}: {source} has "
            f"{len(training)} training examples, so 0..{len(training) - 1}"
        )
    if split == "validation" and not validation_examples:
        raise InputError(
            f"{source} has no validation split and --data.validation-examples is 0: "
            "set it to the number of training examples to hold out"
        )
    if split == "train+validation" or not validation_examples:
        return training
    train, validation = validation_cut(len(training), validation_examples)
    return training.take(train if split == "train" else validation)


def validation_cut(
    examples: int, validation_examples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a validation split from training examples.

    This is a pure function of the two numbers.

    Args:
      examples: number of training examples.
      validation_examples: number of examples to hold out.

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
    """Cuts a stratified test split, to within one example of each class.

    This is a pure function of the labels and the number.

    Args:
      labels: int `[examples]`.
      held_out: number of examples to hold out.

    Returns:
      The positions that stay and those held out, each ascending.

    Example:
      >>> train, test = stratified_cut(np.array([0, 0, 0, 0, 1, 1]), 3)
      >>> np.bincount(test < 4)
      array([1, 2])
    """
    order = np.random.RandomState(_TEST_SEED).permutation(len(labels))
    # The i-th of the n examples of a class is at (i + 1/2) / n. Up to any point of this
    # scale, all classes have the same share of their examples.
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    ranked = np.argsort(position, kind="stable")
    return np.sort(ranked[held_out:]), np.sort(ranked[:held_out])
