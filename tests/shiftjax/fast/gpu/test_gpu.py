"""The kernels for GPUs: the definition, which they compute in one pass each way.

Here their programs are interpreted; the last tests lower them for a GPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from shiftjax import InputError, displacements, shift
from shiftjax.fast import gpu
from shiftjax.fast.dispatch import BlockOptions
from shiftjax.fast.gpu import (
    Sizes,
    is_supported,
    shift_block,
    shift_project,
    supports,
)
from shiftjax.fast.gpu.plan import GPUPlan, pack
from shiftjax.fast.gpu.statistics import by_kernel, covariance, moments
from shiftjax.layers import ShiftConv

pytestmark = pytest.mark.usefixtures("quick")

# Sums of at most 10,000 products in float32, whose roundings partly cancel.
FLOAT32 = 1e-5

SMALL = Sizes(pixels=16, back_pixels=16, programs=3)  # several steps and programs
APART = Sizes(pixels=16, back_pixels=16, programs=2, fused=False)
CHUNKS = Sizes(pixels=32, back_pixels=16, programs=2, sums=2**13)

# batch, height, width, channels; expanded, features; kernel_size, strides, dilation
CASES = {
    "one pixel": ((1, 1, 1, 16), (16, 16), (3, 1, 1), SMALL),
    "one pixel a row": ((3, 5, 1, 16), (16, 16), (3, 1, 1), SMALL),
    "odd": ((2, 5, 7, 16), (48, 16), (3, 1, 1), SMALL),
    "channels of no power of two": ((2, 4, 5, 5), (21, 7), (3, 1, 1), SMALL),
    "K = 1": ((2, 3, 3, 8), (20, 8), (1, 1, 1), SMALL),
    "K = 2": ((1, 3, 5, 8), (16, 24), (2, 1, 1), SMALL),
    "K = 5": ((1, 6, 7, 8), (60, 16), (5, 1, 1), CHUNKS),
    "K = 5, nothing moves": ((1, 3, 2, 16), (24, 8), (5, 1, 1), SMALL),
    "dilation 2": ((2, 5, 6, 8), (24, 8), (3, 1, 2), SMALL),
    "farther than the image": ((1, 2, 3, 8), (16, 8), (3, 1, 5), SMALL),
    "stride 2": ((2, 6, 4, 8), (36, 16), (3, 2, 1), SMALL),
    "stride 2, odd": ((1, 5, 7, 8), (18, 16), (3, 2, 1), APART),
    "stride 3, dilation 2": ((1, 8, 7, 9), (20, 9), (3, 3, 2), SMALL),
    "K = 5, stride 2": ((1, 7, 6, 4), (50, 8), (5, 2, 1), APART),
    "full tiles": ((1, 4, 4, 16), (144, 16), (3, 1, 1), CHUNKS),
    "tiles of 32": ((1, 4, 3, 32), (96, 16), (3, 1, 1), Sizes(width=32)),
    "one tile": ((1, 4, 3, 16), (48, 16), (3, 1, 1), Sizes(width=64)),
    "one pass": ((1, 5, 5, 8), (54, 8), (3, 1, 1), APART),
}
IN_BFLOAT16 = ["odd", "full tiles", "stride 2"]


def numbers(rng, case, dtype):
    """x, expand, bias, project and a cotangent, as the kernels of a network are."""
    shape, (wide, features), (_, strides, _), _ = CASES[case]
    shapes = [shape, (shape[-1], wide), (wide,), (wide, features)]
    arrays = [rng.normal(size=s) / np.sqrt(s[0] if len(s) == 2 else 1) for s in shapes]
    size = (-(-n // strides) for n in shape[1:3])
    arrays.append(rng.normal(size=(shape[0], *size, features)))
    return [jnp.asarray(array, dtype) for array in arrays]


def definition(x, expand, bias, project, kernel_size, strides, dilation):
    """Computes the same as the kernels."""
    wide = jax.nn.relu(x @ expand + bias)
    return shift(wide, kernel_size, dilation=dilation, stride=strides) @ project


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def everything(function, kernel_size, strides, dilation, *arrays):
    """The output, and the gradients of all four inputs."""
    *inputs, g = arrays
    window = {"kernel_size": kernel_size, "strides": strides, "dilation": dilation}
    with jax.default_matmul_precision("highest"):
        y, pull = jax.vjp(functools.partial(function, **window), *inputs)
        return {"y": y} | dict(
            zip(("x", "expand", "bias", "project"), pull(g), strict=True)
        )


def interpreted(case):
    """The kernels' programs."""
    return functools.partial(shift_project, sizes=CASES[case][3], interpret=True)


@pytest.mark.parametrize("case", CASES)
def test_it_equals_its_definition(rng, assert_trees_close, case):
    arrays, window = numbers(rng, case, jnp.float32), CASES[case][2]
    actual = everything(interpreted(case), *window, *arrays)
    expected = everything(definition, *window, *arrays)
    assert_trees_close(actual, expected, FLOAT32)


@pytest.mark.parametrize("case", IN_BFLOAT16)
def test_in_bfloat16(rng, assert_trees_close, case):
    """Against float32 on the same numbers.

    Each of the 4 roundings in a row is off by 2^-9 of a number. ReLU passes or stops a
    whole number where its input is within rounding of zero, which is rare, so gradients
    are compared as directions.
    """
    arrays, window = numbers(rng, case, jnp.bfloat16), CASES[case][2]
    actual = everything(interpreted(case), *window, *arrays)
    assert {leaf.dtype for leaf in actual.values()} == {jnp.dtype(jnp.bfloat16)}
    wide = [array.astype(jnp.float32) for array in arrays]
    expected = everything(definition, *window, *wide)
    assert_trees_close(actual.pop("y"), expected["y"], 4 * 2**-9)
    for name, value in actual.items():
        a, b = np.ravel(value).astype(np.float64), np.ravel(expected[name])
        assert a @ b > 0.999 * np.linalg.norm(a) * np.linalg.norm(b)


def test_params_keep_their_own_dtype(rng):
    """In float32, beside activations in bfloat16: so do their gradients."""
    x, *weights, g = numbers(rng, "odd", jnp.float32)
    x, g = x.astype(jnp.bfloat16), g.astype(jnp.bfloat16)
    result = everything(interpreted("odd"), 3, 1, 1, x, *weights, g)
    dtypes = {name: value.dtype.name for name, value in result.items()}
    assert dtypes.pop("y") == dtypes.pop("x") == "bfloat16"
    assert set(dtypes.values()) == {"float32"}


@pytest.mark.parametrize("case", ["odd", "stride 2"])
def test_without_a_gpu_it_is_its_formula(rng, assert_trees_close, case):
    arrays, window = numbers(rng, case, jnp.float32), CASES[case][2]
    actual = everything(shift_project, *window, *arrays)
    expected = everything(definition, *window, *arrays)
    assert_trees_close(actual, expected, FLOAT32)


def test_the_reference_in_numpy(rng, reference):
    """The definition used above, and the kernel, beside loops in NumPy."""
    shape, _, (kernel_size, strides, dilation), _ = CASES["stride 3, dilation 2"]
    x, expand, bias, project, _ = numbers(rng, "stride 3, dilation 2", jnp.float32)
    wide = np.maximum(np.asarray(x, np.float64) @ expand + bias, 0)
    expected = reference.shift(wide, kernel_size, dilation, strides) @ project
    with jax.default_matmul_precision("highest"):
        y = shift_project(
            x,
            expand,
            bias,
            project,
            kernel_size=kernel_size,
            strides=strides,
            dilation=dilation,
            interpret=True,
        )
    assert y.shape[:3] == (shape[0], 3, 3)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


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


# What it takes.

GOOD = ((256, 32, 32, 16), (16, 48), 16, 3, 1, jnp.bfloat16)
BAD = {
    "empty batch": (0, (0, 32, 32, 16)),
    "no image": (0, (256, 0, 32, 16)),
    "axes": (0, (256, 1024, 16)),
    "channels": (0, (256, 32, 32, 512)),
    "features": (2, 512),
    "displacements": (3, 9),
    "float16": (5, jnp.float16),
    "numbers": (0, (2**12, 256, 256, 16)),
}


def test_what_is_supported():
    assert is_supported(*GOOD)
    assert is_supported((1, 5, 7, 5), (5, 24), 40, 3, 7, jnp.float32)
    assert supports(
        GOOD[0], BlockOptions(48, 32, jnp.bfloat16, kernel_size=5, strides=2)
    )
    assert not supports(
        (8, 7, 7, 256), BlockOptions(512, 256, jnp.bfloat16, kernel_size=5)
    )


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_supported(name):
    place, value = BAD[name]
    arguments = list(GOOD)
    arguments[place] = value
    assert not is_supported(*arguments)


def test_what_is_not_supported_is_refused():
    x, expand, bias = jnp.zeros((64, 4, 4, 8)), jnp.zeros((8, 16)), jnp.zeros(16)
    with pytest.raises(InputError, match=r"float32 \[64, 4, 4, 8\], 999 features"):
        shift_project(x, expand, bias, jnp.zeros((16, 999)))


@pytest.mark.parametrize("wrong", range(3))
def test_shapes_that_do_not_fit(wrong):
    shapes = [(8, 16), (16,), (16, 8)]
    shapes[wrong] = (24,) * len(shapes[wrong])
    with pytest.raises(InputError, match=r"\(24"):
        shift_project(jnp.zeros((2, 4, 4, 8)), *map(jnp.zeros, shapes))


# Its lowering for a GPU, which needs none.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(
    "case",
    ["odd", "stride 2, odd", "K = 5", "full tiles", "channels of no power of two"],
)
def test_it_lowers_to_triton(rng, case, dtype):
    """One kernel forward; backward one, or two where the sums are apart."""
    arrays, (_, strides, _), sizes = numbers(rng, case, dtype), *CASES[case][2:]
    kernel_size, _, dilation = CASES[case][2]
    function = functools.partial(gpu.shift_project, sizes=sizes)
    step = functools.partial(everything, function, kernel_size, strides, dilation)
    chip = AbstractDevice("NVIDIA H200", num_cores=132, platform="gpu")
    with use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=chip)):
        lowered = jax.jit(step).trace(*arrays).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    backward = 1 if case in ("odd", "channels of no power of two") else 2
    assert text.count("__gpu$xla.gpu.triton") == 1 + backward
