"""What the hosts of a run must have in common."""

import json
from pathlib import Path

import numpy as np
import pytest

from shiftjax.errors import InputError
from train import comparison
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
LABELS = "the labels of the training examples, as a hash"


@pytest.mark.parametrize(
    ("other", "differing"),
    [
        (image_set(40, "cat", "dog"), []),
        (image_set(39, "cat", "dog"), [COUNT, LABELS]),
        (image_set(40, "cat", "cow"), [LABELS]),
        (image_set(40, "cat", "dog", "eel"), [LABELS]),
    ],
)
def test_facts_of_examples(other, differing):
    own = facts(image_set(40, "cat", "dog"), "training")
    others = facts(other, "training")
    assert [name for name in own if own[name] != others[name]] == differing


@pytest.mark.usefixtures("quick")
def test_a_run_does_not_begin_on_other_examples(tmp_path, tiny, run, of_others):
    of_others({COUNT: 39})
    config = tiny(tmp_path / "run")
    with pytest.raises(InputError, match="it has 39, and process 0 has 40"):
        run(config)
    assert not Path(config.workdir).exists()
