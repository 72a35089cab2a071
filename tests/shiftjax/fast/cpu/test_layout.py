"""The layout of the implementation for CPUs: into it, and out of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax import InputError
from shiftjax.fast.cpu import Planes

pytestmark = pytest.mark.usefixtures("quick")

# batch, chunk: the shape [channels, chunks, H, W, images]
CUTS = {
    (6, 3): (3, 2, 4, 5, 3),
    (7, 8): (3, 1, 4, 5, 7),
    (7, 2): (3, 7, 4, 5, 1),
    (12, 5): (3, 3, 4, 5, 4),  # of 12 images, at most 5 in a chunk: 4
    (12, None): (3, 1, 4, 5, 12),
    (1, 4): (3, 1, 4, 5, 1),
}


@pytest.mark.parametrize("cut", CUTS)
def test_cutting_and_joining(rng, cut):
    batch, chunk = cut
    x = rng.normal(size=(batch, 4, 5, 3)).astype(np.float32)
    planes = Planes.from_nhwc(x, chunk=chunk)
    assert planes.array.shape == CUTS[cut]
    assert planes.shape == x.shape
    np.testing.assert_array_equal(planes.to_nhwc(), x)
    pooled = planes.global_average_pool()
    expected = x.astype(np.float64).mean((1, 2))
    np.testing.assert_allclose(pooled, expected, atol=1e-6)  # 20 additions in float32


def test_planes_hold_each_image_whole(rng):
    x = rng.normal(size=(6, 4, 5, 3)).astype(np.float32)
    array = Planes.from_nhwc(x, chunk=2).array
    for i in range(6):
        for c in range(3):
            plane = array[c, i // 2, :, :, i % 2]
            np.testing.assert_array_equal(plane, x[i, :, :, c])


def test_planes_are_a_tree_and_map(rng):
    x = rng.normal(size=(4, 2, 2, 3)).astype(np.float32)
    doubled = jax.jit(lambda p: p.map(lambda array: 2 * array))(Planes.from_nhwc(x))
    np.testing.assert_array_equal(doubled.to_nhwc(), 2 * x)


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_an_invalid_chunk_is_named_with_its_value(value):
    with pytest.raises(InputError, match=f"chunk={value}"):
        Planes.from_nhwc(jnp.zeros((2, 8, 8, 3)), chunk=value)
