"""The steps of training: loss, average, grouping and placement, against NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.small_trainer import (
    BATCH,
    CLASS_NAMES,
    CLASSES,
    DATA,
    EXAMPLES,
    IMAGES,
    LABELS,
    MEAN,
    PLAIN,
    STD,
    Net,
    assert_close,
    assert_same_bits,
    batches,
    fresh,
    leaves,
    log_softmax,
    make_trainer,
    train,
)
from train.data.image_set import ImageSet
from train.data.placement import training_items
from train.data.stream import Order
from train.parallel import AXIS
from train.state import TrainState
from train.steps import NEVER

pytestmark = pytest.mark.usefixtures("quick")


# --- the loss and the sums ------------------------------------------------------------


def logits_in_training(state: TrainState, images: np.ndarray) -> np.ndarray:
    """Computes the logits of the network, for images normalized by NumPy."""
    images = ((images / 255 - MEAN) / STD).astype(np.float32)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    apply = functools.partial(
        Net(axis_name=None).apply, train=True, mutable=["batch_stats"]
    )
    logits, _ = jax.jit(apply)(variables, images)
    return np.asarray(logits, np.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("devices", [1, 4])
def test_loss_and_top1_are_those_of_the_batch(smoothing, devices):
    trainer = make_trainer(augment=PLAIN, label_smoothing=smoothing)
    state = fresh(trainer)
    _, sums = train(trainer, 1, devices)
    (index,) = batches(1)
    logits = logits_in_training(state, IMAGES[index])
    labels = LABELS[index]
    targets = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
    loss = -(targets * log_softmax(logits)).sum()
    assert sums["loss"] == pytest.approx(loss, rel=1e-5)  # a sum of 16 in float32
    assert sums["top1"] == (logits.argmax(-1) == labels).sum()
    assert sums["examples"] == BATCH
    assert sums["bad_step"] == NEVER


def test_the_average_of_variables_moves_as_stated():
    """By 1 - min(decay, (1 + t) / (10 + t)) after step t: 2/11, 3/12, 4/13 keep."""
    decay = 0.24  # reached in the second step
    trainer = make_trainer(ema_decay=decay)
    state = fresh(trainer)
    wanted = leaves(state.variables)
    for t in (1, 2, 3):
        state, _ = train(trainer, 1, state=state)
        new = leaves({"params": state.params, "batch_stats": state.batch_stats})
        keep = min(decay, (1 + t) / (10 + t))
        wanted = {name: keep * x + (1 - keep) * new[name] for name, x in wanted.items()}
        for name, x in leaves(state.ema).items():
            # float32
            np.testing.assert_allclose(x, wanted[name], rtol=1e-5, atol=1e-7)
    assert state.variables is state.ema


def test_the_average_changes_nothing_else():
    plain, _ = train(make_trainer(), 3)
    averaged, _ = train(make_trainer(ema_decay=0.24), 3)
    assert_same_bits(plain, averaged.replace(ema=None))


# --- statistics that are frozen -------------------------------------------------------


@pytest.mark.parametrize("patterns", [("first",), ("*irst*", "conv")])
def test_frozen_statistics_stay_and_nothing_else_changes(patterns):
    """In training BatchNorm normalizes by the batch, so all others have the same bits.

    A pattern that matches parameters alone, as of a convolution, is no mistake.
    """
    trainer = make_trainer()
    frozen = dataclasses.replace(trainer, frozen_statistics=patterns)
    plain, _ = train(trainer, 2)
    state, _ = train(frozen, 2)
    start = fresh(trainer).batch_stats
    assert_same_bits(state.batch_stats["first"], start["first"])
    for name in ("mean", "var"):
        assert np.all(plain.batch_stats["first"][name] != start["first"][name])
    stats = plain.batch_stats | {"first": start["first"]}
    assert_same_bits(state, plain.replace(batch_stats=stats))


# --- how steps are grouped, and where examples lie ------------------------------------


@pytest.mark.parametrize(
    ("groups", "length"),
    [([1, 1, 1, 1], 2), ([1, 3], 4), ([4], 7)],
    ids=str,
)
def test_how_steps_are_grouped_changes_no_bit(groups, length):
    trainer = make_trainer(ema_decay=0.24)
    wanted, wanted_sums = train(trainer, 4)
    state, sums = train(trainer, 4, groups=groups, length=length)
    assert_same_bits(state, wanted)
    # The sums of dispatches are added in float64, those within one in float32.
    assert sums["loss"] == pytest.approx(wanted_sums["loss"], rel=1e-6)
    assert sums["top1"] == wanted_sums["top1"]
    assert sums["examples"] == 4 * BATCH


def test_a_program_of_one_step_has_no_loop_and_is_equal_to_rounding():
    """XLA compiles a convolution's gradient otherwise outside of a loop."""
    trainer = make_trainer(ema_decay=0.24)
    item = {"index": np.zeros((1, BATCH // 4), np.int32)}
    traced = jax.make_jaxpr(trainer.train_steps, axis_env=[(AXIS, 4)])
    assert "while[" not in str(traced(fresh(trainer), DATA, item, np.int32(1)))
    item = {"index": np.zeros((2, BATCH // 4), np.int32)}
    assert "while[" in str(traced(fresh(trainer), DATA, item, np.int32(1)))
    wanted, wanted_sums = train(trainer, 4)
    state, sums = train(trainer, 4, groups=[1, 1, 1, 1], length=1)
    assert_close(state, wanted, 1e-5)
    assert sums["loss"] == pytest.approx(wanted_sums["loss"], rel=1e-6)
    assert sums["top1"] == wanted_sums["top1"]


def test_fed_examples_give_the_same_bits_as_resident_ones():
    trainer = make_trainer()
    wanted, wanted_sums = train(trainer, 3)
    state, sums = train(trainer, 3, fed=True)
    assert_same_bits(state, wanted)
    assert sums == wanted_sums


@pytest.mark.parametrize("fed", [False, True])
def test_augmentation_is_another_at_each_draw_of_a_balanced_step(fed):
    """Half of the step is one example, whose class has no other."""
    order = Order(EXAMPLES, BATCH, seed=0, classes=np.arange(EXAMPLES) == 7)
    examples = ImageSet(IMAGES, LABELS, CLASS_NAMES) if fed else None
    item = training_items(order, range(1), examples, 1)
    item = {name: jnp.asarray(x[0]) for name, x in item.items()}
    task = make_trainer().task
    images, *_ = task.batch(None if fed else DATA, item, jax.random.key(0))
    drawn = np.asarray(images)[item["index"] == 7]
    assert len(drawn) == BATCH // 2
    # Of 50 outcomes, 8 draws have 7.4 different ones on average.
    assert len({image.tobytes() for image in drawn}) >= 5


def test_augmentation_is_another_in_each_step():
    """The same batch at another step is moved otherwise, and so the loss differs."""
    trainer = make_trainer()
    state = fresh(trainer)
    losses = []
    for step in range(3):
        moved = state.replace(step=jnp.int32(step))
        losses.append(train(trainer, 1, state=moved)[1]["loss"])
    assert len(set(losses)) == 3


# --- losses that are not finite -------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 4])
def test_the_first_step_that_goes_wrong_is_named(devices):
    """Steps are counted from 1: with the rate of step 2 its params are lost.

    They are lost although its loss, of the params before, is finite: so a checkpoint
    of this step must not be kept.
    """
    rate = lambda step: jnp.where(step == 1, jnp.inf, 0.01)  # noqa: E731
    trainer = make_trainer(augment=PLAIN, rate=rate)
    _, sums = train(trainer, 1, devices)
    assert sums["bad_step"] == NEVER
    for steps in (2, 4):
        _, sums = train(trainer, steps, devices)
        assert sums["bad_step"] == 2


def test_params_that_are_not_finite_are_named_with_the_step():
    trainer = make_trainer()
    state = fresh(trainer)
    params = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), state.params)
    state = state.replace(params=params, step=jnp.int32(7))
    _, sums = train(trainer, 3, state=state)
    assert sums["bad_step"] == 8
