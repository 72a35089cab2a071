"""The block around the kernels of TPUs and GPUs, which are interpreted here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax.fast import gpu, tpu
from shiftjax.fast.gpu import statistics as gpu_statistics
from shiftjax.fast.tpu import block as tpu_block
from shiftjax.layers import ShiftConv

pytestmark = pytest.mark.usefixtures("quick")

SMALL = gpu.Sizes(pixels=16, back_pixels=16, programs=3)  # several steps and programs
BLOCK_OF = {
    "tpu": functools.partial(
        tpu.shift_block,
        middle=functools.partial(tpu_block.strided_shift_project, interpret=True),
    ),
    "gpu": functools.partial(
        gpu.shift_block,
        middle=functools.partial(gpu.shift_project, sizes=SMALL, interpret=True),
    ),
}
# platform, module, shape of the input
BLOCKS = {
    "kernel, TPU": ("tpu", ShiftConv(8, expansion=3), (128, 4, 3, 8)),
    "shortcut, TPU": ("tpu", ShiftConv(16, expansion=2), (128, 3, 4, 8)),
    "kernel, GPU": ("gpu", ShiftConv(8, expansion=3), (4, 4, 3, 8)),
    "shortcut, GPU": ("gpu", ShiftConv(16, expansion=2), (4, 3, 4, 8)),
}
STRIDED = {
    "stride 2, odd": (ShiftConv(10, strides=2, expansion=2), (6, 5, 7, 4)),
    "stride 2, one row": (ShiftConv(9, strides=2), (4, 1, 6, 9)),
    "stride 3, dilation 2": (ShiftConv(9, 3, 3, 2), (4, 8, 7, 9)),
    "5x5, stride 2, dilation 2": (ShiftConv(5, 5, 2, 2, 11), (4, 9, 7, 5)),
}
BLOCKS |= {
    f"{name}, {platform.upper()}": (platform, *case)
    for name, case in STRIDED.items()
    for platform in BLOCK_OF
}
STATISTICS = {
    "TPU, moments": tpu_block.moments,
    "TPU, covariance": tpu_block.covariance,
    "GPU, moments": gpu_statistics.moments,
    "GPU, covariance": gpu_statistics.covariance,
}


def run_kernel(platform, module, variables, params, x, train):
    """Output by the kernels of a platform, and the new running statistics."""
    stats = variables["batch_stats"]
    y, batch = BLOCK_OF[platform](
        params,
        None if train else stats,
        x,
        kernel_size=module.kernel_size,
        strides=module.strides,
        dilation=module.dilation,
        dtype=module.dtype,
        epsilon=module.epsilon,
        axis_name=module.axis_name,
    )
    if train:
        stats = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, stats, batch)
    return y, stats


def run_module(_, module, variables, params, x, train):
    """The definition, which is the same on every platform."""
    y, updates = module.apply(
        variables | {"params": params}, x, train, mutable=["batch_stats"]
    )
    return y, updates["batch_stats"]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def step(run, platform, module, train, variables, x, g):
    """All that training takes of a block."""
    with jax.default_matmul_precision("highest"):
        y, pull, stats = jax.vjp(
            lambda params, x: run(platform, module, variables, params, x, train),
            variables["params"],
            x,
            has_aux=True,
        )
        return {"y": y, "stats": stats, "gradient": pull(g)}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_the_block_equals_its_definition(
    rng, randomize, assert_trees_close, name, train
):
    """Normalisations and their derivatives lose up to 2,000 units of 6e-8."""
    platform, module, shape = BLOCKS[name]
    x = rng.normal(size=shape).astype(np.float32)
    variables = randomize(module, x)
    y = jax.eval_shape(module.apply, variables, x)
    g = rng.normal(size=y.shape).astype(np.float32)
    actual = step(run_kernel, platform, module, train, variables, x, g)
    expected = step(run_module, None, module, train, variables, x, g)
    assert_trees_close(actual, expected, 1e-4)


@pytest.mark.parametrize("name", ["shortcut, TPU", "shortcut, GPU"])
def test_the_block_equals_numpy(reference, rng, randomize, assert_trees_close, name):
    """In float32; normalisations lose up to 2,000 units of 6e-8."""
    platform, module, shape = BLOCKS[name]
    x = rng.normal(size=shape).astype(np.float32)
    variables = randomize(module, x)
    actual = jax.jit(functools.partial(run_kernel, platform, module, train=True))(
        variables, variables["params"], x
    )
    weights = variables["params"], variables["batch_stats"]
    expected = reference.shift_conv(*weights, x, True)
    assert_trees_close(actual, expected, 1e-4)


def test_the_block_over_replicas(rng, randomize, assert_trees_close, devices):
    """Two devices of 128 images each, as one device with all of them."""
    platform, module, (_, *shape) = BLOCKS["kernel, TPU"]
    x = rng.normal(size=(256, *shape)).astype(np.float32)
    variables = randomize(module, x)
    g = rng.normal(size=x.shape).astype(np.float32)
    expected = step(run_module, platform, module, True, variables, x, g)
    replicated = module.clone(axis_name="batch")

    def replica(x, g):
        result = step(run_kernel, platform, replicated, True, variables, x, g)
        d_params, dx = result["gradient"]
        return result["y"], result["stats"], jax.lax.psum(d_params, "batch"), dx

    cut = [v.reshape(2, 128, *shape) for v in (x, g)]
    y, stats, d_params, dx = jax.pmap(
        replica, "batch", out_axes=(0, None, None, 0), devices=devices[:2]
    )(*cut)
    actual = {
        "y": y.reshape(x.shape),
        "stats": stats,
        "gradient": (d_params, dx.reshape(x.shape)),
    }
    assert_trees_close(actual, expected, 1e-4)


@pytest.mark.parametrize("name", STATISTICS)
def test_gradients_of_statistics(rng, assert_trees_close, float64, name):
    """Against those that JAX derives from the definition."""

    def definition(x):
        centred = x - x.mean((0, 1, 2))
        both = jnp.einsum("bhwi,bhwj->ij", centred, centred) * 4 / x.size
        second = jnp.diag(both) if name.endswith("moments") else both
        return x.mean((0, 1, 2)), second

    x = rng.normal(size=(2, 3, 5, 4))
    y, pull = jax.vjp(definition, x)
    g = jax.tree.map(lambda v: rng.normal(size=v.shape), y)
    actual, actual_pull = jax.vjp(STATISTICS[name], jnp.asarray(x))
    assert_trees_close(actual, y, 1e-12)
    assert_trees_close(actual_pull(g), pull(g), 1e-12)


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_keep_their_accuracy_beside_a_large_mean(rng, name):
    """1000 times the deviation: good to 1e-5 in float32, where E[x^2] is off by 6%."""
    x = (1000 + rng.normal(size=(8, 16, 16, 4))).astype(np.float32)
    pixels = x.reshape(-1, 4).astype(np.float64)
    mean, second = STATISTICS[name](jnp.asarray(x))
    expected = np.cov(pixels.T, bias=True)
    if name.endswith("moments"):
        expected = np.diag(expected)
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(second, expected, atol=1e-5 * expected.max())


def test_a_strided_block_runs_before_within_and_after_x64(rng, assert_trees_close):
    """Its indices are made once, and serve both modes of JAX."""
    module = ShiftConv(8, strides=2, implementation="tpu")
    x = rng.normal(size=(2, 4, 4, 8))
    variables = module.init(jax.random.key(0), x.astype(np.float32))

    def output(dtype):
        cast = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), variables)
        return module.apply(cast, x.astype(dtype))

    first = output(np.float32)
    with jax.enable_x64(True):
        assert_trees_close(first, output(np.float64), 1e-4)
    assert_trees_close(output(np.float32), first, 1e-4)
