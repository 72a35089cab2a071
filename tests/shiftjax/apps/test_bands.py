"""A picture in bands is the picture in one piece, to rounding."""

import jax
import numpy as np
import pytest

from shiftjax.apps import bands
from shiftjax.apps.bands import apply_in_bands
from shiftjax.models.stylizer import StyleNet

# Three small nets have the same layers as the large ones: one block is as good as five.
NETS = {
    "plain": StyleNet(blocks=1),
    "shift": StyleNet(blocks=1, shifted=True),
    "bfloat16": StyleNet(blocks=1, shifted=True, dtype="bfloat16"),
}
# Float32 sums of thousands of products, in another order.
TOLERANCE = {"plain": 2e-5, "shift": 2e-5, "bfloat16": 0.06}

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("plain", (69, 38)),
        ("shift", (64, 90)),
        ("shift", (2, 1)),
        ("bfloat16", (7, 50)),
    ],
)
def test_bands_equal_one_piece(rng, randomize, name, size):
    """Each layer in bands of eight rows, at whose borders nothing is to be seen."""
    image = rng.normal(size=(*size, 3)).astype("float32")
    variables = randomize(NETS[name], image[None])
    actual = apply_in_bands(NETS[name], variables, image, pixels=1)
    expected = np.asarray(jax.jit(NETS[name].apply)(variables, image[None])[0])
    assert (actual.shape, actual.dtype) == (expected.shape, np.float32)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual / scale, expected / scale, 0, TOLERANCE[name])


def test_the_statistics_are_those_of_the_whole(rng, randomize, monkeypatch):
    """A picture that is black above and bright below: no band is like another."""
    image = np.zeros((64, 24, 3), np.float32)
    image[32:] = 4 + rng.normal(size=(32, 24, 3))
    model = NETS["plain"]
    variables = randomize(model, image[None])
    _, recorded = jax.jit(lambda v, x: model.apply(v, x, mutable=["instance_stats"]))(
        variables, image[None]
    )
    given = []
    activate = bands._activate

    def spy(norm, epsilon, x):
        if not isinstance(norm["instance_stats"]["mean"], jax.core.Tracer):
            given.append(norm["instance_stats"])
        return activate(norm, epsilon, x)

    monkeypatch.setattr(bands, "_activate", spy)
    apply_in_bands(model, variables, image, pixels=1)
    (found,) = given  # of conv3, which no band sees
    expected = recorded["instance_stats"]["conv3"]["norm"]
    for name in ("mean", "var"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("height", [4, 8, 20, 60, 64, 1000])
@pytest.mark.parametrize("rows", [0, 8, 30, 64, 5000])
def test_bands_cover_every_row_once_and_reach_beyond(height, rows):
    found = list(bands._bands(height, rows))
    assert [row for *_, a, b in found for row in range(a, b)] == list(range(height))
    for low, high, start, stop in found:
        assert low == 0 or start - low >= bands.REACH
        assert high == height or high - stop >= bands.REACH
        assert high - low == found[0][1]
        assert low % 4 == 0
