"""Our cases compute what their names say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import block as blocks
from benchmarks.block import Shape
from benchmarks.cases import Options
from benchmarks.jax_blocks import Block, jax_block, traced_block
from benchmarks.jax_nets import jax_inference, jax_training_step
from benchmarks.jax_operations import jax_operation
from shiftjax import ShiftConv
from shiftjax.lowerings import LOWERINGS
from train.assemble import Setup

SHAPE = (2, 4, 5, 18)
PASSES = [(False, "float32"), (True, "bfloat16")]
TINY = {"stem": 8, "groups": [[3, 16, [2, 1]]], "num_classes": 3}


def moved(x, sign):
    """Each pair of channels by its displacement of a 3x3 window, number by number."""
    out = np.zeros_like(x)
    _, height, width, channels = x.shape
    for c in range(channels):
        dy, dx = (sign * (d - 1) for d in divmod(c // 2, 3))
        for h in range(height):
            for w in range(width):
                if 0 <= h + dy < height and 0 <= w + dx < width:
                    out[:, h, w, c] = x[:, h + dy, w + dx, c]
    return out


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_a_shift_and_its_gradient(lowering):
    """The gradient of a shift is the opposite one of what comes back: 2 x."""
    program = jax_operation(
        kind="shift", shape=SHAPE, dtype="float32", backward=True, lowering=lowering
    )
    ((y, (gradient,)),) = program.call()
    x = np.asarray(jax.random.normal(jax.random.key(0), SHAPE))
    np.testing.assert_array_equal(y, moved(x, 1))
    np.testing.assert_array_equal(gradient, moved(2 * x, -1))


@pytest.mark.parametrize(("backward", "dtype"), PASSES)
@pytest.mark.parametrize("kind", ["copy", "depthwise", "dense"])
def test_what_the_shift_is_compared_with(kind, backward, dtype):
    program = jax_operation(kind=kind, shape=SHAPE, dtype=dtype, backward=backward)
    results = jax.tree.leaves(program.wait(program.call()))
    kernels = kind != "copy"
    assert len(results) == (2 + kernels if backward else 1)
    assert results[0].shape == SHAPE
    assert results[0].dtype == dtype
    assert program.memory_bytes is not None
    assert program.memory_bytes >= results[0].nbytes


def test_the_block_is_that_of_the_library(rng):
    """The same variables give the same numbers, but for the lowering's rounding."""
    x = jnp.asarray(rng.standard_normal((2, 6, 6, 16)), jnp.float32)
    mine = Block(features=16, expansion=3, kernel_size=3, middle="shift")
    variables = mine.init(jax.random.key(0), x)
    theirs = ShiftConv(16, expansion=3).apply(variables, x)
    np.testing.assert_allclose(mine.apply(variables, x), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("backward", "dtype"), PASSES)
@pytest.mark.parametrize("middle", ["copy", "nothing", "depthwise", "dense", "cpu"])
def test_blocks_run(middle, backward, dtype):
    options = Shape(2, 4, 16, 3).options | {"dtype": dtype, "backward": backward}
    program = jax_block(middle=middle, **options)
    assert program.wait(program.call()) is not None


GPU = {
    name: own
    for name, own in blocks.implementations("gpu").items()
    if not own.get("sizes")
}


def results(own, strides):
    """The output and the gradients of a block."""
    options = Shape(2, 6, 8, 3, 3, strides).options
    options |= {"dtype": "float32", "backward": True}
    function, arguments = traced_block(**options, **own)
    with jax.default_matmul_precision("highest"):
        y, _, gradients = jax.jit(function)(*arguments())
    return jax.tree.leaves([y, gradients])


@functools.cache
def reference(strides):
    return results({"middle": "reference"}, strides)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("name", GPU)
def test_all_implementations_for_a_gpu_are_the_same(name, strides):
    """Output and gradients; normalisations lose up to 2,000 units of 6e-8."""
    expected, actual = reference(strides), results(GPU[name], strides)
    largest = max(float(jnp.abs(leaf).max()) for leaf in expected)
    for a, b in zip(actual, expected, strict=True):
        scale = max(float(jnp.abs(b).max()), largest / 1000)
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("passes", ["forward", "forward + backward"])
def test_cases_of_a_gpu_run_on_several_inputs(passes):
    """Cases of a quick table, the kernel interpreted, in one dispatch."""
    machine = {"platform": "gpu", "torch": "gpu"}
    tables = blocks.block_tables(Options(("block",), quick=True), machine)
    (table,) = (table for table in tables if table.facts["passes"] == passes)
    cases = [case for case in table.cases if case.library == "jax"]
    assert "implementation gpu, tiles of 32" in [case.name for case in cases]
    kinds = ("without its shift", "implementation reference", "implementation gpu")
    cases = [case for case in cases if case.name in kinds]
    assert len(cases) == len(kinds)
    for case in cases:
        inputs = 2 if passes == "forward" else 1
        assert case.options["copies"] == 2
        program = jax_block(**case.options | {"copies": inputs})
        results = program.wait(program.call())
        assert len(results) == program.steps == inputs
        assert np.isfinite(jax.tree.leaves(results)[0]).all()


def test_steps_of_one_dispatch(monkeypatch):
    """A call runs several steps, as on an accelerator, and the state continues."""
    monkeypatch.setattr(Setup, "steps_per_dispatch", 3)
    program = jax_training_step("shiftnet", 2, "float32", 16, TINY)
    assert program.steps == 3
    losses = [float(program.call()) for _ in range(4)]
    assert np.isfinite(losses).all()
    assert len(set(losses)) == 4


@pytest.mark.parametrize("make", [jax_training_step, jax_inference])
def test_networks_run(make):
    program = make("shiftnet", 2, "float32", 16, TINY)
    program.wait(program.call())
    program.wait(program.call())
    # 7x7 stem; 1x1 to 2 x 8 and back, with BatchNorms of 8 and 16; 1x1 to 16 and
    # back, with two BatchNorms of 16; BatchNorm of 16; dense.
    first = 49 * 3 * 8 + (8 * 16 + 16 * 8 + 2 * 8 + 2 * 16)
    assert program.facts["params"] == first + (2 * 256 + 64) + 32 + (16 * 3 + 3)
