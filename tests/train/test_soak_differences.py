"""What the soak finds in the folder of a run that is not the same."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from shiftjax.errors import InputError
from tests import soak
from tests.train.runs import checkpoint, saved_steps
from train.checkpointing import Checkpoints

LOGGED = [3, 6, 9, 12, 15, 18, 20]  # 20 steps, and a line for each third one

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def found(finished, tmp_path):
    """Returns a function that changes a copy of the finished run, and compares it."""
    whole = Path(finished.config.workdir)

    def compare(change) -> list[str]:
        copy = tmp_path / "copy"
        shutil.copytree(whole, copy)
        change(copy)
        return soak.differences(whole, copy, LOGGED)

    return compare


@pytest.fixture
def steps(finished):
    return saved_steps(finished.config.workdir)


def test_nothing_differs(found):
    assert found(lambda _: None) == []


def test_another_state(found, steps):
    def alter(copy):
        state = checkpoint(str(copy), steps[-1])
        shutil.rmtree(copy / "checkpoints" / str(steps[-1]))
        with Checkpoints(copy / "checkpoints") as checkpoints:
            other = dataclasses.replace(state, step=np.int32(7))
            checkpoints.save(steps[-1], other, {})

    assert found(alter) == [f"checkpoint {steps[-1]} has other bits"]


def test_a_damaged_checkpoint(found, steps):
    def damage(copy):
        arrays = copy / "checkpoints" / str(steps[-1]) / "state"
        shutil.rmtree(arrays)
        shutil.copytree(copy / "checkpoints" / str(steps[0]) / "state", arrays)

    with pytest.raises(InputError, match="damaged"):
        found(damage)


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ([0, *range(20)], r"duplicates: \[3, 3, 6, "),
        (range(1, 20), r"gaps .* \[6, 9, "),
    ],
)
def test_metrics_with_a_line_too_many_or_too_few(found, kept, text):
    def change(copy):
        lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
        (copy / "metrics.jsonl").write_text(
            "".join(lines[i] for i in kept if i < len(lines))
        )

    with_text, differ = found(change)
    assert re.search(text, with_text)
    assert differ == "the metrics differ"


def test_a_checkpoint_is_missing(found, steps):
    (message,) = found(lambda copy: shutil.rmtree(copy / "checkpoints" / str(steps[0])))
    assert "other checkpoints are kept" in message


def test_files_are_left(found):
    left = found(lambda copy: (copy / "checkpoints" / "5.corrupt").mkdir())
    assert left == ["files are left: ['5.corrupt']"]
