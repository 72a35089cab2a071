"""Options of a run, and their effect on its steps."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

import shiftjax
from shiftjax.apps.verify import verify
from shiftjax.errors import InputError
from shiftjax.weights import open_pretrained
from tests.train.runs import (
    EPOCH,
    lines,
    places,
    raw,
    saved_steps,
)
from train import commands, loop
from train.assemble import set_up
from train.config import (
    Augment,
    Config,
    Optimizer,
    Schedule,
    load_config,
    validate,
)
from train.data.image_set import ImageSet
from train.data.sources import load_source
from train.data.stream import items
from train.evaluation import evaluate_run, evaluate_weights
from train.release import load_run, release
from train.state import TrainState
from train.tasks import load_split
from train.tasks.models import make_model

pytestmark = pytest.mark.usefixtures("quick")


def test_pictures_fed_from_the_host_give_the_same_bits(finished, run, tmp_path):
    """Eight steps a dispatch, but none beyond what is due.

    A program of one step, as of the finished run, is equal to rounding alone.
    """
    resident = dataclasses.replace(
        finished.config, workdir=str(tmp_path / "resident"), steps_per_dispatch=8
    )
    config = dataclasses.replace(
        resident,
        workdir=str(tmp_path / "run"),
        data=dataclasses.replace(resident.data, resident_bytes=0),
        log_to=("tensorboard",),
    )
    wanted, _ = run(resident)
    outcome, _ = run(config)
    assert raw(outcome.state) == raw(wanted.state)
    for workdir in (config.workdir, resident.workdir):
        assert saved_steps(workdir) == saved_steps(finished.config.workdir)
        assert places(workdir) == places(finished.config.workdir)
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    for one, other in zip(lines(config.workdir), lines(resident.workdir), strict=True):
        # Losses are summed in another order: in float32 by the device.
        loss = other.pop("loss")
        assert one.pop("loss") == pytest.approx(loss, rel=1e-6)
        assert one == other


def test_an_archive_of_the_digits_trains_the_same_bits(finished, run, tmp_path):
    arrays = {}
    for ours, split in (("train", "train+validation"), ("test", "test")):
        digits = load_source("digits", split, image_size=8, channels=1)
        assert isinstance(digits, ImageSet)
        arrays[f"{ours}_images"] = digits.images[..., 0]
        arrays[f"{ours}_labels"] = digits.labels
    np.savez(tmp_path / "digits.npz", **arrays)
    config = finished.config
    data = dataclasses.replace(config.data, source=f"npz:{tmp_path / 'digits.npz'}")
    config = dataclasses.replace(config, workdir=str(tmp_path / "run"), data=data)
    outcome, _ = run(config)
    assert raw(outcome.state) == raw(finished.outcome.state)
    assert outcome.test == finished.outcome.test


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
    both = outcome.state.raw_variables, outcome.state.ema
    wanted = [loss_of_test(config, jax.device_get(variables)) for variables in both]
    *_, validated, raw_validated, raw_tested, tested = lines(config.workdir)
    found = [raw_tested["loss"], tested["loss"]]
    assert found == pytest.approx(wanted, rel=1e-5)  # float32
    assert [raw_tested["split"], tested["split"]] == ["test_raw", "test"]
    assert [validated["split"], raw_validated["split"]] == [
        "validation",
        "validation_raw",
    ]
    for line, average in ((raw_tested, tested), (raw_validated, validated)):
        assert abs(line["loss"] - average["loss"]) > 1e-3


def loss_of_test(config: Config, variables: Any) -> float:
    """Returns the cross-entropy of the test split, without the trainer's programs."""
    examples = load_split(config, "test")
    model = make_model(config, num_classes=examples.num_classes)
    logits = jax.jit(model.apply)(variables, examples.images / 127.5 - 1)
    chosen = np.asarray(logits)[np.arange(len(examples)), examples.labels]
    return float((jax.scipy.special.logsumexp(logits, axis=-1) - chosen).mean())


def test_gray_images_are_trained_on_with_one_channel(run, tiny, tmp_path):
    config = tiny(tmp_path / "run", epochs=2.0)
    gray = {"mean": (0.5,), "std": (0.25,)}
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **gray))
    outcome, _ = run(config)
    assert outcome.state.params["stem"]["conv"]["kernel"].shape == (3, 3, 1, 16)
    assert load_config(config.workdir).data == config.data
    pretrained = load_run(config.workdir)
    assert pretrained.card.image_shape() == (8, 8, 1)
    assert (pretrained.card.mean, pretrained.card.std) == ((0.5,), (0.25,))


def test_images_that_are_not_square(run, tiny, tmp_path):
    """Trained, evaluated, released and verified: eight rows of twelve pixels."""
    config = tiny(tmp_path / "run", epochs=2.0)
    data = dataclasses.replace(config.data, image_size=(8, 12))
    config = dataclasses.replace(config, data=data)
    outcome, _ = run(config)
    assert load_config(config.workdir).data.image_size == (8, 12)
    assert outcome.test["examples"] == 360
    entry = release([config.workdir], "wide", tmp_path / "zoo")
    verify(entry.name, tmp_path / "zoo")
    pretrained = open_pretrained(entry.name, tmp_path / "zoo")
    assert pretrained.card.image_shape() == (8, 12, 3)
    summary = shiftjax.summarize(pretrained.model, (8, 12))
    assert (entry.params, entry.macs) == (summary.params, summary.macs)
    again = evaluate_weights(entry.name, str(tmp_path / "zoo"))
    assert again["top1"] == outcome.test["top1"]


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.5, 0.5, 0.5)), ((), ()), ((0.5,) * 2, (0.5,) * 2)]
)
def test_means_and_deviations_are_one_or_three(tiny, mean, std):
    config = tiny("run")
    data = dataclasses.replace(config.data, mean=mean, std=std)
    with pytest.raises(InputError, match="give one number each for gray"):
        validate(dataclasses.replace(config, data=data))


def test_a_run_is_saved_by_time_after_a_line_of_the_log(run, tiny, tmp_path):
    """Each line, of three steps, is written long after the last save."""
    config = tiny(
        tmp_path / "run", save_epochs=1e9, save_minutes=1e-9, keep_last=99, epochs=4.0
    )
    run(config)
    assert saved_steps(config.workdir) == [3, 6, 9, 10]


def test_a_run_is_not_saved_before_its_time(run, tiny, tmp_path):
    config = tiny(tmp_path / "run", save_epochs=1e9, save_minutes=1e9, epochs=4.0)
    run(config)
    assert saved_steps(config.workdir) == [10]


def test_a_profile_is_written_after_the_first_dispatches(run, tiny, tmp_path):
    config = tiny(tmp_path / "run", profile=2, epochs=4.0)
    _, text = run(config)
    folder = tmp_path / "run" / "profile"
    assert text.count(f"a profile of steps 3 to 4 is in {folder}") == 1
    (trace,) = folder.rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


def test_a_device_without_memory_is_explained(tiny, tmp_path, monkeypatch, capsys):
    def exhausted(config):
        setup = set_up(config)

        def fail(*_):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

        fail.lower = fail  # pyright: ignore
        setup.__dict__["train_steps"] = fail
        return setup

    monkeypatch.setattr(loop, "set_up", exhausted)
    monkeypatch.setattr(commands, "prepare_process", lambda *_: None)
    with pytest.raises(InputError) as caught:
        commands.train_run(tiny(tmp_path / "run"), Console(quiet=True))
    message = str(caught.value)
    assert "memory of a device is too small" in message
    for flag in (
        "--batch-size",
        "--accumulate",
        "--model.remat",
        "--data.resident-bytes",
    ):
        assert flag in message
    assert "\n" not in message
