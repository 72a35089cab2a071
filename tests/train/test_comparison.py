"""What the hosts of a run must have in common."""

import json
from pathlib import Path

import numpy as np
import pytest

from shiftjax.errors import InputError
from train import comparison
from train.data.decoding import Decoding
from train.data.encoded import Encoded
from train.data.image_set import ImageSet
from train.data.placement import facts


def image_set(count: int, *names: str) -> ImageSet:
    labels = np.arange(count, dtype=np.int32) % len(names)
    return ImageSet(np.zeros((count, 2, 2, 3), np.uint8), labels, names)


@pytest.fixture
def of_others(monkeypatch):
    """Returns a function that gives process 1 other facts, by a dict of changes."""

    def change(changes: dict) -> None:
        def exchange(text: str, *_) -> list[str]:
            if not text.startswith("{"):
                return [text, text]
            own = json.loads(text)
            other = {name: changes.get(name, value) for name, value in own.items()}
            return [text, json.dumps(other)]

        monkeypatch.setattr(comparison.coordination, "exchange", exchange)

    return change


def test_the_first_difference_is_named(of_others):
    of_others({})
    comparison.compare_facts({"a": 1, "b": 2})
    of_others({"b": 3})
    with pytest.raises(InputError, match="process 1 differs in b: it has 3, and proce"):
        comparison.compare_facts({"a": 1, "b": 2})


COUNT = "the number of training examples"
CLASSES = "the classes of the training examples, as a hash"
LABELS = "the labels of the training examples, as a hash"


@pytest.mark.parametrize(
    ("other", "differing"),
    [
        (image_set(40, "cat", "dog"), []),
        (image_set(39, "cat", "dog"), [COUNT, LABELS]),
        (image_set(40, "cat", "cow"), [CLASSES]),
        (image_set(40, "cat", "dog", "eel"), [CLASSES, LABELS]),
    ],
)
def test_facts_of_examples(other, differing):
    own = facts(image_set(40, "cat", "dog"), "training")
    others = facts(other, "training")
    assert [name for name in own if own[name] != others[name]] == differing


def test_labels_that_may_lie_beside_the_images_are_not_read():
    """In TFDS's files a label is in the record of its image: of ImageNet, 150 GB."""

    class Records:
        class_names, upright = ("cat", "dog"), False

        def __len__(self) -> int:
            return 40

        @property
        def labels(self) -> np.ndarray:
            raise AssertionError("all records are read")

    streamed = Encoded.of(Records(), Decoding())  # pyright: ignore[reportArgumentType]
    found = facts(streamed, "training")
    assert found[COUNT] == 40
    assert found["the training images"] == "encoded ones"


def test_a_host_that_decodes_and_one_that_does_not_are_told(of_others):
    of_others({"the training images": "encoded ones"})
    with pytest.raises(InputError, match="it has encoded ones, and process 0 has dec"):
        comparison.compare_facts(facts(image_set(40, "cat", "dog"), "training"))


@pytest.mark.usefixtures("quick")
def test_a_run_does_not_begin_on_other_examples(tmp_path, tiny, run, of_others):
    of_others({COUNT: 39})
    config = tiny(tmp_path / "run")
    with pytest.raises(InputError, match="it has 39, and process 0 has 40"):
        run(config)
    assert not Path(config.workdir).exists()
