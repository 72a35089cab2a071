"""The kernels for TPUs and GPUs: their definition, computed in one pass each way.

Here their programs are interpreted. `tpu/test_tpu.py` and `gpu/test_gpu.py` have the
tests of one platform alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax import InputError
from shiftjax.fast import gpu, tpu
from shiftjax.fast.dispatch import BlockOptions
from tests.shiftjax.fast.kernel_cases import CASES, definition

pytestmark = pytest.mark.usefixtures("quick")

# Sums of at most 10,000 products in float32, whose roundings partly cancel.
FLOAT32 = 1e-5
ROUNDINGS = {"tpu": 3, "gpu": 4}  # to bfloat16, in a row
IN_BFLOAT16 = [
    "tpu, odd",
    "tpu, K = 2, in full tiles",
    "tpu, dilation 2, in full tiles",
    "gpu, odd",
    "gpu, full tiles",
    "gpu, stride 2",
]
PACKAGES = {"tpu": tpu, "gpu": gpu}


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_equals_its_definition(rng, assert_trees_close, name):
    case = CASES[name]
    arrays = case.numbers(rng, jnp.float32)
    actual = case.everything(case.kernel(interpret=True), *arrays)
    expected = case.everything(definition, *arrays)
    assert_trees_close(actual, expected, FLOAT32)


@pytest.mark.parametrize("name", IN_BFLOAT16)
def test_in_bfloat16(rng, assert_trees_close, name):
    """Against float32 on the same numbers.

    Each of the roundings in a row is off by 2^-9 of a number. ReLU passes or stops a
    whole number where its input is within rounding of zero, which is rare, so gradients
    are compared as directions.
    """
    case = CASES[name]
    arrays = case.numbers(rng, jnp.bfloat16)
    actual = case.everything(case.kernel(interpret=True), *arrays)
    assert {leaf.dtype for leaf in actual.values()} == {jnp.dtype(jnp.bfloat16)}
    wide = [array.astype(jnp.float32) for array in arrays]
    expected = case.everything(definition, *wide)
    tolerance = ROUNDINGS[case.platform] * 2**-9
    assert_trees_close(actual.pop("y"), expected["y"], tolerance)
    for leaf, value in actual.items():
        a, b = np.ravel(value).astype(np.float64), np.ravel(expected[leaf])
        assert a @ b > 0.999 * np.linalg.norm(a) * np.linalg.norm(b)


@pytest.mark.parametrize("name", ["tpu, odd", "gpu, odd"])
def test_params_keep_their_own_dtype(rng, name):
    """In float32, beside activations in bfloat16: so do their gradients."""
    case = CASES[name]
    x, *weights, g = case.numbers(rng, jnp.float32)
    x, g = x.astype(jnp.bfloat16), g.astype(jnp.bfloat16)
    result = case.everything(case.kernel(interpret=True), x, *weights, g)
    dtypes = {leaf: value.dtype.name for leaf, value in result.items()}
    assert dtypes.pop("y") == dtypes.pop("x") == "bfloat16"
    assert set(dtypes.values()) == {"float32"}


@pytest.mark.parametrize("name", ["tpu, odd", "gpu, odd", "gpu, stride 2"])
def test_on_another_platform_it_is_its_formula(rng, assert_trees_close, name):
    case = CASES[name]
    arrays = case.numbers(rng, jnp.float32)
    actual = case.everything(case.kernel(), *arrays)
    expected = case.everything(definition, *arrays)
    assert_trees_close(actual, expected, FLOAT32)


@pytest.mark.parametrize("name", ["tpu, dilation 2", "gpu, stride 3, dilation 2"])
def test_the_reference_in_numpy(rng, reference, name):
    """The definition used above, and the kernel, beside loops in NumPy."""
    case = CASES[name]
    x, expand, bias, project, _ = case.numbers(rng, jnp.float32)
    kernel_size, strides, dilation = case.window
    wide = np.maximum(np.asarray(x, np.float64) @ expand + bias, 0)
    expected = reference.shift(wide, kernel_size, dilation, strides) @ project
    inputs = x, expand, bias, project
    with jax.default_matmul_precision("highest"):
        for function in (case.kernel(interpret=True), definition):
            y = function(*inputs, **case.options)
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


# The sizes that are supported.

GOOD = BlockOptions(wide=48, features=16, dtype=jnp.bfloat16)
SUPPORTED = {
    "tpu, 32 x 32": ((256, 32, 32, 16), {}),
    "tpu, K = 5": ((128, 56, 56, 64), {"wide": 256, "features": 64, "kernel_size": 5}),
    "tpu, float32": (
        (128, 5, 7, 8),
        {"wide": 24, "features": 40, "dtype": jnp.float32},
    ),
    "gpu, 32 x 32": ((256, 32, 32, 16), {}),
    "gpu, odd": (
        (1, 5, 7, 5),
        {"wide": 24, "features": 40, "dilation": 7, "dtype": jnp.float32},
    ),
}
NOT_SUPPORTED = {
    "tpu, batch": ((64, 32, 32, 16), {}),
    "tpu, empty batch": ((0, 32, 32, 16), {}),
    "tpu, no image": ((256, 0, 32, 16), {}),
    "tpu, axes": ((256, 1024, 16), {}),
    "tpu, channels": ((256, 32, 32, 8), {}),
    "tpu, expanded": ((256, 32, 32, 16), {"wide": 40}),
    "tpu, features": ((256, 32, 32, 16), {"features": 24}),
    "tpu, float16": ((256, 32, 32, 16), {"dtype": jnp.float16}),
    "tpu, wide rows": ((128, 32, 4096, 16), {}),
    "gpu, empty batch": ((0, 32, 32, 16), {}),
    "gpu, no image": ((256, 0, 32, 16), {}),
    "gpu, axes": ((256, 1024, 16), {}),
    "gpu, channels": ((256, 32, 32, 512), {}),
    "gpu, expanded": ((256, 32, 32, 16), {"wide": 0}),
    "gpu, features": ((256, 32, 32, 16), {"features": 512}),
    "gpu, displacements": ((256, 32, 32, 16), {"kernel_size": 9}),
    "gpu, float16": ((256, 32, 32, 16), {"dtype": jnp.float16}),
    "gpu, numbers": ((2**12, 256, 256, 16), {}),
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_sizes_that_are_supported(name):
    shape, changes = SUPPORTED[name]
    assert PACKAGES[name[:3]].is_supported(shape, GOOD._replace(**changes))


@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_sizes_that_are_not_supported(name):
    shape, changes = NOT_SUPPORTED[name]
    assert not PACKAGES[name[:3]].is_supported(shape, GOOD._replace(**changes))


@pytest.mark.parametrize(
    ("package", "features", "message"),
    [
        (tpu, 8, r"float32 \[64, 4, 4, 8\].*batches in multi"),
        (gpu, 999, r"float32 \[64, 4, 4, 8\], 999 features"),
    ],
)
def test_other_sizes_are_refused(package, features, message):
    x, expand, bias = jnp.zeros((64, 4, 4, 8)), jnp.zeros((8, 16)), jnp.zeros(16)
    with pytest.raises(InputError, match=message):
        package.shift_project(x, expand, bias, jnp.zeros((16, features)))


@pytest.mark.parametrize("package", [tpu, gpu])
@pytest.mark.parametrize("wrong", range(3))
def test_shapes_that_do_not_fit(wrong, package):
    shapes = [(8, 16), (16,), (16, 8)]
    shapes[wrong] = (24,) * len(shapes[wrong])
    with pytest.raises(InputError, match=r"\(24"):
        package.shift_project(jnp.zeros((128, 4, 4, 8)), *map(jnp.zeros, shapes))
