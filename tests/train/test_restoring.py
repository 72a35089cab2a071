"""The checkpoint of a resumed run: of one step on every host, and of the same data."""

import types
from collections.abc import Sequence
from typing import Any

import pytest

from shiftjax.errors import InputError
from train import coordination
from train.checkpointing import Restored
from train.config import Config, Data
from train.exits import TemporaryError
from train.logging.window import Dispatch, Instant
from train.loop import Loop
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


def test_a_run_resumes_on_as_many_examples_as_it_began_with():
    """On others its steps would have other examples, and others would be its test."""
    saved: list[dict[str, Any]] = []
    keeper: Any = types.SimpleNamespace(save=lambda *given: saved.append(given[2]))
    reporter: Any = None
    loop = Loop(setup_of(range(40)), reporter, None, keeper, {})
    state: Any = None
    loop._pause(state, 3, evaluate_=False, save=True)
    (metadata,) = saved
    again = restore_newest(setup_of(range(40)), at_step(3, metadata), None)
    assert again is not None
    assert again.metadata == metadata
    for other in (39, 1041):
        wanted = (
            f"folder:photos has {other:,} training examples, and the run in runs/mine "
            "began with 40: "
        )
        with pytest.raises(InputError, match=wanted):
            restore_newest(setup_of(range(other)), at_step(3, metadata), None)


def test_checkpoints_of_earlier_versions_have_no_number_of_examples():
    assert restore_newest(setup_of(range(40)), at_step(3, {}), None) is not None


def test_a_save_that_fails_does_not_hide_a_divergence():
    """The cause of the end is said, and that the newest checkpoint is not there."""

    def wait() -> None:
        raise InputError("cannot write the checkpoint of step 6: disk full")

    checkpoints: Any = types.SimpleNamespace(wait=wait, steps=lambda: [3, 5])
    reporter: Any = None
    loop = Loop(setup_of(range(40)), reporter, None, checkpoints, {})
    with pytest.raises(InputError) as caught:
        loop._collect(Dispatch(8, {"bad_step": 7}), lambda: Instant(0.0, 0.0))
    message = str(caught.value)
    assert message.startswith("step 7 diverged")
    assert "of step 5, is kept (cannot write the checkpoint of step 6" in message
    assert "\n" not in message
