"""Rates that are true, however a backend dispatches: by a clock that is not real."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from train import loop, release
from train.config import Config
from train.logging.window import Instant, Window
from train.parallel import Replicas

BATCH, EXAMPLES = 32, 160  # an epoch is five steps
STEPS, LOG = 11, 5  # lines at 5, 10, and at 11 of a single step
STEP, COMPILE, PAUSE = 2.0, 50.0, 300.0  # seconds


class Clock:
    """Seconds that pass only when something is done."""

    def __init__(self):
        self.seconds = 1000.0

    def perf_counter(self) -> float:
        return self.seconds

    def until(self, end: float) -> None:
        self.seconds = max(self.seconds, end)


class Result:
    """A number of a dispatch, which is there at its end."""

    def __init__(self, clock, value, end):
        self.clock, self.value, self.end = clock, value, end

    def is_ready(self) -> bool:
        return self.clock.seconds >= self.end

    def __array__(self, dtype=None, copy=None):
        self.clock.until(self.end)
        return np.asarray(self.value, dtype)


class Device:
    """Does one step after the other, each in STEP seconds.

    `kind` is when a dispatch returns: at once, at the end of the step, or at the end of
    the step before, as for a program that takes that one's memory.
    """

    def __init__(self, clock, kind):
        self.clock, self.kind, self.free = clock, kind, 0.0

    def __call__(self, state, data, batch, count):
        before = self.free
        self.free = max(self.clock.seconds, self.free) + STEP * int(count)
        if self.kind != "at once":
            self.clock.until(self.free if self.kind == "at its end" else before)
        sums = {"loss": 64.0, "examples": BATCH * int(count), "bad_step": 2**31 - 1}
        return state, {n: Result(self.clock, x, self.free) for n, x in sums.items()}

    def lower(self, *_):
        return self

    def compile(self):
        self.clock.seconds += COMPILE


class Input:
    """Each batch is there `seconds` after it is asked for."""

    def __init__(self, clock, requests, seconds):
        self.clock, self.requests, self.seconds = clock, requests, seconds
        self.waited = 0.0

    def __iter__(self):
        for request in self.requests:
            self.clock.seconds += self.seconds
            self.waited += self.seconds
            yield request, None

    def close(self):
        pass


def record(monkeypatch, kind, wait=0.0, save_epochs=2.0) -> list[dict]:
    """The lines of a run, which pauses after step 10 and at its end."""
    clock, written = Clock(), []
    config = Config(
        batch_size=BATCH, log_steps=LOG, eval_epochs=1e9, save_epochs=save_epochs
    )
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, train_on="train+validation")
    )

    def save(*_):
        clock.seconds += PAUSE

    setup = types.SimpleNamespace(
        config=config,
        order=types.SimpleNamespace(steps_per_epoch=EXAMPLES / BATCH),
        total_steps=STEPS,
        steps_per_dispatch=1,
        train_set=range(EXAMPLES),
        on_devices=lambda _: (None, None),
        train_steps=Device(clock, kind),
        rate=lambda step: 0.1,
        epoch=lambda step: step * BATCH / EXAMPLES,
    )
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(
        loop, "Prefetch", lambda make, requests: Input(clock, requests, wait)
    )
    run = loop.Loop(
        setup,  # pyright: ignore
        types.SimpleNamespace(advance=lambda *_: None),  # pyright: ignore
        types.SimpleNamespace(  # pyright: ignore
            write=written.append, flush=lambda: None
        ),
        types.SimpleNamespace(save=save),  # pyright: ignore
        {},
    )
    state = types.SimpleNamespace(step=0)
    run.run(state, types.SimpleNamespace(reached=lambda: False))  # pyright: ignore
    return written


@pytest.mark.parametrize("save_epochs", [2.0, 0.6])
@pytest.mark.parametrize("kind", ["at once", "at its end", "at the last one's end"])
def test_no_line_counts_compiling_or_pauses_or_is_short_of_time(
    kind, save_epochs, monkeypatch
):
    """32 images in 2 seconds; pauses come with a line, or within one."""
    lines = record(monkeypatch, kind, save_epochs=save_epochs)
    assert [line["step"] for line in lines] == [5, 10, 11]
    for line in lines:
        assert line["images_per_second"] == pytest.approx(16)
        assert line["input_wait"] == 0
    assert [line.get("compile_seconds") for line in lines] == [COMPILE, None, None]
    assert release._hours(lines, EXAMPLES) == pytest.approx(STEPS * STEP / 3600)


def test_input_that_is_late_is_in_the_rate(monkeypatch):
    """Batches come every 8 seconds, and a device that computes for 2 waits for them.

    A step is dispatched when its input has come, which is when the one before is seen
    to have ended. The first step of all, and that after a pause, waits outside.
    """
    first, second, third = record(monkeypatch, "at once", wait=8.0)
    # Steps 1 to 5: from the dispatch of the first to that of the sixth.
    assert first["images_per_second"] == pytest.approx(5 * 32 / 40)
    assert first["input_wait"] == pytest.approx(1)
    # Steps 6 to 10: to the end of the tenth, after which the run pauses.
    assert second["images_per_second"] == pytest.approx(5 * 32 / (4 * 8 + 2))
    assert second["input_wait"] == pytest.approx(32 / 34)
    # Step 11, alone.
    assert third["images_per_second"] == pytest.approx(16)
    assert third["input_wait"] == 0


def test_input_is_waited_for_while_the_device_computes(monkeypatch):
    """Half of each step is spent waiting, and no time is lost."""
    lines = record(monkeypatch, "at once", wait=1.0)
    for line in lines[:2]:
        assert line["images_per_second"] == pytest.approx(16)
        assert line["input_wait"] == pytest.approx(0.5, abs=0.11)  # of five, one less


def test_examples_of_another_process_are_in_the_means_alone():
    """Mean loss of 30 examples; the rate of the 20 that were done here, in 4 s."""
    window = Window({"loss": 10.0, "examples": 10.0})
    window.start(Instant(100.0, 7.0))
    window.add({"loss": 50.0, "examples": 20.0, "bad_step": 3}, Instant(104.0, 8.0))
    assert window.means() == {
        "loss": 2.0,
        "images_per_second": 5.0,
        "input_wait": 0.25,
    }
    assert window.sums == {"loss": 60.0, "examples": 30.0}


def test_steps_that_were_compiled_ahead_are_not_compiled_again(request):
    """Else the first window would hold that, and the start of a run last twice."""
    compiled = []

    def note(name, seconds, **_):
        compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(note)
    request.addfinalizer(
        lambda: jax.monitoring.unregister_event_duration_listener(note)
    )
    for backend in ("pmap", "shard_map"):
        replicas = Replicas.local(2, backend)
        program = replicas.parallelize(
            lambda state, data, items, count: state + items.sum() + count,
            donate_state=True,
        )
        state = replicas.replicate(np.ones(3, np.float32))
        batch = replicas.split(np.ones((1, 4), np.float32))
        lower = program.lower  # pyright: ignore[reportFunctionMemberAccess]
        lower(state, None, batch, np.int32(1)).compile()
        compiled.clear()
        jax.block_until_ready(program(state, None, batch, np.int32(1)))
        assert not [name for name in compiled if "compile" in name]
