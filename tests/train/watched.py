"""`python -m tests.train.watched FOLDER LAST ...`: `python -m train ...`, watched.

It notes the examples and the pixels of each step, and stops after step LAST.
"""

import functools
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from train import loop
from train.__main__ import run_command
from train.assemble import Setup, set_up
from train.config import Config
from train.stopping import StopRequest


def watch(patch: pytest.MonkeyPatch, folder: Path, last: int) -> None:
    """Writes what the next run computes on to a folder, and stops it after a step.

    Args:
      patch: undoes it.
      folder: where each process writes a file of its own.
      last: the step.
    """
    done = 0

    def watched(config: Config) -> Setup:
        setup = set_up(config)
        train_steps = setup.train_steps

        @functools.wraps(train_steps)
        def run(state: Any, data: Any, items: Any, count: Any) -> Any:
            nonlocal done
            done = int(state.step) + int(count)
            folder.mkdir(exist_ok=True)
            with (folder / f"{jax.process_index()}.jsonl").open("a") as file:
                for place in range(int(count)):
                    step = [int(state.step) + place, examples(items, place)]
                    print(json.dumps(step), file=file)
            return train_steps(state, data, items, count)

        setup.__dict__["train_steps"] = run  # where the property keeps it
        return setup

    patch.setattr(loop, "set_up", watched)
    patch.setattr(StopRequest, "reached", lambda _: done >= last)


def examples(items: Any, place: int) -> list[tuple[int, int, str]]:
    """Returns the position, the label and the pixels' digest of each example.

    Args:
      items: the input of several steps, of one device or more, mapped by pmap.
      place: which of the steps.
    """
    index, labels, images = (
        np.concatenate([device[place] for device in np.asarray(items[name])])
        for name in ("index", "labels", "images")
    )
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    return list(zip(index.tolist(), labels.tolist(), digests, strict=True))


def noted(folder: Path, processes: int) -> dict[int, list[list[Any]]]:
    """Returns the examples of each step, those of the first process first.

    Raises:
      AssertionError: if a step was computed twice, or not by every process.
    """
    texts = [(folder / f"{i}.jsonl").read_text() for i in range(processes)]
    parts = [[json.loads(line) for line in text.splitlines()] for text in texts]
    steps: dict[int, list[list[Any]]] = {}
    for lines in zip(*parts, strict=True):
        (number,) = {step for step, _ in lines}
        assert number not in steps
        steps[number] = [example for _, share in lines for example in share]
    return steps


if __name__ == "__main__":
    watch(pytest.MonkeyPatch(), Path(sys.argv[1]), int(sys.argv[2]))
    sys.exit(run_command(sys.argv[3:]))
