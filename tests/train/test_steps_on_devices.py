"""Steps on one device and on four: gradients, states and BatchNorm's statistics."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from tests.train.small_trainer import (
    BACKENDS,
    BATCH,
    DATA,
    IMAGES,
    LABELS,
    MEAN,
    MOMENTUM,
    PLAIN,
    STD,
    Net,
    assert_close,
    batches,
    fresh,
    make_trainer,
    train,
)
from train.config import Optimizer
from train.data.augment import normalize
from train.parallel import AXIS, Replicas
from train.state import TrainState
from train.steps import Trainer, merge_statistics

pytestmark = pytest.mark.usefixtures("quick")


# --- one device and several -----------------------------------------------------------


def reference_step(trainer: Trainer, state: TrainState, images, labels) -> TrainState:
    """One step on a whole batch on one device, written out without replicas."""
    net = trainer.task.model.clone(axis_name=None)

    def objective(params):
        logits, updates = net.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -chosen.mean(), updates["batch_stats"]

    gradient, stats = jax.grad(objective, has_aux=True)(state.params)
    updates, opt_state = trainer.optimizer.update(
        gradient, state.opt_state, state.params
    )
    return state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=stats,
        opt_state=opt_state,
    )


@functools.cache
def train_by_hand(trainer: Trainer, steps: int) -> TrainState:
    state, step = fresh(trainer), jax.jit(functools.partial(reference_step, trainer))
    for index in batches(steps):
        images = normalize(jnp.asarray(IMAGES[index]), MEAN, STD)
        state = step(state, images, LABELS[index])
    return state


@pytest.mark.parametrize(("devices", "backend"), BACKENDS)
def test_devices_and_backends_agree_with_a_plain_step(devices, backend):
    """In float32: sums over 16 * 16 pixels in another order, three steps long."""
    trainer = make_trainer(Net(AXIS), augment=PLAIN)
    state, _ = train(trainer, 3, devices, backend)
    assert int(state.step) == 3
    assert_close(state, train_by_hand(trainer, 3), 2e-5)


@pytest.mark.parametrize(("devices", "backend"), BACKENDS[1:])
def test_augmented_steps_agree_on_all_devices(devices, backend):
    """An example is augmented alike wherever it is; the tolerance is the one above."""
    trainer = make_trainer()
    wanted, wanted_sums = train(trainer, 3, 1, "pmap")
    state, sums = train(trainer, 3, devices, backend)
    assert_close(state, wanted, 2e-5)
    assert sums["loss"] == pytest.approx(wanted_sums["loss"], rel=1e-5)
    assert sums["top1"] == wanted_sums["top1"]
    assert sums["examples"] == 3 * BATCH


@pytest.mark.parametrize(("devices", "backend"), BACKENDS)
def test_in_float64_they_agree_to_its_rounding(devices, backend):
    """So what differs in float32 is rounding: no factor, no example, no statistic.

    The tolerance is 10,000 units of the last place; a step over the wrong number of
    devices, or with a mean of variances, is off by more than 1e-3.
    """
    with jax.enable_x64(True):
        trainer = make_trainer(Net(param_dtype=jnp.float64), augment=PLAIN)

        def program(state, data, items, count):
            item = jax.tree.map(lambda x: x[0], items)
            return trainer.train_step(state, data, item)[0]

        replicas = Replicas.local(devices, backend)
        run, data = replicas.parallelize(program), replicas.replicate(DATA)
        state = replicas.replicate(fresh(trainer))
        for index in batches(3):
            items = replicas.split({"index": index[None]})
            state = run(state, data, items, np.int32(1))
        kinds = {x.dtype for x in jax.tree.leaves((state.params, state.batch_stats))}
        assert kinds == {np.dtype("float64")}
        assert_close(state, train_by_hand(trainer, 3), 1e-12)


def test_the_gradient_is_the_slope_of_the_loss():
    """Central differences in float64 along a random direction.

    Plain descent at rate 1 moves the params by minus the gradient. The error of a
    difference of 2e-5 is its square, and the rounding of the loss over it: 1e-10.
    """
    with jax.enable_x64(True):
        net = Net(param_dtype=jnp.float64)
        options = Optimizer(momentum=0.0, weight_decay=0.0)
        trainer = make_trainer(
            net, augment=PLAIN, options=options, rate=lambda _: 1.0, label_smoothing=0.1
        )
        replicas = Replicas.local(4)
        items = replicas.split({"index": batches(1)})

        def program(state, data, items, count):
            item = jax.tree.map(lambda x: x[0], items)
            after, sums = trainer.train_step(state, data, item)
            return after.params, lax.psum(sums["loss"], AXIS) / BATCH

        run, data = replicas.parallelize(program), replicas.replicate(DATA)
        state = fresh(trainer)
        rng = np.random.default_rng(2)
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), state.params)

        def at(distance: float) -> tuple[Any, float]:
            params = jax.tree.map(
                lambda p, d: p + distance * d, state.params, direction
            )
            moved = replicas.replicate(state.replace(params=params))
            return run(moved, data, items, np.int32(1))

        slope = (float(at(1e-5)[1]) - float(at(-1e-5)[1])) / 2e-5
        step = jax.tree.map(lambda a, b: a - b, state.params, at(0.0)[0])
        pairs = zip(jax.tree.leaves(step), jax.tree.leaves(direction), strict=True)
        product = sum((np.asarray(g) * d).sum() for g, d in pairs)
        assert abs(slope) > 1e-3
        assert product == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("axis_name", [AXIS, None], ids=["synchronised", "alone"])
@pytest.mark.parametrize("backend", ["pmap", "shard_map"])
def test_the_state_is_the_same_on_every_device(backend, axis_name):
    trainer = make_trainer(Net(axis_name), augment=PLAIN)
    state, _ = train(trainer, 3, 4, backend)
    for name, x in jax.tree.leaves_with_path(state):
        copies = [np.asarray(shard.data).tobytes() for shard in x.addressable_shards]
        assert len(copies) == 4
        assert len(set(copies)) == 1, jax.tree_util.keystr(name)


# --- BatchNorm's statistics -----------------------------------------------------------


def test_merged_statistics_are_those_of_the_whole_batch():
    """The law of total variance, for a tree of two layers; float32."""
    rng = np.random.default_rng(0)
    momentum, replicas = 0.7, Replicas.local(4)
    old = {"mean": rng.normal(size=3), "var": rng.uniform(1, 2, 3)}
    # Batches of the devices that differ much more than they vary.
    inputs = rng.normal(size=(2, 4, 5, 3)) + 10 * rng.normal(size=(2, 4, 1, 3))

    def program(state, data, items, count):
        def layer(x: jax.Array) -> dict[str, jax.Array]:
            new = {"mean": x.mean(0), "var": x.var(0)}
            return {k: momentum * old[k] + (1 - momentum) * new[k] for k in new}

        stats = {"stem": layer(items[0]), "stage": {"norm": layer(items[1])}}
        return merge_statistics(stats, momentum)

    items = replicas.split(inputs.reshape(2, 20, 3).astype(np.float32))
    merged = replicas.parallelize(program)(0, 0, items, 0)
    for stats, x in ((merged["stem"], inputs[0]), (merged["stage"]["norm"], inputs[1])):
        whole = x.reshape(20, 3)
        for name, new in (("mean", whole.mean(0)), ("var", whole.var(0))):
            wanted = momentum * old[name] + (1 - momentum) * new
            np.testing.assert_allclose(stats[name], wanted, rtol=1e-5)


def test_without_synchronisation_running_statistics_are_of_the_whole_batch():
    """Compares the first layer, whose inputs are equal, with NumPy and synchronized."""
    alone, _ = train(make_trainer(Net(None), augment=PLAIN), 1)
    together, _ = train(make_trainer(Net(AXIS), augment=PLAIN), 1)
    kernel = np.asarray(fresh(make_trainer()).params["conv"]["kernel"], np.float64)
    images = (IMAGES[batches(1)[0]] / 255 - MEAN) / STD
    wide = np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)))  # "SAME" with stride 2
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), (1, 2))
    outputs = np.einsum("nyxcij,ijcf->nyxf", windows[:, ::2, ::2], kernel)
    outputs = outputs.reshape(-1, 6)
    wanted = {
        "mean": (1 - MOMENTUM) * outputs.mean(0),
        "var": MOMENTUM + (1 - MOMENTUM) * outputs.var(0),
    }
    for name, x in wanted.items():
        for state in (alone, together):
            # float32, sums over 256 pixels
            np.testing.assert_allclose(
                state.batch_stats["first"][name], x, rtol=1e-5, atol=1e-6
            )


def test_synchronisation_makes_a_difference_to_what_is_learned():
    alone, _ = train(make_trainer(Net(None), augment=PLAIN), 1)
    together, _ = train(make_trainer(Net(AXIS), augment=PLAIN), 1)
    one, other = alone.params["conv"]["kernel"], together.params["conv"]["kernel"]
    assert float(jnp.abs(one - other).max()) > 1e-4
