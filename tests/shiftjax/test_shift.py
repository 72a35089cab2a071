"""The operation: exact against loops, with every lowering, and its mistakes."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax import InputError, UnknownNameError, displace, displacements, shift
from shiftjax.lowerings import DEFAULT_LOWERING, LOWERINGS
from tests.shiftjax.conftest import SHIFT_CASES as CASES
from tests.shiftjax.conftest import assert_identical, numbers, whole_numbers

DTYPES = [
    "float32",
    "float16",
    "bfloat16",
    "int8",
    "int16",
    "int32",
    "uint8",
    "uint16",
    "uint32",
    "bool",
    "complex64",
]
WIDE_DTYPES = ["float64", "int64", "uint64", "complex128"]


def random_case(rng):
    """A random window, and a shape that it is often too large for."""
    kernel_size, dilation, stride = (int(rng.integers(1, n)) for n in (8, 4, 4))
    leading = rng.integers(1, 4, rng.integers(0, 4))
    channels = rng.integers(1, 2 * kernel_size**2 + kernel_size)
    shape = (*leading.tolist(), *rng.integers(1, 10, 2).tolist(), int(channels))
    options = {"kernel_size": kernel_size, "dilation": dilation, "stride": stride}
    return shape, options, rng.choice(DTYPES)


@pytest.mark.parametrize("group", range(20))
@pytest.mark.usefixtures("quick")
def test_equals_loops_on_500_random_cases(request, reference, group):
    rng = np.random.default_rng((request.config.getoption("seed"), group))
    cases = [random_case(rng) for _ in range(25)]
    inputs = [numbers(rng, shape, dtype) for shape, _, dtype in cases]

    @jax.jit  # one program of 25, which costs less to compile than 25
    def program(inputs):
        return [
            shift(x, **options)
            for x, (_, options, _) in zip(inputs, cases, strict=True)
        ]

    outputs = program(inputs)
    for x, y, (_, options, _) in zip(inputs, outputs, cases, strict=True):
        assert_identical(y, reference.shift(x, **options))


@pytest.mark.parametrize("lowering", [*LOWERINGS, None])
def test_every_lowering_equals_loops(reference, rng, lowering):
    tables = {
        name: (reference.table(shape[-1], kernel_size, dilation), stride)
        for name, (kernel_size, dilation, stride, shape) in CASES.items()
    }
    inputs = {name: numbers(rng, CASES[name][-1], "float32") for name in CASES}

    @jax.jit
    def program(inputs):
        options = {"lowering": lowering}
        return {
            name: displace(x, tables[name][0], stride=tables[name][1], **options)
            for name, x in inputs.items()
        }

    for name, y in program(inputs).items():
        table, stride = tables[name]
        assert_identical(y, reference.displace(inputs[name], table, stride))


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_every_lowering_takes_irregular_tables(reference, rng, lowering):
    """Rows of a table need no order, and need not be in the picture."""
    table = [(0, 3), (-2, 0), (0, 3), (9, 9), (1, -1), (-9, 0), (0, 0)]
    x = numbers(rng, (2, 5, 6, 7), "float32")

    @jax.jit
    def program(x):
        return [displace(x, table, stride=s, lowering=lowering) for s in (1, 2)]

    for stride, y in enumerate(program(x), 1):
        assert_identical(y, reference.displace(x, table, stride))


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.usefixtures("quick")
def test_every_lowering_keeps_every_dtype(reference, rng, lowering):
    check_dtypes(reference, rng, lowering, DTYPES)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.usefixtures("float64", "quick")
def test_every_lowering_keeps_every_wide_dtype(reference, rng, lowering):
    check_dtypes(reference, rng, lowering, WIDE_DTYPES)


def check_dtypes(reference, rng, lowering, dtypes):
    table = reference.table(11, 3)
    inputs = [numbers(rng, (2, 4, 5, 11), dtype) for dtype in dtypes]

    @jax.jit
    def program(inputs):
        return [displace(x, table, stride=2, lowering=lowering) for x in inputs]

    for x, y in zip(inputs, program(inputs), strict=True):
        assert_identical(y, reference.displace(x, table, 2))


@pytest.mark.parametrize("lowering", sorted(set(LOWERINGS) - {"depthwise"}))
def test_special_numbers_keep_their_bits(reference, lowering):
    """Only the depthwise lowering computes with the numbers; the others move them."""
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32)
    x = np.resize(special, (4, 4, 9))
    table = reference.table(9, 3)
    y = jax.jit(lambda x: displace(x, table, lowering=lowering))(x)
    assert_identical(y, reference.displace(x, table))


def test_default_lowerings_exist():
    assert set(DEFAULT_LOWERING.values()) <= set(LOWERINGS)


# fmt: off
TABLES = {
    "K=1": ((2, 1, 1), [(0, 0), (0, 0)]),
    "K=2": ((4, 2, 1), [(-1, -1), (-1, 0), (0, -1), (0, 0)]),
    "K=2, two to a group": ((8, 2, 1), [
        (-1, -1), (-1, -1), (-1, 0), (-1, 0), (0, -1), (0, -1), (0, 0), (0, 0),
    ]),
    "K=3, one left over": ((10, 3, 1), [
        (-1, -1), (-1, 0), (-1, 1),
        (0, -1), (0, 0), (0, 1),
        (1, -1), (1, 0), (1, 1),
        (0, 0),
    ]),
    "K=3, dilation 2": ((9, 3, 2), [
        (-2, -2), (-2, 0), (-2, 2),
        (0, -2), (0, 0), (0, 2),
        (2, -2), (2, 0), (2, 2),
    ]),
    "K=2, dilation 3": ((5, 2, 3), [(-3, -3), (-3, 0), (0, -3), (0, 0), (0, 0)]),
    "fewer channels than displacements": ((8, 3, 1), [(0, 0)] * 8),
}
# fmt: on


@pytest.mark.parametrize("name", TABLES)
def test_displacements_by_hand(name):
    (channels, kernel_size, dilation), expected = TABLES[name]
    table = displacements(channels, kernel_size, dilation=dilation)
    assert table.dtype == np.int64
    assert table.tolist() == [list(row) for row in expected]


@pytest.mark.parametrize("kernel_size", range(1, 8))
@pytest.mark.parametrize("channels", [1, 16, 48, 49, 50, 144, 400])
def test_displacements_are_the_papers(reference, channels, kernel_size):
    table = displacements(channels, kernel_size, dilation=2)
    assert table.tolist() == [
        list(row) for row in reference.table(channels, kernel_size, 2)
    ]


def test_stride_keeps_rows_and_columns_of_the_full_resolution(rng):
    x = whole_numbers(rng, 2, 7, 8, 9)
    np.testing.assert_array_equal(shift(x, stride=3), shift(x)[:, ::3, ::3])


# The family: other tables of the same primitive, against plain slices.


def test_four_connected_shift(rng):
    """Chen et al. 2019 (arXiv:1910.09931): no diagonal moves."""
    x = whole_numbers(rng, 2, 4, 5, 10)
    table = np.repeat([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)], 2, axis=0)
    expected = np.zeros_like(x)
    expected[..., 0:2] = x[..., 0:2]
    expected[:, 1:, :, 2:4] = x[:, :-1, :, 2:4]
    expected[:, :-1, :, 4:6] = x[:, 1:, :, 4:6]
    expected[:, :, 1:, 6:8] = x[:, :, :-1, 6:8]
    expected[:, :, :-1, 8:10] = x[:, :, 1:, 8:10]
    assert_identical(displace(x, table), expected)


def test_axial_shift(rng):
    """AS-MLP (arXiv:2107.08391): one branch moves along rows, one along columns."""
    x = whole_numbers(rng, 1, 5, 4, 3)
    along = np.array([-1, 0, 1])
    rows = displace(x, np.stack([along, 0 * along], 1))
    columns = displace(x, np.stack([0 * along, along], 1))
    expected = np.zeros_like(x)
    expected[:, 1:, :, 0] = x[:, :-1, :, 0]
    expected[..., 1] = x[..., 1]
    expected[:, :-1, :, 2] = x[:, 1:, :, 2]
    assert_identical(rows, expected)
    expected[...] = 0
    expected[:, :, 1:, 0] = x[:, :, :-1, 0]
    expected[..., 1] = x[..., 1]
    expected[:, :, :-1, 2] = x[:, :, 1:, 2]
    assert_identical(columns, expected)


def test_temporal_shift(rng):
    """TSM (arXiv:1811.08383): time is the row axis, the pixels are the columns."""
    video = whole_numbers(rng, 2, 6, 4, 3, 8)  # [batch, time, height, width, channels]
    fold = 8 // 4
    table = [(1, 0)] * fold + [(-1, 0)] * fold + [(0, 0)] * (8 - 2 * fold)
    y = displace(video.reshape(2, 6, 12, 8), table).reshape(video.shape)
    expected = np.zeros_like(video)
    expected[:, :-1, ..., :fold] = video[:, 1:, ..., :fold]
    expected[:, 1:, ..., fold : 2 * fold] = video[:, :-1, ..., fold : 2 * fold]
    expected[..., 2 * fold :] = video[..., 2 * fold :]
    assert_identical(np.asarray(y), expected)


# What comes in.


@pytest.mark.parametrize("shape", [(0, 4, 5, 9), (2, 0, 5, 9), (2, 4, 0, 9)])
def test_empty_arrays(shape):
    x = jnp.zeros(shape, jnp.bfloat16)
    y = shift(x, stride=2)
    assert y.shape == (shape[0], -(-shape[1] // 2), -(-shape[2] // 2), 9)
    assert y.dtype == jnp.bfloat16
    assert jax.grad(lambda x: shift(x).sum(dtype=jnp.float32))(x).shape == shape


def test_no_channels():
    assert displace(jnp.zeros((2, 4, 5, 0)), np.zeros((0, 2), int)).shape[-1] == 0


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.uint16])
def test_numpy_integers_are_integers(reference, rng, kind):
    x = numbers(rng, (4, 5, 4), "float32")
    y = shift(x, kind(2), dilation=kind(1), stride=kind(2))
    assert_identical(y, reference.shift(x, 2, stride=2))


def test_numpy_input_gives_a_jax_array():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = shift(np.zeros((4, 4, 9), np.float32))
    assert isinstance(y, jax.Array)


X = jnp.zeros((2, 4, 4, 9))
INVALID = {
    "K = 0": (lambda: shift(X, 0), "kernel_size=0"),
    "K negative": (lambda: shift(X, -3), "kernel_size=-3"),
    "K a float": (lambda: shift(X, 3.0), "kernel_size=3.0"),
    "K a bool": (lambda: shift(X, True), "kernel_size=True"),
    "dilation 0": (lambda: shift(X, dilation=0), "dilation=0"),
    "dilation a float": (lambda: shift(X, dilation=1.5), "dilation=1.5"),
    "stride 0": (lambda: shift(X, stride=0), "stride=0"),
    "stride negative": (lambda: shift(X, stride=-1), "stride=-1"),
    "two axes": (lambda: shift(X[0, 0]), r"shape \[4, 9\]"),
    "a scalar": (lambda: shift(1.0), r"shape \[\]"),
    "no channels": (lambda: displacements(0), "channels=0"),
    "channels a float": (lambda: displacements(9.0), "channels=9.0"),
    "table too short": (lambda: displace(X, [(0, 0)] * 8), r"int64 \[8, 2\]; 9 chan"),
    "table of floats": (lambda: displace(X, np.zeros((9, 2))), r"float64 \[9, 2\]"),
    "table of one column": (lambda: displace(X, np.zeros(9, int)), r"int64 \[9\]"),
    "displace stride 0": (lambda: displace(X, [(0, 0)] * 9, stride=0), "stride=0"),
    "displace of two axes": (lambda: displace(X[0, 0], [(0, 0)]), r"shape \[4, 9\]"),
    "border in a list": (
        lambda: displace(X, [(0, 0)] * 9, border=["edge"]),
        r"unknown border \['edge'\]: did you mean 'edge'",
    ),
    "border of a shift in a list": (
        lambda: shift(X, border=["edge"]),
        r"unknown border \['edge'\]: did you mean 'edge'",
    ),
    "lowering in a list": (
        lambda: displace(X, [(0, 0)] * 9, lowering=["pad"]),
        r"unknown lowering \['pad'\]",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_argument_is_named_with_its_value(name):
    call, message = INVALID[name]
    with pytest.raises(InputError, match=message):
        call()


def test_valid_options_do_not_let_equal_but_invalid_ones_in():
    """1 == 1.0 == True also as the key of a cache."""
    shift(X, 1, stride=1)
    for value in (1.0, True):
        with pytest.raises(InputError, match=f"stride={value}"):
            shift(X, 1, stride=value)


@pytest.mark.parametrize("lowering", [None, *LOWERINGS])
@pytest.mark.parametrize("border", ["zeros", "wrap"])
@pytest.mark.parametrize("far", [2**31, -(2**31), np.iinfo(np.int64).min])
def test_a_displacement_beyond_int32_is_named(far, border, lowering):
    """Such as rounded displacements that were no numbers."""
    table = np.array([(0, 1)] * 8 + [(0, far)])
    with pytest.raises(InputError, match=f"the table has {far}: displ"):
        displace(X, table, border=border, lowering=lowering)


@pytest.mark.parametrize("lowering", ["select", "pad", "slice", "gather", "roll"])
@pytest.mark.parametrize("far", [2**31 - 1, 1 - 2**31])
def test_a_displacement_of_int32_is_outside(far, lowering):
    moved = displace(X + 1, [(0, far)] * 4 + [(far, 0)] * 5, lowering=lowering)
    assert not moved.any()


def test_an_unknown_lowering_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="'gahter': did you mean 'gather'"):
        displace(X, [(0, 0)] * 9, lowering="gahter")
