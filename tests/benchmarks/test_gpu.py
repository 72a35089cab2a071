"""The benchmarks for GPUs: their cases on a CPU, and their floors by hand."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.gpu_cases import SIZES, Block, block, middles, shift

SMALL = Block(2, 5, 8, 3, 3, 1)
STRIDED = Block(2, 6, 8, 3, 3, 2)
FORMS = middles({"": None})


def compute(case):
    """Runs a case on random numbers."""
    function, shapes = case
    with jax.default_matmul_precision("highest"):
        return jax.jit(function)(*gpu.random(shapes, 0))


@pytest.mark.parametrize("shapes", [SMALL, STRIDED])
@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_a_block_are_the_same(form, shapes):
    """Output and gradients; normalisations lose up to 2,000 units of 6e-8."""
    build = functools.partial(block, shapes, backward=True, dtype=jnp.float32)
    y, _, gradients = compute(build(FORMS["plain"]))
    other, _, others = compute(build(FORMS[form]))
    expected, actual = jax.tree.leaves([y, gradients]), jax.tree.leaves([other, others])
    largest = max(float(jnp.abs(leaf).max()) for leaf in expected)
    for a, b in zip(actual, expected, strict=True):
        scale = max(float(jnp.abs(b).max()), largest / 1000)
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=1e-4)


def test_floors_by_hand():
    """128 x 32 x 32 x 16 in bfloat16 are 4 MiB; one product is 2 x 16 x 48 a pixel."""
    shapes = Block(128, 32, 16, 3, 3, 1)
    assert shapes.floor_bytes(False) == 6 * 2**22
    assert shapes.floor_bytes(True) == 16 * 2**22
    pixels = 128 * 32 * 32
    assert shapes.flops(False) == pixels * 2 * 2 * 16 * 48
    assert shapes.flops(True) == pixels * 7 * 2 * 16 * 48
    strided = Block(128, 32, 16, 3, 3, 2)  # to half as many numbers
    assert strided.narrow_bytes == (2**22, 2**21)


@pytest.mark.parametrize("backward", [False, True])
def test_a_copy_moves_what_a_shift_does(backward):
    shape = (2, 4, 4, 9)
    ours, copy = (
        jax.eval_shape(*_flat(shift(n, shape, 3, backward))) for n in ("pad", "copy")
    )
    shapes = ([leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (ours, copy))
    assert len({str(shape) for shape in shapes}) == 1


def _flat(case):
    function, shapes = case
    return function, *shapes


def test_the_program_runs(tmp_path, capsys):
    """Tiny shapes of everything but training, on this machine."""
    out = tmp_path / "gpu.json"
    command = ["--quick", "--rounds", "2", "--parts", "copy", "shift", "block"]
    assert gpu.main([*command, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    titles = [table["title"] for table in report["tables"]]
    assert len(titles) == 4
    assert "block 2 x 8 x 8 x 16, E 3, forward + backward" in titles
    for table in report["tables"]:
        assert all(row["seconds"] > 0 for row in table["rows"])
    assert "failed" not in capsys.readouterr().out


def test_sizes_are_sound():
    """Each is a power of two where it must be."""
    for sizes in SIZES.values():
        for pixels in (sizes.pixels, sizes.back_pixels) if sizes else ():
            assert pixels & (pixels - 1) == 0
