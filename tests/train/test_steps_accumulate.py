"""Micro-batches: the update of the whole batch, in less memory."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.small_trainer import (
    BACKENDS,
    BATCH,
    CLASSES,
    IMAGES,
    MEAN,
    MOMENTUM,
    PLAIN,
    STD,
    Net,
    assert_close,
    assert_same_bits,
    batches,
    fresh,
    make_trainer,
    train,
)
from train.assemble import set_up
from train.config import Augment
from train.parallel import AXIS
from train.steps import NEVER

pytestmark = pytest.mark.usefixtures("quick")

MIXED = Augment(crop_padding=2, mixup=0.4, cutmix=1.0, erase=0.5)


class Plain(nn.Module):
    """A network without BatchNorm."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.silu(nn.Conv(6, (3, 3), 2, name="conv")(x))
        return nn.Dense(CLASSES, name="head")(x.mean((1, 2)))


# --- the result -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "backend", "count", "augment"),
    [*((*found, 4, PLAIN) for found in BACKENDS), (2, "pmap", 2, MIXED)],
)
def test_without_batchnorm_it_is_the_step_of_the_whole_batch(
    devices, backend, count, augment
):
    """In float32, three steps long. Examples are mixed before they are split."""
    options = {"augment": augment, "label_smoothing": 0.1, "ema_decay": 0.24}
    wanted, wanted_sums = train(make_trainer(Plain(), **options), 3, devices, backend)
    trainer = make_trainer(Plain(), **options, accumulate=count)
    state, sums = train(trainer, 3, devices, backend)
    assert_close(state, wanted, 2e-5)
    assert sums["loss"] == pytest.approx(wanted_sums["loss"], rel=1e-5)
    assert sums["top1"] == wanted_sums["top1"]
    assert sums["examples"] == 3 * BATCH
    assert sums["bad_step"] == NEVER


@pytest.mark.parametrize("count", [2])
def test_micro_batches_on_one_device_are_as_devices_that_normalize_alone(count):
    """Loss, gradient and running statistics: so many devices have the same parts."""
    wanted, wanted_sums = train(make_trainer(Net(None), augment=PLAIN), 3, count)
    trainer = make_trainer(Net(AXIS), augment=PLAIN, accumulate=count)
    state, sums = train(trainer, 3, 1)
    assert_close(state, wanted, 2e-5)
    assert sums["loss"] == pytest.approx(wanted_sums["loss"], rel=1e-5)
    whole, _ = train(make_trainer(Net(AXIS), augment=PLAIN), 3, 1)
    difference = state.params["conv"]["kernel"] - whole.params["conv"]["kernel"]
    assert float(jnp.abs(difference).max()) > 1e-4


@pytest.mark.parametrize("axis_name", [None, AXIS], ids=["alone", "synchronized"])
@pytest.mark.parametrize(("devices", "backend"), BACKENDS)
def test_running_statistics_of_the_first_layer_are_of_the_whole_batch(
    devices, backend, axis_name
):
    """Its inputs are equal; the outputs of the convolution are computed by NumPy."""
    trainer = make_trainer(Net(axis_name), augment=PLAIN, accumulate=2)
    state, _ = train(trainer, 1, devices, backend)
    kernel = np.asarray(fresh(trainer).params["conv"]["kernel"], np.float64)
    images = (IMAGES[batches(1)[0]] / 255 - MEAN) / STD
    wide = np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)))  # "SAME" with stride 2
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), (1, 2))
    outputs = np.einsum("nyxcij,ijcf->nyxf", windows[:, ::2, ::2], kernel)
    outputs = outputs.reshape(-1, 6)
    first = state.batch_stats["first"]
    mean = (1 - MOMENTUM) * outputs.mean(0)
    var = MOMENTUM + (1 - MOMENTUM) * outputs.var(0)
    # float32, sums over 256 pixels
    np.testing.assert_allclose(first["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first["var"], var, rtol=1e-5, atol=1e-6)


def test_how_steps_are_grouped_changes_no_bit():
    trainer = make_trainer(accumulate=2, ema_decay=0.24)
    wanted, _ = train(trainer, 4)
    for groups, length in (([1, 3], 4), ([2, 2], 3)):
        state, sums = train(trainer, 4, groups=groups, length=length)
        assert_same_bits(state, wanted)
        assert sums["examples"] == 4 * BATCH


@pytest.mark.parametrize("devices", [1, 4])
def test_the_first_step_that_goes_wrong_is_named(devices):
    def rate(step: jax.Array) -> jax.Array:
        return jnp.where(step == 1, jnp.inf, 0.01)

    trainer = make_trainer(augment=PLAIN, rate=rate, accumulate=2)
    assert train(trainer, 1, devices)[1]["bad_step"] == NEVER
    assert train(trainer, 4, devices)[1]["bad_step"] == 2


# --- memory ---------------------------------------------------------------------------


def test_micro_batches_need_less_memory(tiny):
    """Of one image in eight the activations are an eighth; the params stay."""
    data = dataclasses.replace(tiny("w").data, image_size=32)
    memory = {}
    for count in (1, 8):
        setup = set_up(tiny("w", devices=1, data=data, accumulate=count))
        state = jax.eval_shape(setup.initial_state)
        images, _ = setup.on_devices(setup.train_set)
        index = setup.order.indices(0)[None].astype(np.int32)
        item = setup.replicas.split({"index": index})
        compiled = setup.train_steps.lower(state, images, item, np.int32(1)).compile()
        memory[count] = compiled.memory_analysis().temp_size_in_bytes
    assert memory[8] < memory[1] / 3
