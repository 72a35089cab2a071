"""Writes the files of this version that every later version has to read.

`python -m tests.data.make` writes them to tests/data/VERSION, once for each version.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import jax.numpy as jnp
import numpy as np

import shiftjax
from tests.train.conftest import tiny_config
from train.config import Model
from train.loop import train
from train.release import LOCK, release
from train.stopping import StopRequest

HERE = Path(__file__).parent
STOPPED = 10  # of 20 steps
TAG = "digits"

# A run that many tests train, but with the implementation that users get.
MODEL = Model("shiftresnet20", {"depth": 8, "expansion": 1})
CONFIG = tiny_config("run", keep_last=1, keep_best=0, model=MODEL)


def images() -> np.ndarray:
    """Returns the images of the recorded logits, `[2, 8, 8, 3]` and float32."""
    return np.sin(np.arange(2 * 8 * 8 * 3)).reshape(2, 8, 8, 3).astype(np.float32)


def main() -> None:
    """Stops a run in the middle, copies its folder, and releases it at its end."""
    folder = HERE / shiftjax.__version__
    folder.mkdir()
    with tempfile.TemporaryDirectory() as elsewhere:
        os.chdir(elsewhere)  # so that no file has a path of this machine
        answers = [False] * (STOPPED - 1) + [True]
        with mock.patch.object(StopRequest, "reached", side_effect=answers):
            train(CONFIG)
        shutil.copytree(CONFIG.workdir, folder / "run")
        train(CONFIG)
        entry = release([CONFIG.workdir], TAG, folder / "releases")
    model, variables = shiftjax.load_pretrained(
        entry.name, directory=folder / "releases"
    )
    logits = np.asarray(model.apply(variables, jnp.asarray(images())))
    (folder / "logits.json").write_text(f"{json.dumps(logits.tolist())}\n")
    for lock in folder.rglob(LOCK):
        lock.unlink()
    for mark in folder.rglob("commit_success.txt"):
        mark.write_text(mark.read_text().replace(f"{elsewhere}/", ""))


if __name__ == "__main__":
    main()
