"""Whole runs: they end as they should, however often they are interrupted."""

import dataclasses
import fcntl
import functools
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from shiftjax.errors import InputError, MissingFileError
from train import config as config_file
from train import loop
from train.assemble import set_up
from train.checkpointing import Checkpoints
from train.config import Augment, Config, Model, Optimizer, Schedule
from train.data.stream import items
from train.evaluation import evaluate_run
from train.logging.records import read_metrics
from train.loop import StopRequest, every
from train.state import TrainState

pytestmark = pytest.mark.usefixtures("quick")

STEPS = 20
EPOCH = 2.5  # steps
PATIENCE = 120  # seconds for what takes ten on a quiet machine

TIMES = ("images_per_second", "input_wait", "compile_seconds")


def raw(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def checkpoint(workdir: str, step: int | None = None) -> TrainState:
    """A state as it lies on the disk."""
    setup = set_up(config_file.load(Path(workdir)))
    with Checkpoints(Path(workdir) / "checkpoints") as checkpoints:
        restored = checkpoints.restore(jax.eval_shape(setup.initial_state), step)
    assert restored is not None
    return restored.state


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


@pytest.fixture
def stop_at(monkeypatch):
    """Returns a function that has the process signalled in a step of the next run."""

    def stop_at(step: int, number: int = signal.SIGTERM) -> None:
        def signalling(config: Config):
            setup = set_up(config)
            train_steps, calls = setup.train_steps, itertools.count(1)

            @functools.wraps(train_steps)
            def run(*arguments: Any) -> Any:
                if next(calls) == step:
                    signal.raise_signal(number)
                return train_steps(*arguments)

            setup.__dict__["train_steps"] = run  # where the property keeps it
            return setup

        monkeypatch.setattr(loop, "set_up", signalling)

    yield stop_at
    monkeypatch.undo()


# --- a run that nothing interrupts --------------------------------------------------


def test_the_outcome_of_a_run(finished):
    outcome = finished.outcome
    assert outcome.finished
    assert outcome.steps == int(outcome.state.step) == STEPS
    assert list(outcome.test) == ["loss", "top1", "examples"]
    assert outcome.test["examples"] == 360
    assert 0 < outcome.test["loss"] < 10
    assert "on 40 examples of digits, 20 steps of 16 on 4 cpu" in finished.text


def test_the_test_split_is_read_once_at_the_end(finished):
    assert finished.splits == ["validation", "test"]


def test_the_files_of_a_run(finished):
    workdir = Path(finished.config.workdir)
    names = {path.name for path in workdir.iterdir() if path.name[0] != "."}
    files = {"config.json", "metrics.jsonl", "checkpoints", "curves.png"}
    assert names == files | {"starts.jsonl"}
    assert config_file.load(workdir) == finished.config


def test_the_last_and_the_best_checkpoints_are_kept(finished):
    """Saved at 5, 10, 15 and 20, evaluated at 10 and 20: two of the last, one best."""
    ten, twenty = lines(finished.config.workdir, "validation")
    best = 10 if ten["top1"] > twenty["top1"] else 20
    assert saved_steps(finished.config.workdir) == sorted({15, 20, best})
    assert raw(checkpoint(finished.config.workdir)) == raw(finished.outcome.state)


def test_the_record_of_a_run(finished):
    record = read_metrics(finished.config.workdir)
    wanted = [(step, "train") for step in (3, 6, 9, 12, 15, 18, 20)]
    wanted += [(10, "validation"), (20, "validation"), (20, "test")]
    order = ["train", "validation", "test"]
    assert places(finished.config.workdir) == sorted(
        wanted, key=lambda place: (place[0], order.index(place[1]))
    )
    for line in record:
        names = ["step", "epoch", "split", "loss", "top1"]
        if line["split"] == "train":
            names += ["images_per_second", "input_wait"]
            names += ["compile_seconds"] * (line["step"] == 3)  # the first line's
            names += ["learning_rate"]
            assert line["images_per_second"] > 0
            assert 0 <= line["input_wait"] <= 1
        else:
            names += ["examples"]
            assert line["examples"] == {"validation": 1397, "test": 360}[line["split"]]
        assert list(line) == names
        assert line["epoch"] == line["step"] / EPOCH
        assert math.isfinite(line["loss"])
        assert 0 <= line["top1"] <= 1


def test_the_learning_rate_of_the_record_is_that_of_its_step(finished):
    """A warm-up of 2 steps, then a cosine of 18; step n is done with rate(n - 1)."""
    for line in lines(finished.config.workdir, "train"):
        share = (line["step"] - 1 - 2) / 18
        wanted = 0.05 * (1 + math.cos(math.pi * share)) / 2
        assert line["learning_rate"] == pytest.approx(wanted, rel=1e-5)  # float32


def test_what_is_reported_is_what_is_recorded(finished):
    (test,) = lines(finished.config.workdir, "test")
    assert {name: test[name] for name in finished.outcome.test} == finished.outcome.test


@pytest.fixture(scope="module")
def undisturbed(finished, run, tmp_path_factory) -> str:
    """The workdir of the same run, with every step recorded and no pause."""
    config = dataclasses.replace(
        finished.config,
        workdir=str(tmp_path_factory.mktemp("undisturbed") / "run"),
        log_steps=1,
        eval_epochs=math.inf,
        save_epochs=math.inf,
    )
    run(config)
    return config.workdir


def test_a_run_may_be_evaluated_and_saved_at_its_end_alone(finished, undisturbed):
    wanted = [(step, "train") for step in range(1, STEPS + 1)]
    wanted += [(STEPS, "validation"), (STEPS, "test")]
    assert places(undisturbed) == wanted
    assert saved_steps(undisturbed) == [STEPS]
    assert raw(checkpoint(undisturbed)) == raw(finished.outcome.state)


def test_a_line_of_the_record_is_the_mean_of_all_steps_since_the_last(
    finished, undisturbed
):
    """Also where it was evaluated or saved in between; the sums are float32."""
    single = {line["step"]: line for line in lines(undisturbed, "train")}
    before = 0
    for line in lines(finished.config.workdir, "train"):
        steps = range(before + 1, line["step"] + 1)
        for name in ("loss", "top1"):
            mean = np.mean([single[step][name] for step in steps])
            assert line[name] == pytest.approx(mean, rel=1e-6), line["step"]
        before = line["step"]


@pytest.mark.parametrize(
    ("epochs", "steps"),
    [(1.0, [2]), (3.0, [3, 5, 8]), (1.2, [3])],
    ids=["rounded down", "rounded up", "whole"],
)
def test_the_last_step_is_validated_once(tiny, run, tmp_path, epochs, steps):
    """Epochs of 2.5 steps, of which one ends after 2.5 or 7.5: rounded to even."""
    config = tiny(tmp_path / "run", epochs=epochs, eval_epochs=1.0, save_epochs=1.0)
    outcome, _ = run(config)
    assert outcome.steps == steps[-1]
    validations = lines(config.workdir, "validation")
    assert [line["step"] for line in validations] == steps
    assert max(saved_steps(config.workdir)) == steps[-1]


# --- the same command again ---------------------------------------------------------


def test_a_finished_run_given_again_reports_the_same_and_does_nothing(
    finished, run, tmp_path, monkeypatch
):
    config = copy_of(finished, tmp_path / "run")
    record = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    (tmp_path / "run" / "curves.png").unlink()

    def load_split(config: Config, split: str) -> Any:
        assert split != "test"
        return original(config, split)

    original = loop.load_split
    monkeypatch.setattr(loop, "load_split", load_split)
    outcome, text = run(config)
    assert outcome.finished
    assert outcome.test == finished.outcome.test
    assert raw(outcome.state) == raw(finished.outcome.state)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == record
    assert saved_steps(config.workdir) == saved_steps(finished.config.workdir)
    assert "at step 20" in text
    assert (tmp_path / "run" / "curves.png").exists()  # they can be made again


def test_all_that_was_recorded_of_the_test_split_is_reported_again(
    finished, run, tmp_path
):
    """With more than ten classes also top-5."""
    config = copy_of(finished, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    *others, test = path.read_text().splitlines()
    test = json.dumps(json.loads(test) | {"top5": 0.5})
    path.write_text("\n".join([*others, test, ""]))
    outcome, _ = run(config)
    assert outcome.test == finished.outcome.test | {"top5": 0.5}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 1, "batch_size": 8}, ["--seed was 0, is 1", "--batch-size was 16"]),
        ({"augment": Augment(1, False)}, ["--augment.flip was True, is False"]),
        (
            {"model": Model("shiftresnet20", {"depth": 8, "expansion": 2})},
            ["--model.overrides was {'depth': 8, 'expansion': 1}"],
        ),
    ],
    ids=["seed", "augment", "model"],
)
def test_the_workdir_of_another_run_is_refused_and_left_alone(
    finished, run, changes, told
):
    workdir = Path(finished.config.workdir)
    before = {p: p.read_bytes() for p in sorted(workdir.rglob("*")) if p.is_file()}
    with pytest.raises(InputError) as caught:
        run(dataclasses.replace(finished.config, **changes))
    for text in ["holds another run", *told]:
        assert text in str(caught.value)
    assert before == {p: p.read_bytes() for p in before}


def test_a_mistake_in_the_network_can_be_mended_in_the_same_workdir(
    tiny, run, tmp_path, stop_at
):
    model = Model("shiftresnet20", {"depth": 9, "expansion": 1})
    with pytest.raises(InputError, match="depth=9"):
        run(tiny(tmp_path / "run", model=model))
    stop_at(1)
    assert run(tiny(tmp_path / "run"))[0].steps == 1


def test_two_runs_in_one_workdir_are_refused(finished, run, tmp_path):
    config = copy_of(finished, tmp_path / "run")
    with (tmp_path / "run" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="in use"):
            run(config)
    assert run(config)[0].finished  # free again


# --- interrupted runs ---------------------------------------------------------------


@pytest.fixture
def _interruptible():
    """SIGINT as in a terminal: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_a_signal_is_noted_and_a_second_one_is_not_held_up():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert stop.signal is None
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_no_signal_is_noted():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def enter() -> None:
        with StopRequest() as stop:
            found.append((stop.signal, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(None, before)]


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 7), (signal.SIGINT, 11)])
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(
    finished, run, tmp_path, stop_at, number, step
):
    """In the middle of an epoch (of 2.5 steps) and of a line of the record."""
    config = dataclasses.replace(finished.config, workdir=str(tmp_path / "run"))
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    stop_at(step, number)
    outcome, _ = run(config)
    assert not outcome.finished
    assert outcome.steps == int(outcome.state.step) == step
    assert outcome.test == {}
    assert max(saved_steps(config.workdir)) == step
    assert raw(checkpoint(config.workdir)) == raw(outcome.state)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert not [t for t in threading.enumerate() if "_work)" in t.name]  # Prefetch's

    stop_at(0)  # never
    outcome, text = run(config)
    assert f"resuming {config.workdir} at step {step}" in text
    assert outcome.finished
    assert raw(outcome.state) == raw(finished.outcome.state)
    assert outcome.test == finished.outcome.test
    assert places(config.workdir) == places(finished.config.workdir)
    assert lines(config.workdir) == lines(finished.config.workdir)


def wait_until(condition, process) -> bool:
    """Whether something happens before a process ends."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.001)
    return False


def test_a_run_that_is_killed_at_any_moment_ends_with_the_same_bits(
    finished, command_line, start, tmp_path
):
    """SIGKILL at random, while a checkpoint is written, and after another random time;
    then SIGTERM, which saves and ends well; each time the same command again.
    """
    config = dataclasses.replace(
        finished.config,
        workdir=str(tmp_path / "run"),
        log_steps=1,
        save_epochs=1 / EPOCH,
    )
    words = command_line(config)
    workdir = Path(config.workdir)
    record, checkpoints = workdir / "metrics.jsonl", workdir / "checkpoints"
    numbers = random.Random(0)

    def size() -> int:
        return record.stat().st_size if record.exists() else 0

    def is_saving() -> bool:
        return checkpoints.exists() and any(
            "tmp" in name for name in os.listdir(checkpoints)
        )

    def interrupt(number: int, condition, pause: float) -> tuple[int, str, str]:
        process = start(*words)
        try:
            assert wait_until(condition, process), process.communicate()
            time.sleep(pause)
            process.send_signal(number)
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        return process.returncode, out, err

    for condition in ("grows", is_saving, "grows"):
        before = size()
        grows = lambda before=before: size() not in (0, before)  # noqa: E731
        pause = numbers.uniform(0, 0.1) if condition == "grows" else 0
        condition = grows if condition == "grows" else condition
        code, out, err = interrupt(signal.SIGKILL, condition, pause)
        assert code == -signal.SIGKILL, (out, err)

    before = size()
    code, out, err = interrupt(signal.SIGTERM, lambda: size() not in (0, before), 0)
    assert (code, err) == (0, "")
    stopped = re.search(r"stopped after step (\d+), saved in", out)
    assert stopped
    assert int(stopped[1]) == max(saved_steps(config.workdir)) < STEPS

    last = start(*words)
    out, err = last.communicate(timeout=PATIENCE)
    assert (last.returncode, err) == (0, "")
    assert f"resuming {config.workdir} at step {stopped[1]}" in out
    assert raw(checkpoint(config.workdir)) == raw(finished.outcome.state)
    wanted = [(step, "train") for step in range(1, STEPS + 1)]
    wanted += [(10, "validation"), (20, "validation"), (20, "test")]
    assert sorted(places(config.workdir)) == sorted(wanted)  # each of them once
    for split in ("validation", "test"):
        assert lines(config.workdir, split) == lines(finished.config.workdir, split)


def test_a_damaged_checkpoint_is_passed_over_and_said(finished, run, tmp_path):
    """The run goes on from the one before, to the same bits and the same record."""
    config = copy_of(finished, tmp_path / "run")
    files = (tmp_path / "run" / "checkpoints" / "20" / "state").rglob("*/d/*")
    path = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    skipped: list[str] = []
    result = evaluate_run(config.workdir, on_skip=skipped.append)
    assert result["step"] == 15
    assert "checkpoint of step 20 is damaged" in "".join(skipped)
    outcome, text = run(config)
    assert "checkpoint of step 20 is damaged" in text
    assert "at step 15" in text
    assert raw(outcome.state) == raw(finished.outcome.state)
    assert outcome.test == finished.outcome.test
    assert lines(config.workdir, "validation", "test") == lines(
        finished.config.workdir, "validation", "test"
    )
    assert places(config.workdir) == places(finished.config.workdir)


def test_a_run_may_go_on_with_another_number_of_devices(
    finished, run, tmp_path, stop_at
):
    """From four to one and back to four, to the same result but rounding.

    The seven steps on one device are rounded otherwise than on four, by some 1e-7 of
    each number, and the steps after them amplify that; other examples, or statistics of
    a quarter of the batch, would be off by more than 0.01.
    """
    four = dataclasses.replace(finished.config, workdir=str(tmp_path / "run"))
    one = dataclasses.replace(four, devices=1)
    stop_at(6)
    assert run(four)[0].steps == 6
    stop_at(7)
    outcome, text = run(one)
    assert outcome.steps == 13
    assert "1 cpu device" in text
    stop_at(0)
    outcome, text = run(four)
    assert "at step 13" in text
    wanted = finished.outcome
    for name in ("params", "batch_stats"):
        pairs = zip(
            jax.tree.leaves(getattr(outcome.state, name)),
            jax.tree.leaves(getattr(wanted.state, name)),
            strict=True,
        )
        for x, y in pairs:
            scale = float(np.abs(y).max())
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * max(scale, 0.1))
    assert outcome.test["loss"] == pytest.approx(wanted.test["loss"], rel=1e-5)


def test_a_run_that_diverges_stops_and_keeps_what_was_good(tiny, run, tmp_path):
    """Rate 0 in the first step of the warm-up, far too high in the second.

    The loss of the second is still that of the first params.
    """
    schedule = Schedule("cosine", 1e30, warmup_epochs=1)
    config = tiny(tmp_path / "run", schedule=schedule, save_epochs=1 / EPOCH)
    for _ in range(2):  # the same command again meets the same end
        with pytest.raises(InputError, match=r"step 2 .*finite.* of step 1"):
            run(config)
        assert saved_steps(config.workdir) == [1]
        state = checkpoint(config.workdir)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
        assert max(np.abs(x).max() for x in jax.tree.leaves(state.params)) < 10
        assert not [t for t in threading.enumerate() if "_work)" in t.name]


# --- options ------------------------------------------------------------------------


def test_pictures_fed_from_the_host_give_the_same_bits(finished, run, tmp_path):
    """Eight steps a dispatch, but none beyond what is due."""
    config = finished.config
    config = dataclasses.replace(
        config,
        workdir=str(tmp_path / "run"),
        data=dataclasses.replace(config.data, resident_bytes=0),
        steps_per_dispatch=8,
        tensorboard=True,
    )
    outcome, _ = run(config)
    assert raw(outcome.state) == raw(finished.outcome.state)
    assert saved_steps(config.workdir) == saved_steps(finished.config.workdir)
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    for one, other in zip(
        lines(config.workdir), lines(finished.config.workdir), strict=True
    ):
        # Losses are summed in another order: in float32 by the device.
        loss = other.pop("loss")
        assert one.pop("loss") == pytest.approx(loss, rel=1e-6)
        assert one == other


@dataclasses.dataclass
class Steps:
    """Three steps of a run.

    Attributes:
      state: the last one.
      batch_stats: after the first step, whose rate is 0.
      losses: of each step.
    """

    state: TrainState
    batch_stats: Any
    losses: list[float]


def three_steps(config: Config) -> Steps:
    setup = set_up(config)
    state = setup.replicas.replicate(setup.initial_state())
    data, _ = setup.on_devices(setup.train_set)
    losses, first = [], None
    for step in range(3):
        batch = setup.replicas.split(items(setup.order.indices(step)[None], None, 1))
        state, sums = setup.train_steps(state, data, batch, np.int32(1))
        losses.append(float(sums["loss"]) / config.batch_size)
        first = first or jax.device_get(state.batch_stats)
    return Steps(state, first, losses)


@pytest.fixture(scope="module")
def plain(compiled_once, tiny) -> Steps:
    with compiled_once():
        return three_steps(tiny("w", devices=1))


def largest_difference(one: Any, other: Any) -> float:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


def test_bfloat16_and_remat_compute_roughly_the_same_and_keep_float32(plain, tiny):
    """It has 8 bits: a number is off by 0.2 percent, a mean of many by less."""
    model = dataclasses.replace(tiny("w").model, dtype="bfloat16", remat=True)
    steps = three_steps(tiny("w", devices=1, model=model))
    kinds = {leaf.dtype for leaf in jax.tree.leaves(steps.state.params)}
    assert kinds == {np.dtype("float32")}
    assert steps.losses != plain.losses
    assert steps.losses == pytest.approx(plain.losses, rel=0.02)
    assert 1e-5 < largest_difference(steps.state.params, plain.state.params) < 0.1


def test_without_synchronisation_devices_normalise_alone(plain, tiny):
    """The stem's running statistics are still those of the whole batch; of later
    layers, whose inputs were normalised otherwise, they are not.
    """
    model = dataclasses.replace(tiny("w").model, sync_batch_norm=False)
    steps = three_steps(tiny("w", devices=4, model=model))
    alone, wanted = steps.batch_stats, plain.batch_stats
    assert largest_difference(alone["stem"], wanted["stem"]) < 1e-5  # float32
    last = "stage3_block01"
    assert largest_difference(alone[last], wanted[last]) > 1e-3
    assert steps.losses != pytest.approx(plain.losses, rel=1e-3)


def test_mixing_smoothing_averaging_and_clipping_change_what_they_should(
    plain, tiny, run, tmp_path
):
    config = tiny(
        tmp_path / "run",
        epochs=3 / EPOCH,
        log_steps=1,
        label_smoothing=0.1,
        ema_decay=0.9,
        augment=Augment(crop_padding=1, flip=True, mixup=0.4),
        optimizer=Optimizer(nesterov=True, decay="kernels", clip_norm=0.01),
        schedule=Schedule("constant", 0.1),
        backend="shard_map",
    )
    outcome, _ = run(config)
    first = lines(config.workdir, "train")[0]
    # Targets less certain, images mixed: another loss of the same first params.
    assert abs(first["loss"] - plain.losses[0]) > 0.01
    start = set_up(config).initial_state()
    # Three steps of clipped gradients with Nesterov's momentum, and decay.
    moved = largest_difference(outcome.state.params, start.params)
    assert 0 < moved < 0.1 * 0.01 * 3 * (1 + 0.9 + 0.81 + 0.73) + 0.01
    average = outcome.state.ema["params"]
    assert 0 < largest_difference(average, start.params) < moved
    assert evaluate_run(config.workdir)["loss"] == pytest.approx(
        outcome.test["loss"], rel=1e-6
    )


# --- when something is due ----------------------------------------------------------


def test_every_multiple_of_a_period_is_due_once():
    """Rounded at each multiple, so that nothing drifts: 2.5, 5, 7.5, 10, 12.5, ..."""
    due, step = [], 0
    while step < 20:
        step = every(2.5, step)
        due.append(step)
    assert due == [3, 5, 8, 10, 13, 15, 18, 20]


@pytest.mark.parametrize("period", [1.0, 1.3, 2.5, 3, 81.25, 390.625, 0.1])
def test_the_next_step_due_is_the_same_from_each_step_before(period):
    multiples = np.floor(max(period, 1) * np.arange(1, 400) + 0.5).astype(int)
    for step in range(300):
        assert every(period, step) == multiples[multiples > step].min()


def test_a_period_without_end_is_never_due():
    assert every(math.inf, 0) > 2**31
    assert every(math.inf, 10**6) > 2**31


# --- evaluation after the fact ------------------------------------------------------


@pytest.mark.parametrize("devices", [None, 1, 3, 4])
def test_a_run_evaluated_again_gives_what_it_recorded(finished, devices):
    """On all devices, on one, and on three that do not divide the batch of training."""
    result = evaluate_run(finished.config.workdir, devices=devices)
    wanted = finished.outcome.test
    # A sum of 360 in float32; another number of devices adds in another order.
    assert result.pop("loss") == pytest.approx(wanted["loss"], rel=1e-5)
    assert result == {"top1": wanted["top1"], "examples": 360, "step": STEPS}


def test_other_splits_and_steps_can_be_evaluated(finished):
    workdir = finished.config.workdir
    *_, wanted = lines(workdir, "validation")
    result = evaluate_run(workdir, "validation")
    assert result["loss"] == pytest.approx(wanted["loss"], rel=1e-6)  # float32
    assert result["top1"] == wanted["top1"]
    assert evaluate_run(workdir, "train")["examples"] == 40
    earlier = evaluate_run(workdir, step=15)
    assert earlier["step"] == 15
    assert earlier["loss"] != evaluate_run(workdir)["loss"]


def test_what_cannot_be_evaluated_is_named(finished, tmp_path, tiny):
    workdir = finished.config.workdir
    with pytest.raises(MissingFileError, match=r"step 7 .*\(there: .*15, 20\)"):
        evaluate_run(workdir, step=7)
    with pytest.raises(InputError, match="unknown split 'tests': did you mean 'test'"):
        evaluate_run(workdir, "tests")
    with pytest.raises(InputError, match="--devices 0"):
        evaluate_run(workdir, devices=0)
    with pytest.raises(InputError, match="devices=5: this process has 4"):
        evaluate_run(workdir, devices=5)
    with pytest.raises(MissingFileError, match="holds no run"):
        evaluate_run(str(tmp_path))
    config_file.save(tiny(tmp_path), tmp_path)
    with pytest.raises(InputError, match="holds no checkpoint yet"):
        evaluate_run(str(tmp_path))
