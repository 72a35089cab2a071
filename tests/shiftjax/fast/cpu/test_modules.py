"""The implementation for CPUs, compared with the reference.

`test_layers.py` shows that the plain modules equal NumPy. Here each runs on planes with
the same variables, and everything it gives is compared: output, gradients, statistics.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax.fast.batchnorm import merge
from shiftjax.fast.cpu import Planes, chunks
from shiftjax.fast.cpu.chunks import chunk_size, group_count
from shiftjax.fast.cpu.products import dot, pointwise
from shiftjax.fast.cpu.shift import (
    ShiftOptions,
    place_channels,
    place_channels_back,
    plan_phases,
)
from shiftjax.fast.cpu.statistics import covariance, moments
from shiftjax.layers import ConvNorm, ShiftConv

pytestmark = pytest.mark.usefixtures("quick")

# In float64, sums of at most 5,000 products, a few normalisations in a row, and their
# derivatives, lose some thousand units in the last place (2e-16).
FLOAT64 = 2e-12

# In float32 the same is 2,000 units in the last place (6e-8).
FLOAT32 = 1e-4

# module, shape of the input, chunk
CASES = {
    "conv 1x1, stride 3": (ConvNorm(7, strides=3), (6, 5, 7, 4), 1),
    "conv 3x3": (ConvNorm(5, 3), (5, 4, 5, 3), 2),
    "conv 3x3, more channels than an image": (ConvNorm(5, 3), (4, 4, 5, 6), 1),
    "conv 3x3, stride 2, odd": (ConvNorm(5, 3, 2), (4, 5, 7, 3), 100),
    "conv 5x5, stride 3, small": (ConvNorm(5, 5, 3), (4, 2, 3, 3), 100),
    "depthwise": (ConvNorm(4, 3, depthwise=True), (6, 5, 7, 4), 1),
    "depthwise, one image": (ConvNorm(4, 3, depthwise=True), (1, 8, 9, 4), 100),
    "depthwise, more rows": (ConvNorm(4, 5, depthwise=True), (4, 17, 3, 4), 100),
    "depthwise, small": (ConvNorm(4, 5, depthwise=True), (4, 1, 2, 4), 100),
    "depthwise, stride 2": (ConvNorm(4, 3, 2, depthwise=True), (4, 5, 8, 4), 100),
    "depthwise, multiplier": (ConvNorm(6, 3, depthwise=True), (4, 5, 6, 3), 100),
    "chunks": (ShiftConv(9, expansion=2), (12, 5, 6, 9), 3),
    "left-over channels": (ShiftConv(7, expansion=3), (3, 5, 6, 7), 100),
    "stride 2, odd": (ShiftConv(10, strides=2, expansion=2), (6, 5, 7, 4), 2),
    "stride 2, one row": (ShiftConv(9, strides=2), (4, 1, 6, 9), 100),
    "stride 3, dilation 2": (ShiftConv(9, 3, 3, 2), (4, 8, 7, 9), 100),
    "dilation 3, small": (ShiftConv(9, dilation=3), (4, 2, 3, 9), 100),
    "5x5, stride 2, dilation 2": (ShiftConv(5, 5, 2, 2, 11), (4, 9, 7, 5), 100),
    "even": (ShiftConv(8, 4, 2, expansion=3), (4, 5, 6, 8), 100),
}
SOME = ["conv 3x3, stride 2, odd", "depthwise, stride 2", "5x5, stride 2, dilation 2"]


@functools.partial(jax.jit, static_argnames=("module", "chunk"))
def everything(module, variables, x, g, chunk=None):
    """All that training takes of a module, on planes where `chunk` is given."""

    def apply(params, x):
        if chunk is not None:
            x = Planes.from_nhwc(x, chunk=chunk)
        now = variables | {"params": params}
        y, updates = module.apply(now, x, train=True, mutable=["batch_stats"])
        return (y if chunk is None else y.to_nhwc()), updates

    y, pull, updates = jax.vjp(apply, variables["params"], x, has_aux=True)
    return {"output": y, "updates": updates, "gradient": pull(g.astype(y.dtype))}


@pytest.fixture
def one_chunk_at_a_time(monkeypatch):
    """Sets a tiny cache, so that small tests have several groups of chunks."""
    monkeypatch.setattr(chunks, "CACHE", 1)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("float64", "one_chunk_at_a_time")
def test_a_module_on_planes_equals_itself(rng, randomize, assert_trees_close, name):
    module, shape, chunk = CASES[name]
    x = rng.normal(size=shape)
    variables = randomize(module, x)
    g = rng.normal(size=jax.eval_shape(module.apply, variables, x).shape)
    expected = everything(module, variables, x, g)
    actual = everything(module, variables, x, g, chunk)
    assert_trees_close(actual, expected, FLOAT64)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.usefixtures("float64")
def test_with_running_statistics(rng, randomize, assert_trees_close, name):
    """They are folded into the kernels; also under a gradient, as in fine-tuning."""
    module, shape, chunk = CASES[name]
    x = rng.normal(size=shape)
    variables = randomize(module, x)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(enter, params, x):
        def loss(params, x):
            y = module.apply(variables | {"params": params}, enter(x))
            y = y.to_nhwc() if isinstance(y, Planes) else y
            return (y**2).mean(), y

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    enter = functools.partial(Planes.from_nhwc, chunk=chunk)
    actual = gradient(enter, variables["params"], x)
    expected = gradient(jnp.asarray, variables["params"], x)
    assert_trees_close(actual, expected, FLOAT64)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.usefixtures("float64", "one_chunk_at_a_time")
def test_second_derivatives(rng, randomize, assert_trees_close, train):
    """The gradient of the squares of the gradient, over several groups of chunks."""
    module, x = ShiftConv(9, expansion=2), rng.normal(size=(6, 5, 6, 9))
    variables = randomize(module, x)

    def loss(enter, params, x):
        now, mutable = variables | {"params": params}, ["batch_stats"] if train else []
        y, _ = module.apply(now, enter(x), train, mutable=mutable)
        return ((y.to_nhwc() if isinstance(y, Planes) else y) ** 2).sum()

    def penalty(enter, *arguments):
        gradient = jax.grad(loss, (1, 2))(enter, *arguments)
        return sum((part**2).sum() for part in jax.tree.leaves(gradient))

    second = jax.jit(jax.grad(penalty, (1, 2)), static_argnums=0)
    enter = functools.partial(Planes.from_nhwc, chunk=2)
    actual = second(enter, variables["params"], x)
    expected = second(jnp.asarray, variables["params"], x)
    assert_trees_close(actual, expected, 10 * FLOAT64)


@pytest.mark.parametrize("name", SOME)
def test_in_float32(rng, randomize, assert_trees_close, name):
    module, shape, chunk = CASES[name]
    x = rng.normal(size=shape).astype(np.float32)
    variables = randomize(module, x)
    y = jax.eval_shape(module.apply, variables, x)
    g = rng.normal(size=y.shape).astype(np.float32)
    with jax.default_matmul_precision("highest"):  # elsewhere than on a CPU it is less
        expected = everything(module, variables, x, g)
        actual = everything(module, variables, x, g, chunk)
    assert_trees_close(actual, expected, FLOAT32)


@pytest.mark.usefixtures("float64")
def test_statistics_over_replicas(rng, randomize, assert_trees_close, devices):
    """Four devices of two chunks each, as one device with the whole batch."""
    module = ShiftConv(9, strides=2, expansion=2)
    x = rng.normal(size=(16, 5, 6, 5))
    variables = randomize(module, x)

    def replica(params, x):
        def loss(params, x):
            now, planes = variables | {"params": params}, Planes.from_nhwc(x)
            unit = module.clone(axis_name="batch")
            y, updates = unit.apply(now, planes, train=True, mutable=["batch_stats"])
            return (y.to_nhwc() ** 3).mean(), updates

        (value, updates), gradient = jax.value_and_grad(loss, has_aux=True)(params, x)
        return jax.lax.pmean((value, updates, gradient), "batch")

    def whole(params, x):
        now = variables | {"params": params}
        y, updates = module.apply(now, x, train=True, mutable=["batch_stats"])
        return (y**3).mean(), updates

    replicated = jax.pmap(
        replica, "batch", in_axes=(None, 0), out_axes=None, devices=devices
    )
    actual = replicated(variables["params"], x.reshape(4, 4, 5, 6, 5))
    (value, updates), gradient = jax.jit(jax.value_and_grad(whole, has_aux=True))(
        variables["params"], x
    )
    assert_trees_close(actual, (value, updates, gradient), FLOAT64)


# The pieces.


# channels, kernel size, dilation, strides, height and width
SHIFTS = [(9, 3, 1, 1, (4, 5)), (20, 3, 2, 2, (5, 3)), (26, 5, 1, 3, (4, 7))]
SHIFTS += [(16, 4, 1, 2, (1, 6)), (9, 3, 5, 1, (2, 3))]


@pytest.mark.parametrize("case", SHIFTS)
def test_phases_are_the_shift(reference, rng, case):
    """Each channel moved from the phase that it reads, and back, as by loops."""
    channels, kernel_size, dilation, strides, size = case
    plan = plan_phases(channels, ShiftOptions(kernel_size, dilation, strides), size)
    x = rng.normal(size=(2, *size, channels)).astype(np.float32)
    shifted = reference.shift(x, kernel_size, dilation, strides)
    g = rng.normal(size=shifted.shape).astype(np.float32)
    table = reference.table(channels, kernel_size, dilation)
    expected = reference.spread(g, table, x.shape, strides)

    def channels_first(a):  # [2, h, w, C] to [C, 1, h, w * 2]
        return a.transpose(3, 1, 2, 0).reshape(
            a.shape[3], 1, a.shape[1], 2 * a.shape[2]
        )

    first, order = 0, [c for phase in plan for c in phase.channels]
    assert sorted(order) == list(range(channels))
    target = jnp.zeros(channels_first(shifted).shape)
    for phase in plan:
        (row, column), own = phase.start, list(phase.channels)
        part = x[:, row::strides, column::strides, own]
        assert part.shape[1:3] == phase.size
        source = channels_first(part)
        target = place_channels(phase, first, target, source)
        back = place_channels_back(
            phase, first, jnp.zeros(source.shape), channels_first(g[..., order])
        )
        gradient = channels_first(expected[:, row::strides, column::strides, own])
        np.testing.assert_array_equal(back, gradient)
        first += len(own)
    np.testing.assert_array_equal(target, channels_first(shifted)[order])


def test_chunks_are_grouped_up_to_the_cache():
    """A group has as many chunks as fit into 1 MiB and divide their number, or one."""
    sizes = [(16, 2**19), (16, 2**18), (16, 2**18 + 1), (9, 2**18), (7, 2**17), (5, 1)]
    assert [group_count(*size) for size in sizes] == [8, 4, 8, 3, 1, 1]
    assert group_count(12, 2**21) == 12
    assert group_count(1, 2**21) == 1


def test_chunks_have_the_images_that_the_cache_holds():
    """4 at least, 16 at most."""
    assert [chunk_size(2**n) for n in (0, 14, 17, 18, 22)] == [16, 16, 8, 4, 4]


def shifted_numbers(rng, *means):
    """float32 `[4, 8000]` for each mean, of deviation 1."""
    return [(rng.normal(size=(4, 8000)) + mean).astype(np.float32) for mean in means]


# A mean 1000 times the deviation. Centred sums of 8,000 squares in float32 are good to
# 1e-5 however they are added up; mean(x^2) - mean(x)^2 would be off by 0.06.
OFFSETS = {"equal": (1000, 1000), "far apart": (1000, -1000), "one": (1000,)}


@pytest.mark.parametrize("name", OFFSETS)
@pytest.mark.usefixtures("optimized")
def test_variances_keep_their_accuracy_beside_large_means(rng, name):
    groups = shifted_numbers(rng, *OFFSETS[name])
    x = np.concatenate(groups, 1).astype(np.float64)
    mean, var = merge(jax.vmap(moments)(np.stack(groups)), None)
    np.testing.assert_allclose(mean, x.mean(1), rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(var, x.var(1), rtol=1e-5)
    mean, cov = merge(jax.vmap(covariance)(np.stack(groups)), None)
    np.testing.assert_allclose(mean, x.mean(1), rtol=1e-6, atol=1e-4)
    expected = np.cov(x, bias=True)
    np.testing.assert_allclose(cov, expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("module", [ConvNorm(6), ShiftConv(6, expansion=2)], ids=type)
@pytest.mark.usefixtures("optimized")
def test_modules_keep_their_accuracy_beside_large_means(
    rng, randomize, assert_trees_close, module
):
    """Against the same in float64.

    A mean is known to 6e-8 of itself, so numbers normalised by a deviation 1000 times
    smaller to 6e-5 at best, which two units in a row and their sums make 1e-3.
    """
    x = (1000 + rng.normal(size=(8, 8, 8, 6))).astype(np.float32)
    variables = randomize(module, x)
    apply = functools.partial(module.apply, train=True, mutable=["batch_stats"])
    with jax.default_matmul_precision("highest"):
        y, updates = jax.jit(apply)(variables, Planes.from_nhwc(x))
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, variables)
        expected, expected_updates = jax.jit(apply)(wide, x.astype(np.float64))
    assert_trees_close(y.to_nhwc(), expected, 1e-3)
    assert_trees_close(updates, expected_updates, 1e-3)


@pytest.mark.parametrize("statistic", [moments, covariance])
@pytest.mark.usefixtures("float64")
def test_gradients_of_statistics(rng, assert_trees_close, statistic):
    """Against those that JAX derives from the definition."""

    def definition(x):
        centred = x - x.mean(1, keepdims=True)
        both = centred @ centred.T / x.shape[1]
        return x.mean(1), both if statistic is covariance else jnp.diag(both)

    x = rng.normal(size=(4, 30))
    y, pull = jax.vjp(definition, x)
    g = jax.tree.map(lambda v: rng.normal(size=v.shape), y)
    actual, actual_pull = jax.vjp(statistic, x)
    assert_trees_close(actual, y, FLOAT64)
    assert_trees_close(actual_pull(g), pull(g), FLOAT64)


def test_a_feature_that_cancels_out_stays_finite(rng, randomize):
    """Its variance is 0, and must not come out negative by rounding.

    The input has one direction only, of size 100, and no kernel has a part along it.
    """
    direction = rng.normal(size=8)
    x = (100 * rng.normal(size=(8, 8, 8, 1)) * direction).astype(np.float32)
    module = ShiftConv(8, expansion=16)
    variables = randomize(module, x)
    unit = variables["params"]["expand"]["conv"]
    along = np.outer(direction, direction @ unit["kernel"]) / (direction**2).sum()
    unit["kernel"] = (unit["kernel"] - along).astype(np.float32)
    result = everything(module, variables, x, np.ones_like(x), 2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))


def test_a_block_takes_bfloat16_inputs(rng, randomize):
    """Statistics and sums are float32; the input's gradient has the input's dtype."""
    module, x = ShiftConv(9, expansion=2), rng.normal(size=(4, 5, 6, 9))
    variables = randomize(module, x.astype(np.float32))

    def loss(x):
        planes = Planes.from_nhwc(x)
        y, _ = module.apply(variables, planes, train=True, mutable=["batch_stats"])
        return (y.to_nhwc() ** 2).sum()

    low = x.astype(jnp.bfloat16)
    actual, expected = (jax.jit(jax.grad(loss))(v) for v in (low, np.float32(low)))
    assert actual.dtype == jnp.bfloat16
    a, b = np.ravel(np.float32(actual)), np.ravel(expected)
    assert a @ b > 0.99 * np.linalg.norm(a) * np.linalg.norm(b)


def test_products_of_bfloat16_are_added_in_float32():
    """In bfloat16 the sum of ones would stay at 256."""
    ones = jnp.ones((1, 4096), jnp.bfloat16)
    for y in (dot(ones, ones.T), dot(ones, ones, 1), pointwise(ones.T, ones.T)):
        assert y.dtype == jnp.float32
        assert y.ravel()[0] == 4096


@pytest.mark.parametrize("name", SOME)
def test_bfloat16_is_near_float32(rng, randomize, assert_trees_close, name):
    """Each of at most 8 roundings in a row is off by 2^-9; statistics are float32.

    Gradients are compared as directions, since ReLU passes or stops a whole number
    where its input is within rounding of zero.
    """
    module, shape, chunk = CASES[name]
    x = rng.normal(size=shape).astype(np.float32)
    variables = randomize(module, x)
    y = jax.eval_shape(module.apply, variables, x)
    g = rng.normal(size=y.shape).astype(np.float32)
    low = module.clone(dtype=jnp.bfloat16)
    with jax.default_matmul_precision("highest"):
        expected = everything(module, variables, x, g)
        actual = everything(low, variables, x, g, chunk)
    for key in ("output", "updates"):
        assert_trees_close(actual[key], expected[key], 8 * 2**-9)
    a, b = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree["gradient"])])
        for tree in (actual, expected)
    )
    assert a @ b > 0.99 * np.linalg.norm(a) * np.linalg.norm(b)


def test_float32_params_promote_bfloat16_images(rng, randomize, assert_trees_close):
    """With dtype=None both compute in the promoted dtype, which is float32."""
    module = ConvNorm(7)
    x = jnp.asarray(rng.normal(size=(4, 5, 6, 4)), jnp.bfloat16)
    variables = randomize(module, x)
    actual: Any = module.apply(variables, Planes.from_nhwc(x))
    expected = module.apply(variables, x)
    assert_trees_close(actual.to_nhwc(), expected, FLOAT32)
