"""The operation: exact against loops, linear, and usable under all of JAX."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from shiftjax import InputError, UnknownNameError, displace, displacements, shift
from shiftjax.shift import DEFAULT_LOWERING, LOWERINGS

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
PLATFORMS = ["cpu", "cuda", "rocm", "tpu"]

# kernel_size, dilation, stride, shape. The names say what each is there for.
CASES = {
    "plain": (3, 1, 1, (2, 5, 6, 9)),
    "left_over_channels": (3, 1, 1, (2, 4, 5, 13)),
    "too_few_channels": (3, 1, 1, (2, 4, 5, 8)),
    "even": (2, 1, 1, (5, 4, 9)),
    "dilated": (3, 2, 1, (2, 7, 6, 18)),
    "strided": (3, 1, 2, (2, 5, 8, 9)),
    "strided_dilated_even": (4, 2, 3, (1, 2, 10, 11, 16)),
    "smaller_than_the_displacement": (5, 2, 1, (2, 3, 2, 25)),
    "one_pixel": (3, 1, 2, (2, 1, 1, 9)),
}


def numbers(rng, shape, dtype):
    """Random numbers that tell every place from its neighbours, of any dtype."""
    dtype = jnp.dtype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if jnp.issubdtype(dtype, jnp.integer):
        return rng.integers(0, 100, shape).astype(dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)
    return rng.normal(size=shape).astype(dtype)


def whole_numbers(rng, *shape):
    """float32 small enough that all sums of products here are exact."""
    return rng.integers(-9, 10, shape).astype(np.float32)


def assert_identical(actual, expected):
    """Asserts the same dtype, shape and bits."""
    actual = np.asarray(actual)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)
    assert actual.tobytes() == expected.tobytes()


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


# Derivatives.


@functools.partial(jax.jit, static_argnums=0)
def with_gradient(function, x, g):
    """Returns function(x) and the gradient of its product with g."""
    y, pull = jax.vjp(function, x)
    return y, pull(g)[0]


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_the_transpose(reference, rng, name):
    """Both against loops, and <S x, y> = <x, S' y>: exactly, on whole numbers."""
    kernel_size, dilation, stride, shape = CASES[name]
    options = {"kernel_size": kernel_size, "dilation": dilation, "stride": stride}
    x = whole_numbers(rng, *shape)
    g = whole_numbers(rng, *reference.shift(x, **options).shape)
    y, dx = with_gradient(functools.partial(shift, **options), x, g)
    table = reference.table(shape[-1], kernel_size, dilation)
    assert_identical(dx, reference.spread(g, table, shape, stride))
    assert np.vdot(y, g) == np.vdot(x, dx)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_every_lowering_has_the_same_gradient(reference, rng, lowering):
    table, shape = reference.table(11, 3, 2), (2, 7, 6, 11)
    x, g = whole_numbers(rng, *shape), whole_numbers(rng, 2, 4, 3, 11)
    operation = functools.partial(displace, table=table, stride=2, lowering=lowering)
    assert_identical(
        with_gradient(operation, x, g)[1], reference.spread(g, table, shape, 2)
    )


def primitives(jaxpr):
    """Names of all operations of a program, those of its parts included."""
    names = []
    for equation in jaxpr.eqns:
        inner = jax.tree.leaves(list(equation.params.values()))
        parts = [part for part in inner if hasattr(part, "jaxpr")]
        names += [equation.primitive.name] if not parts else []
        for part in parts:
            names += primitives(part.jaxpr)
    return names


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_gradient_is_one_displacement_and_no_scatter(stride):
    x = jnp.zeros((2, 6, 6, 18))
    operation = functools.partial(shift, stride=stride)
    y, pull = jax.vjp(operation, x)
    backward = jax.make_jaxpr(pull)(y)
    assert primitives(jax.make_jaxpr(operation)(x).jaxpr) == ["displace"]
    assert primitives(backward.jaxpr) == ["pad"] * (stride > 1) + ["displace"]
    for platform in PLATFORMS:
        lowered = jax.jit(pull).trace(y).lower(lowering_platforms=(platform,))
        assert "scatter" not in lowered.as_text()


def test_forward_derivative_is_the_shift_of_the_tangent(reference, rng):
    x, tangent = whole_numbers(rng, 2, 2, 5, 4, 9)
    operation = functools.partial(shift, stride=2)
    y, dy = jax.jit(lambda *xs: jax.jvp(operation, xs[:1], xs[1:]))(x, tangent)
    assert_identical(y, reference.shift(x, stride=2))
    assert_identical(dy, reference.shift(tangent, stride=2))


def test_hessian_of_a_cubic(reference, rng):
    """sum((S x)**3) has the Hessian S' diag(6 S x) S."""
    x = whole_numbers(rng, 3, 2, 9)
    basis = np.eye(x.size, dtype=np.float32).reshape(x.size, *x.shape)
    matrix = np.stack([reference.shift(e).ravel() for e in basis], 1)
    expected = matrix.T @ np.diag(6 * matrix @ x.ravel()) @ matrix
    hessian = jax.jit(jax.hessian(lambda x: (shift(x) ** 3).sum()))(x)
    np.testing.assert_array_equal(hessian.reshape(x.size, x.size), expected)


def test_gradient_through_checkpoint_and_scan(reference, rng):
    """The sum of g * S S S x, with S recomputed, has the gradient S' S' S' g."""
    x, g = whole_numbers(rng, 2, 5, 4, 9)

    def repeated(x):
        step = jax.checkpoint(lambda carry, _: (shift(carry), None))
        return jax.lax.scan(step, x, length=3)[0]

    expected, back = x, g
    for _ in range(3):
        expected = reference.shift(expected)
        back = reference.spread(back, reference.table(9, 3), x.shape)
    assert_identical(jax.jit(repeated)(x), expected)
    gradient = jax.jit(jax.grad(lambda x: (g * repeated(x)).sum()))(x)
    assert_identical(gradient, back)


# Transformations and placement.


@pytest.mark.parametrize("out_axis", [0, 2])
@pytest.mark.parametrize("axis", range(-4, 0))
def test_vmap_over_any_axis(reference, rng, axis, out_axis):
    x = numbers(rng, (3, 4, 5, 9), "float32")
    mapped = jax.vmap(functools.partial(shift, kernel_size=2), axis, out_axis)
    slices = [reference.shift(v, 2) for v in np.moveaxis(x, axis, 0)]
    assert_identical(jax.jit(mapped)(x), np.stack(slices, out_axis))


def test_nested_vmap(reference, rng):
    x = numbers(rng, (2, 4, 3, 5, 9), "float32")
    mapped = jax.vmap(jax.vmap(shift, 1, 1), 2, 2)
    expected = np.empty_like(x)
    for i in range(3):
        for j in range(4):
            expected[:, j, i] = reference.shift(x[:, j, i])
    assert_identical(jax.jit(mapped)(x), expected)


def test_gradient_under_vmap(reference, rng):
    """Per-example gradients."""
    x, g = whole_numbers(rng, 2, 3, 4, 5, 9)
    gradients = jax.vmap(jax.grad(lambda x, g: (g * shift(x)).sum()))
    table = reference.table(9, 3)
    assert_identical(jax.jit(gradients)(x, g), reference.spread(g, table, x.shape))


def test_without_jit(reference, rng):
    x = numbers(rng, (4, 5, 9), "float32")
    with jax.disable_jit():
        assert_identical(shift(x, stride=2), reference.shift(x, stride=2))


def test_pmap(reference, rng, devices):
    x = numbers(rng, (4, 2, 5, 4, 9), "float32")
    assert_identical(jax.pmap(shift, devices=devices)(x), reference.shift(x))


def test_gradient_under_pmap_with_a_sum_over_devices(reference, rng, devices):
    x, g = whole_numbers(rng, 2, 4, 3, 4, 9)

    def gradient(x, g):
        local = jax.grad(lambda x: (g * shift(x)).sum())(x)
        return jax.lax.psum(local, "batch")

    total = jax.pmap(gradient, "batch", devices=devices)(x, g)
    expected = reference.spread(g, reference.table(9, 3), x.shape).sum(0)
    for one in np.asarray(total):
        assert_identical(one, expected)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_with_its_gradient(reference, rng, devices, check_vma):
    x, g = whole_numbers(rng, 2, 8, 3, 4, 9)
    spec = PartitionSpec("batch")

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=Mesh(np.array(devices), ("batch",)),
        in_specs=(spec, spec),
        out_specs=(spec, spec),
        check_vma=check_vma,
    )
    def both(x, g):
        y, pull = jax.vjp(functools.partial(shift, stride=2), x)
        return y, pull(g[:, ::2, ::2])[0]

    y, dx = both(x, g)
    assert_identical(y, reference.shift(x, stride=2))
    table = reference.table(9, 3)
    assert_identical(dx, reference.spread(g[:, ::2, ::2], table, x.shape, 2))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_jit_keeps_a_sharded_batch_sharded(reference, rng, devices, axis_type):
    mesh = jax.make_mesh((4,), ("batch",), (axis_type,), devices=devices)
    sharding = NamedSharding(mesh, PartitionSpec("batch", None, None, None))
    x = numbers(rng, (8, 5, 4, 9), "float32")
    y = jax.jit(shift)(jax.device_put(x, sharding))
    assert_identical(y, reference.shift(x))
    assert y.sharding.is_equivalent_to(sharding, y.ndim)


def program(lowering):
    """Returns the same program, but for the lowering asked for."""

    def moved(x):
        return displace(x, displacements(18), lowering=lowering)

    return jax.jit(moved)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_each_platform_gets_its_default_lowering_from_any_machine(platform):
    x = jnp.zeros((2, 8, 8, 18))
    default, *lowerings = (
        program(name).trace(x).lower(lowering_platforms=(platform,)).as_text()
        for name in (None, *LOWERINGS)
    )
    expected = DEFAULT_LOWERING.get(platform, "select")
    assert [name for name, text in zip(LOWERINGS, lowerings, strict=True)
            if text == default] == [expected]  # fmt: skip


def test_export_for_any_batch_and_platform(reference, rng):
    (batch,) = export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, 6, 5, 20), jnp.float32)
    operation = jax.jit(functools.partial(shift, stride=2))
    exported = export.export(operation, platforms=["cpu", "tpu", "cuda"])(shape)
    assert [str(n) for n in exported.out_avals[0].shape] == ["batch", "3", "3", "20"]
    for n in (1, 3):
        x, g = whole_numbers(rng, n, 6, 5, 20), whole_numbers(rng, n, 3, 3, 20)
        y, dx = with_gradient(exported.call, x, g)
        assert_identical(y, reference.shift(x, stride=2))
        table = reference.table(20, 3)
        assert_identical(dx, reference.spread(g, table, x.shape, 2))


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


def test_an_unknown_lowering_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="'gahter': did you mean 'gather'"):
        displace(X, [(0, 0)] * 9, lowering="gahter")
