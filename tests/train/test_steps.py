"""The steps of training and evaluation, on one device and on four, against NumPy."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from train.config import Augment, Optimizer
from train.data.augment import normalize
from train.data.image_set import ImageSet
from train.data.resident import Resident
from train.optimizer import make_optimizer
from train.parallel import AXIS, Replicas
from train.state import TrainState, create_state
from train.steps import NEVER, Trainer, merge_statistics
from train.tasks.classification import Classification

pytestmark = pytest.mark.usefixtures("quick")

CLASSES = 12
EXAMPLES = 41
BATCH = 16
SHAPE = (8, 8, 3)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PLAIN = Augment(crop_padding=0, flip=False)
MOVED = Augment(crop_padding=2, flip=True)
MOMENTUM = 0.9

BACKENDS = [(1, "pmap"), (4, "pmap"), (4, "shard_map")]
LENGTH = 4  # steps to which a dispatch is padded


_NUMBERS = np.random.default_rng(0)
IMAGES = _NUMBERS.integers(0, 256, (EXAMPLES, *SHAPE), np.uint8)
LABELS = _NUMBERS.integers(0, CLASSES, EXAMPLES).astype(np.int32)
CLASS_NAMES = tuple(map(str, range(CLASSES)))
DATA = Resident.of(ImageSet(IMAGES, LABELS, CLASS_NAMES))
FED = {"images": IMAGES, "labels": LABELS}


class Net(nn.Module):
    """Two BatchNorms, one before and one after something that is not linear."""

    axis_name: str | None = AXIS
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        kind = {"param_dtype": self.param_dtype}
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=MOMENTUM,
            axis_name=self.axis_name,
            use_fast_variance=False,
            **kind,
        )
        x = nn.Conv(6, (3, 3), 2, use_bias=False, name="conv", **kind)(x)
        x = nn.silu(norm(name="first")(x)).mean((1, 2))
        x = norm(name="second")(nn.Dense(8, use_bias=False, name="hidden", **kind)(x))
        return nn.Dense(CLASSES, name="head", **kind)(nn.silu(x))


def batches(steps: int) -> np.ndarray:
    """The examples of each step, another choice in each."""
    rng = np.random.default_rng(1)
    draws = [rng.permutation(EXAMPLES)[:BATCH] for _ in range(steps)]
    return np.stack(draws).astype(np.int32)


def rate(step: jax.Array) -> jax.Array:
    return 0.1 / (1 + step)


@functools.cache
def make_trainer(
    net: nn.Module | None = None,
    *,
    augment: Augment = MOVED,
    label_smoothing: float = 0.0,
    ema_decay: float | None = None,
    rate: optax.Schedule = rate,
    options: Optimizer | None = None,
) -> Trainer:
    net = Net() if net is None else net
    task = Classification(net, CLASSES, MEAN, STD, augment, label_smoothing)
    optimizer = make_optimizer(options or Optimizer(), rate)
    return Trainer(task, optimizer, 5, ema_decay, MOMENTUM)


@functools.cache
def fresh(trainer: Trainer) -> TrainState:
    with_ema = trainer.ema_decay is not None
    net, optimizer = trainer.task.model, trainer.optimizer
    return create_state(net, optimizer, 0, SHAPE, with_ema=with_ema)


@functools.cache
def program(trainer: Trainer, name: str, devices: int, backend: str) -> Any:
    """Compiled once for all tests that share it."""
    return Replicas.local(devices, backend).parallelize(getattr(trainer, name))


def train(
    trainer: Trainer,
    steps: int,
    devices: int = 4,
    backend: str = "pmap",
    *,
    state: TrainState | None = None,
    groups: list[int] | None = None,
    length: int = LENGTH,
    fed: bool = False,
) -> tuple[TrainState, dict[str, float]]:
    """Trains, in dispatches of `groups` steps padded to `length`; adds up the sums."""
    replicas = Replicas.local(devices, backend)
    run = program(trainer, "train_steps", devices, backend)
    state = replicas.replicate(fresh(trainer) if state is None else state)
    data = None if fed else replicas.replicate(DATA)
    index, start, totals = batches(steps), 0, {}
    for count in groups or [steps]:
        chosen = np.full((length, BATCH), -1, np.int32)
        chosen[:count] = index[start : start + count]
        item = {"index": chosen}
        if fed:
            item |= {name: x[np.maximum(chosen, 0)] for name, x in FED.items()}
        state, sums = run(state, data, replicas.split(item), np.int32(count))
        totals = {name: totals.get(name, 0) + float(x) for name, x in sums.items()}
        start += count
    return state, totals


def leaves(tree: Any) -> dict[str, np.ndarray]:
    named = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in named}


def assert_same_bits(one: Any, other: Any) -> None:
    one, other = leaves(one), leaves(other)
    assert list(one) == list(other)
    for name, x in one.items():
        np.testing.assert_array_equal(x, other[name], err_msg=name)


def assert_close(one: Any, other: Any, tolerance: float) -> None:
    """Each array, relative to the largest number in it."""
    one, other = leaves(one), leaves(other)
    assert list(one) == list(other)
    for name, x in one.items():
        bound = tolerance * max(np.abs(x).max(), 1e-3)
        np.testing.assert_allclose(x, other[name], rtol=0, atol=bound, err_msg=name)


# --- the loss and the sums ----------------------------------------------------------


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def logits_in_training(state: TrainState, images: np.ndarray) -> np.ndarray:
    """Of the network alone, for images normalised by NumPy."""
    images = ((images / 255 - MEAN) / STD).astype(np.float32)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits, _ = Net(axis_name=None).apply(
        variables, images, train=True, mutable=["batch_stats"]
    )
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


# --- one device and several ---------------------------------------------------------


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


# --- BatchNorm's statistics ---------------------------------------------------------


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
    """Of the first layer, whose inputs are the same: by NumPy, and synchronised."""
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


# --- how steps are grouped, and where examples lie ----------------------------------


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


def test_augmentation_is_another_in_each_step():
    """The same batch at another step is moved otherwise, and so the loss differs."""
    trainer = make_trainer()
    state = fresh(trainer)
    losses = []
    for step in range(3):
        moved = state.replace(step=jnp.int32(step))
        losses.append(train(trainer, 1, state=moved)[1]["loss"])
    assert len(set(losses)) == 3


# --- losses that are not finite -----------------------------------------------------


@pytest.mark.parametrize("devices", [1, 4])
def test_the_first_step_that_goes_wrong_is_named(devices):
    """Steps are counted from 1: with the rate of step 2 its params are lost.

    They are lost although its loss, of the params before, is finite: so a checkpoint
    of this step must not be kept.
    """
    trainer = make_trainer(rate=lambda step: jnp.where(step == 1, jnp.inf, 0.01))
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


# --- evaluation ---------------------------------------------------------------------


class Fixed(nn.Module):
    """Logits that are the mean of each image's channel 0, times a param."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (CLASSES,))
        nn.BatchNorm(use_running_average=not train)(x)
        return x[..., 0].mean((1, 2))[:, None] * scale


def evaluate(
    trainer: Trainer,
    variables: Any,
    index: np.ndarray,
    devices: int,
    *,
    count: int | None = None,
    fed: bool = False,
) -> dict[str, float]:
    replicas = Replicas.local(devices)
    item = {"index": index}
    if fed:
        item |= {name: x[np.maximum(index, 0)] for name, x in FED.items()}
    data = None if fed else replicas.replicate(DATA)
    count = np.int32(len(index) if count is None else count)
    run = program(trainer, "eval_steps", devices, "pmap")
    sums, _ = run(replicas.replicate(variables), data, replicas.split(item), count)
    return {name: float(x) for name, x in sums.items()}


def expected(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Sums by NumPy; of equal logits the first one counts as the larger."""
    order = np.argsort(-logits, axis=1, kind="stable")
    chosen = -log_softmax(logits.astype(np.float64))[np.arange(len(labels)), labels]
    return {
        "loss": chosen.sum(),
        "top1": (order[:, 0] == labels).sum(),
        "top5": (order[:, :5] == labels[:, None]).any(1).sum(),
        "examples": len(labels),
    }


def logits_of(net: nn.Module, variables: Any, images: np.ndarray) -> np.ndarray:
    images = ((images / 255 - MEAN) / STD).astype(np.float32)
    return np.asarray(net.apply(variables, images))


@pytest.mark.parametrize("fed", [False, True], ids=["resident", "fed"])
@pytest.mark.parametrize("devices", [1, 4])
def test_sums_of_an_evaluation_with_a_remainder(devices, fed):
    """41 examples in four batches of 12, of which the last has 5 and 7 places none."""
    trainer = make_trainer()
    state, _ = train(trainer, 2)  # so that running statistics matter
    index = np.full(48, -1, np.int32)
    index[:EXAMPLES] = np.random.default_rng(3).permutation(EXAMPLES)
    sums = evaluate(trainer, state.variables, index.reshape(4, 12), devices, fed=fed)
    logits = logits_of(Net(), state.variables, IMAGES)
    wanted = expected(logits, LABELS)
    assert 0 < wanted["top1"] < wanted["top5"] < EXAMPLES
    assert sums.pop("loss") == pytest.approx(wanted.pop("loss"), rel=1e-5)  # float32
    assert sums == wanted


def test_only_the_first_batches_of_a_dispatch_count():
    trainer = make_trainer()
    variables = fresh(trainer).variables
    index = np.arange(40, dtype=np.int32).reshape(5, 8)
    sums = evaluate(trainer, variables, index, 4, count=3)
    logits = logits_of(Net(), variables, IMAGES[:24])
    wanted = expected(logits, LABELS[:24])
    assert sums.pop("loss") == pytest.approx(wanted.pop("loss"), rel=1e-5)  # float32
    assert sums == wanted


def test_an_evaluation_of_places_without_example_counts_nothing():
    trainer = make_trainer()
    index = np.full((2, 8), -1, np.int32)
    sums = evaluate(trainer, fresh(trainer).variables, index, 4)
    assert sums == {"loss": 0, "top1": 0, "top5": 0, "examples": 0}


def test_equal_logits_count_as_right_for_the_first_class_alone():
    """As argmax has it: a network that says nothing is not right about everything."""
    trainer = make_trainer(Fixed())
    variables = fresh(trainer).variables
    index = np.arange(40, dtype=np.int32).reshape(5, 8)
    sums = evaluate(trainer, variables, index, 4)
    labels = LABELS[:40]
    assert sums["top1"] == (labels == 0).sum()
    assert sums["top5"] == (labels < 5).sum()


def test_logits_that_are_not_numbers_are_wrong():
    trainer = make_trainer(Fixed())
    variables = jax.tree.map(lambda x: x * jnp.nan, fresh(trainer).variables)
    index = np.arange(40, dtype=np.int32).reshape(5, 8)
    sums = evaluate(trainer, variables, index, 4)
    assert np.isnan(sums["loss"])
    assert (sums["top1"], sums["top5"], sums["examples"]) == (0, 0, 40)
