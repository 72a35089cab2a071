"""Readers of the files of a run: its states, its checkpoints and its metrics."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from train import config as config_file
from train.assemble import set_up
from train.checkpointing import Checkpoints
from train.config import Config
from train.logging.records import read_metrics
from train.loop import Outcome
from train.state import TrainState

# 40 examples in batches of 16: an epoch is two and a half steps.
EPOCH = 2.5
STEPS = 20

# Options of their network. The reference implementation compiles in a quarter of the
# time of the CPU's, which the runs of earlier versions have that tests resume.
NETWORK = {"depth": 8, "expansion": 1, "implementation": "reference"}

TIMES = ("images_per_second", "input_wait", "compile_seconds")


def raw(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def checkpoint(workdir: str, step: int | None = None) -> TrainState:
    """A state as it lies on the disk."""
    setup = set_up(config_file.load_config(Path(workdir)))
    with Checkpoints(Path(workdir) / "checkpoints") as checkpoints:
        restored = checkpoints.restore(jax.eval_shape(setup.initial_state), step)
    assert restored is not None
    return restored.state


def assert_trained_alike(workdir: str, outcome: Outcome) -> None:
    """Compares a run with the outcome of another one, to rounding."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
        checkpoint(workdir).variables,
        jax.device_get(outcome.state).variables,
    )
    (test,) = lines(workdir, "test")
    for name, value in outcome.test.items():
        assert test[name] == pytest.approx(value, rel=1e-4), name


def saved_steps(workdir: str) -> list[int]:
    names = os.listdir(Path(workdir) / "checkpoints")
    return sorted(int(name) for name in names if name.isdigit())


def lines(workdir: str, *splits: str) -> list[dict[str, Any]]:
    """The record, without what depends on the machine's speed."""
    return [
        {name: x for name, x in line.items() if name not in TIMES}
        for line in read_metrics(workdir)
        if not splits or line["split"] in splits
    ]


def places(workdir: str) -> list[tuple[int, str]]:
    return [(line["step"], line["split"]) for line in lines(workdir)]


def copy_of(finished, folder: Path) -> Config:
    """A copy of the finished run, in a workdir of its own."""
    shutil.copytree(finished.config.workdir, folder)
    return dataclasses.replace(finished.config, workdir=str(folder))
