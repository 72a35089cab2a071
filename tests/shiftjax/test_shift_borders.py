"""Borders other than zeros, and shifts along one axis and along three."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax import InputError, displace, shift
from shiftjax.errors import UnknownNameError
from shiftjax.lowerings import LOWERINGS
from shiftjax.shift import BORDERS
from tests.shiftjax.conftest import assert_identical, whole_numbers, with_gradient

pytestmark = pytest.mark.usefixtures("quick")

# Columns of a table: one for each axis of pixels.
TABLES = {
    1: [(2,), (-1,), (0,), (-9,), (7,)],
    2: [(1, -2), (0, 3), (-9, 1), (0, 0), (4, -4)],
    3: [(1, -1, 2), (-2, 0, 0), (0, 3, -1), (0, 0, 0), (5, 1, -6)],
}
SHAPES = {1: (2, 5, 5), 2: (2, 4, 3, 5), 3: (2, 3, 4, 2, 5)}


def source(place: int, length: int, border: str) -> int | None:
    """The pixel that is read at a place in a row, or None for a zero."""
    if 0 <= place < length:
        return place
    if border == "zeros":
        return None
    if border == "edge":
        return 0 if place < 0 else length - 1
    if border == "wrap":
        return place % length
    while not 0 <= place < length:  # the image, mirrored again and again
        place = -place if place < 0 else 2 * (length - 1) - place
        if length == 1:
            return 0
    return place


def moved(x, table, stride, border, back=None):
    """Number by number; or its transpose, which adds `back` where it came from."""
    axes = len(table[0])
    lengths = x.shape[-1 - axes : -1]
    kept = [-(-length // stride) for length in lengths]
    out = np.zeros((*x.shape[: -1 - axes], *kept, x.shape[-1]), x.dtype)
    origin = np.zeros_like(x)
    for place in itertools.product(*map(range, kept)):
        for channel, move in enumerate(table):
            read = [
                source(stride * p + m, length, border)
                for p, m, length in zip(place, move, lengths, strict=True)
            ]
            if None not in read:
                out[(..., *place, channel)] = x[(..., *read, channel)]
                if back is not None:
                    origin[(..., *read, channel)] += back[(..., *place, channel)]
    return out if back is None else origin


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("axes", TABLES)
def test_borders_and_axes_equal_loops_with_their_gradients(rng, axes, border):
    table = TABLES[axes]
    for stride in (1, 2):
        x = whole_numbers(rng, *SHAPES[axes])
        wanted = moved(x, table, stride, border)
        g = whole_numbers(rng, *wanted.shape)
        operation = functools.partial(
            displace, table=table, stride=stride, border=border
        )
        y, dx = with_gradient(operation, x, g)
        assert_identical(y, wanted)
        assert_identical(dx, moved(x, table, stride, border, g))


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_every_lowering_has_the_borders_and_axes(rng, lowering):
    cases = [(2, "reflect"), (1, "wrap"), (3, "zeros")]
    inputs = [whole_numbers(rng, *SHAPES[axes]) for axes, _ in cases]

    @jax.jit
    def program(inputs):
        return [
            displace(x, TABLES[axes], stride=2, border=border, lowering=lowering)
            for x, (axes, border) in zip(inputs, cases, strict=True)
        ]

    for x, y, (axes, border) in zip(inputs, program(inputs), cases, strict=True):
        assert_identical(y, moved(x, TABLES[axes], 2, border))


@pytest.mark.parametrize("border", BORDERS)
def test_one_row_by_hand(border):
    row = jnp.array([1, 2, 3, 4])[:, None]
    wanted = {
        "zeros": [3, 4, 0, 0],
        "edge": [3, 4, 4, 4],
        "wrap": [3, 4, 1, 2],
        "reflect": [3, 4, 3, 2],
    }
    assert displace(row, [(2,)], border=border)[:, 0].tolist() == wanted[border]


def test_the_papers_shift_with_a_border(reference, rng):
    x = whole_numbers(rng, 2, 5, 4, 20)
    y = shift(x, 3, dilation=2, stride=2, border="reflect")
    assert_identical(y, moved(x, reference.table(20, 3, 2), 2, "reflect"))


@pytest.mark.parametrize("border", ["wrap", "reflect"])
def test_a_margin_is_as_small_as_it_can_be(border):
    """A displacement of a million pixels is one of less than two images."""
    x = jax.ShapeDtypeStruct((8, 8, 1), "float32")
    far = functools.partial(displace, table=[(10**6, -(10**6))], border=border)
    text = str(jax.make_jaxpr(far)(x))
    assert "1000" not in text


def test_forward_derivatives_and_batches(rng):
    x, tangent = (whole_numbers(rng, 3, 4, 3, 5) for _ in range(2))
    operation = functools.partial(displace, table=TABLES[2], border="wrap")
    _, slope = jax.jvp(operation, (x,), (tangent,))
    assert_identical(slope, moved(tangent, TABLES[2], 1, "wrap"))
    assert_identical(jax.vmap(operation)(x), moved(x, TABLES[2], 1, "wrap"))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: displace(x, TABLES[2], border="edges"),
            UnknownNameError,
            "border 'edges': did you mean 'edge'",
        ),
        (lambda x: shift(x, border="same"), UnknownNameError, "border 'same'"),
        (
            lambda x: displace(x, [(0,) * 4] * 5),
            InputError,
            r"int64 \[5, 4\]: it must be integers \[channels, 2\], or of 1 or 3",
        ),
        (
            lambda x: displace(x, [(0, 0), (1,)]),
            InputError,
            "the table has rows of different lengths",
        ),
        (
            lambda x: displace(x[0], [(0, 0, 0)] * 5),
            InputError,
            r"shape \[4, 3, 5\]; a shift needs \[\.\.\., depth, height, width, chan",
        ),
        (
            lambda x: displace(x[0, 0, 0], [(0,)] * 5),
            InputError,
            r"shape \[5\]; a shift needs \[\.\.\., length, channels\]",
        ),
        (
            lambda x: jax.jit(displace)(x, jnp.zeros((5, 2), int)),
            InputError,
            "the table is traced: it must be known when the program is traced",
        ),
        (
            lambda x: jax.jit(shift)(x, 3),
            InputError,
            "kernel_size=.*: it must be an integer of at least 1",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call(jnp.zeros(SHAPES[2]))
    assert "\n" not in str(raised.value)
