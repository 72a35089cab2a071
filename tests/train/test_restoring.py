"""The checkpoint of a resumed run: of one step on every host."""

import types
from collections.abc import Sequence
from typing import Any

import pytest

from train import coordination
from train.checkpointing import Restored
from train.config import Config, Data
from train.exits import TemporaryError
from train.restoring import restore_newest

CONFIG = Config(
    workdir="runs/mine", data=Data("folder:photos", train_on="train+validation")
)


def setup_of(train_set: Sequence[int]) -> Any:
    order = types.SimpleNamespace(steps_per_epoch=1.0)
    return types.SimpleNamespace(config=CONFIG, order=order, train_set=train_set)


def at_step(step: int, metadata: dict[str, Any]) -> Any:
    """Checkpoints of which the newest is that of a step."""
    restored = Restored(step, None, metadata, {})
    return types.SimpleNamespace(restore=lambda _: restored)


def test_hosts_that_read_different_steps_do_not_train(monkeypatch):
    """Each would train a state of its own, and they would part in silence."""
    setup, checkpoints = setup_of(range(40)), at_step(7, {})
    restored = restore_newest(setup, checkpoints, None)
    assert restored is not None
    assert restored.step == 7
    for other in ("5", "none"):

        def exchange(text: str, other: str = other) -> list[str]:
            return [text, other] if text == "7" else [text]

        monkeypatch.setattr(coordination, "exchange", exchange)
        with pytest.raises(TemporaryError, match=f"mine: 7, {other}; start the run"):
            restore_newest(setup, checkpoints, None)
