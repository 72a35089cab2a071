"""The kernel for TPUs: the definition, which it computes in one pass.

Here the kernel's program is interpreted; the last test compiles it for a TPU.
"""

import functools
import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax import InputError, shift
from shiftjax.fast.tpu import is_supported, shift_project
from shiftjax.fast.tpu.plan import TPUPlan
from shiftjax.fast.tpu.rows import where_positive

pytestmark = pytest.mark.usefixtures("quick")

# Sums of at most 10,000 products in float32, whose roundings partly cancel.
FLOAT32 = 1e-5

# batch, height, width, channels; expanded, features; kernel_size, dilation
CASES = {
    "one pixel a row": ((128, 3, 1, 8), (16, 8), (3, 1)),
    "odd": ((128, 5, 3, 16), (48, 16), (3, 1)),
    "two blocks of images": ((256, 3, 4, 8), (24, 8), (3, 1)),
    "K = 1": ((128, 2, 3, 8), (16, 8), (1, 1)),
    "K = 2": ((128, 3, 5, 8), (16, 24), (2, 1)),
    "K = 5": ((128, 6, 7, 8), (32, 16), (5, 1)),
    "K = 5, nothing moves": ((128, 3, 2, 16), (24, 8), (5, 1)),
    "dilation 2": ((128, 5, 6, 8), (24, 8), (3, 2)),
    "K = 4, dilation 2": ((128, 4, 3, 8), (16, 8), (4, 2)),
    "farther than the image": ((128, 2, 3, 8), (16, 8), (3, 5)),
    "more features": ((128, 3, 4, 8), (16, 40), (3, 1)),
    "K = 2, in full tiles": ((128, 3, 2, 16), (48, 16), (2, 1)),
    "dilation 2, in full tiles": ((128, 4, 3, 16), (32, 32), (3, 2)),
}
IN_BFLOAT16 = ["odd", "K = 2, in full tiles", "dilation 2, in full tiles"]


def numbers(rng, case, dtype):
    """x, expand, bias, project and a cotangent, as the kernels of a network are."""
    shape, (wide, features), _ = CASES[case]
    shapes = [shape, (shape[-1], wide), (wide,), (wide, features)]
    arrays = [rng.normal(size=s) / np.sqrt(s[0] if len(s) == 2 else 1) for s in shapes]
    arrays.append(rng.normal(size=(*shape[:3], features)))
    return [jnp.asarray(array, dtype) for array in arrays]


def definition(x, expand, bias, project, kernel_size, dilation):
    """Computes the same as the kernel."""
    wide = jax.nn.relu(x @ expand + bias)
    return shift(wide, kernel_size, dilation=dilation) @ project


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def everything(function, kernel_size, dilation, *arrays):
    """The output, and the gradients of all four inputs."""
    *inputs, g = arrays
    options = {"kernel_size": kernel_size, "dilation": dilation}
    with jax.default_matmul_precision("highest"):
        y, pull = jax.vjp(functools.partial(function, **options), *inputs)
        return {"y": y} | dict(
            zip(("x", "expand", "bias", "project"), pull(g), strict=True)
        )


interpreted = functools.partial(shift_project, interpret=True)


@pytest.mark.parametrize("case", CASES)
def test_it_equals_its_definition(rng, assert_trees_close, case):
    arrays, options = numbers(rng, case, jnp.float32), CASES[case][2]
    actual = everything(interpreted, *options, *arrays)
    expected = everything(definition, *options, *arrays)
    assert_trees_close(actual, expected, FLOAT32)


@pytest.mark.parametrize("case", IN_BFLOAT16)
def test_in_bfloat16(rng, assert_trees_close, case):
    """Against float32 on the same numbers.

    Each of the 3 roundings in a row is off by 2^-9 of a number. ReLU passes or stops a
    whole number where its input is within rounding of zero, which is rare, so gradients
    are compared as directions.
    """
    arrays, options = numbers(rng, case, jnp.bfloat16), CASES[case][2]
    actual = everything(interpreted, *options, *arrays)
    assert {leaf.dtype for leaf in actual.values()} == {jnp.dtype(jnp.bfloat16)}
    wide = [array.astype(jnp.float32) for array in arrays]
    expected = everything(definition, *options, *wide)
    assert_trees_close(actual.pop("y"), expected["y"], 3 * 2**-9)
    for name, value in actual.items():
        a, b = np.ravel(value).astype(np.float64), np.ravel(expected[name])
        assert a @ b > 0.999 * np.linalg.norm(a) * np.linalg.norm(b)


def test_params_keep_their_own_dtype(rng):
    """In float32, beside activations in bfloat16: so do their gradients."""
    x, *weights, g = numbers(rng, "odd", jnp.float32)
    x, g = x.astype(jnp.bfloat16), g.astype(jnp.bfloat16)
    result = everything(interpreted, 3, 1, x, *weights, g)
    dtypes = {name: value.dtype.name for name, value in result.items()}
    assert dtypes.pop("y") == dtypes.pop("x") == "bfloat16"
    assert set(dtypes.values()) == {"float32"}


def test_a_relu_on_packed_words():
    """Every positive number of bfloat16 lets a number through, and zero does not."""
    bits = np.arange(0, 0x7F81, dtype=np.uint32)  # from zero to infinity
    values = np.full((2, len(bits)), 0x5A5A_A5A5, np.uint32).view(np.int32)
    words = np.stack([bits, np.roll(bits, 1) << 16 | bits]).view(np.int32)
    plan = TPUPlan(1, 1, 1, 16, 16, 16, jnp.dtype(jnp.bfloat16), ((0, 16, 0, 0),))
    kept = np.asarray(where_positive(plan, words, values)).view(np.uint16)
    expected = np.where(words.view(np.uint16) > 0, values.view(np.uint16), 0)
    np.testing.assert_array_equal(kept, expected)


# What it takes.

GOOD = ((256, 32, 32, 16), (16, 48), 16, 3, 1, jnp.bfloat16)
BAD = {
    "batch": (0, (64, 32, 32, 16)),
    "empty batch": (0, (0, 32, 32, 16)),
    "no image": (0, (256, 0, 32, 16)),
    "axes": (0, (256, 1024, 16)),
    "channels": (1, (8, 48)),
    "expanded": (1, (16, 40)),
    "features": (2, 24),
    "float16": (5, jnp.float16),
    "wide rows": (0, (128, 32, 4096, 16)),
}


def test_what_is_supported():
    assert is_supported(*GOOD)
    assert is_supported((128, 56, 56, 64), (64, 256), 64, 5, 1, jnp.bfloat16)
    assert is_supported((128, 5, 7, 8), (8, 24), 40, 3, 1, jnp.float32)


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_supported(name):
    place, value = BAD[name]
    arguments = list(GOOD)
    arguments[place] = value
    assert not is_supported(*arguments)


def test_what_is_not_supported_is_refused():
    x, expand, bias = jnp.zeros((64, 4, 4, 8)), jnp.zeros((8, 16)), jnp.zeros(16)
    with pytest.raises(InputError, match=r"float32 \[64, 4, 4, 8\].*batches in multi"):
        shift_project(x, expand, bias, jnp.zeros((16, 8)))


@pytest.mark.parametrize("wrong", range(3))
def test_shapes_that_do_not_fit(wrong):
    shapes = [(8, 16), (16,), (16, 8)]
    shapes[wrong] = (24,) * len(shapes[wrong])
    with pytest.raises(InputError, match=r"\(24"):
        shift_project(jnp.zeros((128, 4, 4, 8)), *map(jnp.zeros, shapes))


# The compiler for TPUs.

COMPILE = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from shiftjax.fast.tpu import shift_project

topology = topologies.get_topology_desc("v5e:2x2", platform="tpu")
mesh = Mesh(np.array(topology.devices[:1]), ("core",))
core = NamedSharding(mesh, PartitionSpec())

def both(*arrays):
    *inputs, g = arrays
    y, pull = jax.vjp(shift_project, *inputs)
    return y, pull(g)

x = jax.ShapeDtypeStruct((128, 5, 7, 16), jnp.bfloat16)
shapes = [(16, 48), (48,), (48, 16)]
weights = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
step = jax.jit(both, in_shardings=core, out_shardings=core).trace(x, *weights, x)
compiled = step.lower(lowering_platforms=("tpu",)).compile()
print(json.dumps({"calls": compiled.as_text().count("tpu_custom_call")}))
"""
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
}


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for a TPU needs libtpu: pip install libtpu",
)
def test_it_compiles_for_a_tpu(monkeypatch):
    """In a process of its own, since libtpu reads its environment when it is loaded."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    run = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1])["calls"] >= 2
