"""The kernels for GPUs: packing, statistics, and their lowering for a GPU.

`tests/shiftjax/fast/test_kernels.py` compares the kernels with their definition.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from shiftjax import displacements
from shiftjax.fast import gpu
from shiftjax.fast.dispatch import BlockOptions
from shiftjax.fast.gpu import Sizes, shift_block, supports
from shiftjax.fast.gpu.plan import GPUPlan, pack
from shiftjax.fast.gpu.statistics import by_kernel, covariance, moments
from shiftjax.layers import ShiftConv
from tests.shiftjax.fast.kernel_cases import CASES

pytestmark = pytest.mark.usefixtures("quick")

# How the wide channels are packed.


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("channels", [3, 9, 48, 144, 256])
def test_every_channel_has_one_column(channels, width, alone):
    table = tuple(map(tuple, displacements(channels, 3).tolist()))
    packing = pack(table, width, alone)
    assert sorted(slot for slot in packing.slots if slot >= 0) == [*range(channels)]
    seen = 0
    for tile, runs in enumerate(packing.tiles):
        assert len(runs) == 1 or not alone
        for start, stop, *move in runs:
            members = packing.slots[tile * width :][start:stop]
            assert [table[channel] for channel in members] == [tuple(move)] * len(
                members
            )
            seen += stop - start
    assert seen == channels


def test_weights_go_to_their_columns_and_back(rng):
    table = tuple(map(tuple, displacements(48, 3).tolist()))
    plan = GPUPlan.make((1, 4, 4, 16), 16, table, 1, Sizes())
    weights = jnp.asarray(rng.normal(size=(16, 48)))
    packed = plan.scatter(weights)
    assert packed.shape == (len(plan.packing.tiles), 16, plan.packing.width)
    np.testing.assert_array_equal(plan.gather(packed), weights)


# Statistics, and where it runs.


def by_loops(x):
    """Mean and covariance of pixels, in NumPy and float64."""
    pixels = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    return pixels.mean(0), np.cov(pixels.T, bias=True).reshape(x.shape[-1], -1)


STATISTICS = {
    "few pixels": (1, 3, 5, 16),
    "several steps": (3, 40, 11, 5),
    "many programs": (2, 140, 130, 20),
}


@pytest.mark.parametrize("mean", [0, 1000])
@pytest.mark.parametrize("covariance", [functools.partial(by_kernel, True), covariance])
@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_in_one_pass(rng, name, covariance, mean):
    """Also beside a mean of 1000 deviations, where E[x^2] would be off by 6%.

    Within a few units of rounding of the mean, and of sums of 10^4 squares.
    """
    x = (mean + rng.normal(size=STATISTICS[name])).astype(np.float32)
    expected_mean, expected = by_loops(x)
    with jax.default_matmul_precision("highest"):
        actual = jax.jit(covariance)(x)
    close = functools.partial(np.testing.assert_allclose, rtol=4e-7, atol=2e-5)
    close(actual[0], expected_mean)
    close(actual[1], expected)
    mean_of_all, var = moments(jnp.asarray(x))
    np.testing.assert_allclose(mean_of_all, actual[0], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(var, np.diag(expected), rtol=1e-4)


def test_it_runs_on_a_gpu_if_asked_for(monkeypatch):
    """By name; by itself a GPU takes the reference."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    calls = []

    def block(*arguments, **options):
        calls.append(options["strides"])
        return shift_block(*arguments, **options)

    monkeypatch.setattr(gpu, "shift_block", block)
    x = jnp.zeros((2, 4, 4, 16))
    variables = jax.eval_shape(ShiftConv(16).init, jax.random.key(0), x)
    for asked, expected in {None: [], "reference": [], "gpu": [2]}.items():
        module = ShiftConv(16, strides=2, implementation=asked)
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        assert jax.eval_shape(module.apply, variables, x).shape == (2, 2, 2, 16)
        assert calls == expected


def test_blocks_that_are_supported():
    strided = BlockOptions(48, 32, jnp.bfloat16, kernel_size=5, strides=2)
    assert supports((256, 32, 32, 16), strided)
    wide = BlockOptions(512, 256, jnp.bfloat16, kernel_size=5)
    assert not supports((8, 7, 7, 256), wide)


# Its lowering for a GPU, which needs none.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(
    "name",
    ["odd", "stride 2, odd", "K = 5", "full tiles", "channels of no power of two"],
)
def test_it_lowers_to_triton(rng, name, dtype):
    """One kernel forward; backward one, or two where the sums are apart."""
    case = CASES[f"gpu, {name}"]
    arrays = case.numbers(rng, dtype)
    step = functools.partial(case.everything, case.kernel())
    chip = AbstractDevice("NVIDIA H200", num_cores=132, platform="gpu")
    with use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=chip)):
        lowered = jax.jit(step).trace(*arrays).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    backward = 1 if name in ("odd", "channels of no power of two") else 2
    assert text.count("__gpu$xla.gpu.triton") == 1 + backward
