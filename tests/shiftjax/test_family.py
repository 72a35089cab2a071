"""The family of the shift against loops, its gradients against differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax import InputError, displace
from shiftjax.family import (
    ActiveShift,
    SparseShift,
    axial,
    four_connected,
    interpolate,
    offset_penalty,
    temporal_shift,
)

pytestmark = pytest.mark.usefixtures("quick")


def at(x: np.ndarray, h: int, w: int, c: int) -> float:
    """A pixel, zero outside."""
    height, width, _ = x.shape
    return x[h, w, c] if 0 <= h < height and 0 <= w < width else 0.0


def bilinear(x: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Interpolation between the four pixels around each place, by loops."""
    out = np.zeros_like(x)
    for h, w, c in np.ndindex(x.shape):
        dy, dx = offsets[c]
        top, left = int(np.floor(h + dy)), int(np.floor(w + dx))
        for i in (top, top + 1):
            for j in (left, left + 1):
                share = (1 - abs(h + dy - i)) * (1 - abs(w + dx - j))
                out[h, w, c] += share * at(x, i, j, c)
    return out


# --- tables -------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 4, 5, 13, 20])
def test_the_centre_and_its_four_neighbours_have_equal_shares(channels):
    table = four_connected(channels, dilation=2)
    assert table.shape == (channels, 2)
    share = channels // 5
    for step in [(-2, 0), (2, 0), (0, -2), (0, 2)]:
        assert (table == step).all(1).sum() == share
    assert (table == 0).all(1).sum() == channels - 4 * share


@pytest.mark.parametrize(
    ("channels", "kernel_size"), [(10, 3), (15, 5), (7, 5), (2, 3)]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_axial_shifts_are_those_of_as_mlp(channels, kernel_size, axis, rng):
    """Its code pads, cuts into chunks, rolls chunk i by i - K // 2, and crops."""
    x = rng.normal(size=(6, 7, channels)).astype(np.float32)
    pad = kernel_size // 2
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    size = -(-channels // kernel_size)
    chunks = [padded[..., i : i + size] for i in range(0, channels, size)]
    rolled = [np.roll(chunk, i - pad, axis) for i, chunk in enumerate(chunks)]
    wanted = np.concatenate(rolled, -1)[pad : pad + 6, pad : pad + 7]
    table = axial(channels, kernel_size, axis=axis)
    np.testing.assert_array_equal(displace(x, table), wanted)
    assert (axial(channels, kernel_size, axis=axis, dilation=3) == 3 * table).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: four_connected(0), "channels=0"),
        (lambda: four_connected(5, dilation=0), "dilation=0"),
        (lambda: axial(8, 4, axis=0), "kernel_size=4: it must be odd"),
        (lambda: axial(8, 3, axis=2), r"axis=2: it must be 0 \(height\) or 1"),
        (lambda: temporal_shift(np.ones((4, 4, 8))), "must be .*time, height"),
        (lambda: temporal_shift(np.ones((2, 4, 4, 8)), fraction=0.6), "fraction=0.6"),
        (lambda: interpolate(np.ones((4, 4, 3)), np.ones((2, 2))), r"must be \[3, 2\]"),
        (lambda: interpolate(np.ones((4, 4, 3), int), np.ones((3, 2))), "only floats"),
        (
            lambda: interpolate(np.ones((4, 4, 3)), np.ones((3, 2)), stride=0),
            "stride=0",
        ),
        (
            lambda: SparseShift(strides=1.5).init(
                jax.random.key(0), np.ones((4, 4, 3))
            ),
            "strides=1.5: it must be an integer of at least 1",
        ),
        (lambda: ActiveShift().init(jax.random.key(0), np.ones(())), r"shape \[\]"),
        (lambda: SparseShift().init(jax.random.key(0), np.ones(3)), r"shape \[3\]"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


# --- time ---------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("channels", "moved"), [(16, 2), (9, 1), (7, 0)])
def test_frames_come_from_before_and_after(channels, moved, causal, rng):
    x = rng.normal(size=(2, 5, 3, 4, channels)).astype(np.float32)
    wanted = x.copy()
    before = slice(0, moved) if causal else slice(moved, 2 * moved)
    wanted[:, 1:, ..., before] = x[:, :-1, ..., before]
    wanted[:, 0, ..., before] = 0
    if not causal:
        wanted[:, :-1, ..., :moved] = x[:, 1:, ..., :moved]
        wanted[:, -1, ..., :moved] = 0
    np.testing.assert_array_equal(temporal_shift(x, causal=causal), wanted)
    np.testing.assert_array_equal(temporal_shift(x[0], causal=causal), wanted[0])


def test_a_causal_shift_does_not_know_the_future(rng):
    x = rng.normal(size=(4, 2, 2, 8)).astype(np.float32)
    changed = x.copy()
    changed[3] += 1
    both = [np.asarray(temporal_shift(v, causal=True)) for v in (x, changed)]
    np.testing.assert_array_equal(both[0][:3], both[1][:3])


@pytest.mark.parametrize(
    ("channels", "fraction", "moved"), [(100, 0.29, 29), (49, 1 / 49, 1), (7, 0.125, 0)]
)
def test_a_fraction_of_channels_is_not_one_short(channels, fraction, moved):
    """Also where its product with the number of channels is just below a whole one."""
    frames = np.ones((2, 1, 1, channels), np.float32)
    kept = np.asarray(temporal_shift(frames, fraction=fraction))[0, 0, 0]
    assert (kept == 0).sum() == moved  # those from before the first frame


# --- learned displacements ----------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 7), (1, 6), (4, 1)])
def test_interpolation_is_bilinear_with_zeros_around(size, rng):
    x = rng.normal(size=(*size, 9))
    offsets = rng.uniform(-3, 3, (9, 2))
    offsets[0], offsets[1], offsets[2] = (40.3, 0), (-1e9, 0.5), (0, -float(size[1]))
    wanted = bilinear(x, offsets)
    got = jax.jit(interpolate)(x.astype(np.float32), offsets.astype(np.float32))
    # float32 sums of four products
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    batch = jnp.asarray(np.stack([x, 2 * x])[None], jnp.float32)
    again = jax.vmap(interpolate, (0, None))(batch, offsets.astype(np.float32))
    np.testing.assert_allclose(again[0, 1], 2 * wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("size", "stride"), [((5, 7), 2), ((6, 4), 3), ((1, 3), 2)])
def test_a_stride_keeps_every_strideth_row_and_column(size, stride, rng):
    x = rng.normal(size=(*size, 4)).astype(np.float32)
    offsets = rng.uniform(-2, 2, (4, 2)).astype(np.float32)
    variables = {"params": {"offsets": offsets}}
    kept = bilinear(x, offsets)[::stride, ::stride]
    # float32 sums of four products
    got = jax.jit(ActiveShift(strides=stride).apply)(variables, x)
    np.testing.assert_allclose(got, kept, rtol=1e-5, atol=1e-5)
    whole = displace(x, np.round(offsets).astype(int), stride=stride)
    got = jax.jit(SparseShift(strides=stride).apply)(variables, x)
    np.testing.assert_array_equal(got, whole)


@pytest.mark.parametrize("kind", [ActiveShift, SparseShift])
def test_the_gradients_of_a_stride_are_those_of_the_pixels_it_keeps(kind, rng):
    x = rng.normal(size=(2, 5, 6, 3)).astype(np.float32)
    offsets = rng.uniform(-2, 2, (3, 2)).astype(np.float32)
    g = rng.normal(size=(2, 3, 3, 3)).astype(np.float32)

    def loss(x, offsets, strides):
        y = kind(strides=strides).apply({"params": {"offsets": offsets}}, x)
        step = 2 // strides
        return (y[:, ::step, ::step] * g).sum()

    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    ours, wanted = (gradient(x, offsets, strides) for strides in (2, 1))
    for got, expected in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_stride_computes_no_pixel_that_it_drops():
    """Half of the rows, then half of their columns: 3 of 8 multiply-adds are left."""
    x, offsets = jnp.ones((16, 16, 4)), jnp.ones((4, 2))
    flops = [
        jax.jit(functools.partial(interpolate, stride=stride))
        .lower(x, offsets)
        .cost_analysis()["flops"]
        for stride in (1, 2)
    ]
    assert flops[1] < 0.5 * flops[0]


def test_whole_displacements_are_a_shift_bit_for_bit(rng):
    x = rng.normal(size=(2, 6, 5, 12)).astype(np.float32)
    table = rng.integers(-7, 8, (12, 2))
    wanted = displace(x, table)
    np.testing.assert_array_equal(interpolate(x, table.astype(np.float32)), wanted)
    low = x.astype(jnp.bfloat16)
    got = interpolate(low, table.astype(np.float32))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, displace(low, table))


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(apply, x, offsets, g):
    """Returns the output, and the gradients of its product with g."""
    y, pull = jax.vjp(apply, x, offsets)
    return y, pull(g)


def loss_of(x: jax.Array, offsets: jax.Array, g: np.ndarray) -> jax.Array:
    return (interpolate(x, offsets) * g).sum()


@pytest.mark.usefixtures("float64")
def test_gradients_are_those_of_finite_differences(rng):
    x = rng.normal(size=(4, 5, 6))
    offsets = rng.uniform(-2, 2, (6, 2))
    g = rng.normal(size=x.shape)
    for argument in (0, 1):
        values = [x, offsets]
        gradient = np.asarray(jax.jit(jax.grad(loss_of, argument))(*values, g))
        for index in np.ndindex(values[argument].shape):
            ends = []
            for sign in (1, -1):
                moved = [value.copy() for value in values]
                moved[argument][index] += sign * 1e-6
                ends.append((bilinear(*moved) * g).sum())
            difference = (ends[0] - ends[1]) / 2e-6
            assert gradient[index] == pytest.approx(difference, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("offsets_dtype", [jnp.float32, jnp.bfloat16])
def test_low_precision_is_rounded_once_at_the_end(dtype, offsets_dtype, rng):
    """Sums over the pixels of a picture do not lose what is small beside them."""
    x = jnp.asarray(rng.uniform(size=(4, 40, 41, 3)), dtype)
    offsets = jnp.asarray(rng.uniform(-2, 2, (3, 2)), offsets_dtype)
    wide, real = x.astype(jnp.float32), offsets.astype(jnp.float32)
    got = interpolate(x, offsets)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, interpolate(wide, real).astype(dtype))

    slope = jax.jit(jax.grad(loss_of, 1))
    g = np.ones(x.shape, np.float32)
    gradient = slope(x, offsets, g)
    assert gradient.dtype == offsets_dtype
    wanted = np.asarray(slope(wide, real, g))
    rtol = 1e-5 if offsets_dtype == jnp.float32 else 2**-7
    np.testing.assert_allclose(
        gradient.astype(jnp.float32), wanted, rtol, rtol * np.abs(wanted).max()
    )


def test_each_of_a_batch_can_have_its_own_displacements(rng):
    x = rng.normal(size=(3, 4, 5, 2)).astype(np.float32)
    offsets = rng.uniform(-2, 2, (3, 2, 2)).astype(np.float32)

    def sparse(x, offsets):
        return SparseShift().apply({"params": {"offsets": offsets}}, x)

    moved = jax.jit(jax.vmap(interpolate))(x, offsets)
    whole = jax.jit(jax.vmap(sparse))(x, offsets)
    for i in range(3):
        np.testing.assert_allclose(moved[i], bilinear(x[i], offsets[i]), 1e-5, 1e-5)
        table = np.round(offsets[i]).astype(int)
        np.testing.assert_array_equal(whole[i], displace(x[i], table))


def test_an_active_shift_learns_where_to_look(rng):
    """The picture is moved by (1, -1): descent on the offsets finds it again."""
    x = rng.normal(size=(12, 12, 4))
    for _ in range(3):  # smooth, so that the way can be seen from afar
        x = (x + np.roll(x, 1, 0) + np.roll(x, 1, 1) + np.roll(x, (1, 1), (0, 1))) / 4
    x = jnp.asarray(x, jnp.float32)
    wanted = displace(x, [(1, -1)] * 4)
    module = ActiveShift(offsets_init=jax.nn.initializers.zeros)
    params = module.init(jax.random.key(0), x)["params"]

    @jax.jit
    def step(params):
        def loss(params):
            return ((module.apply({"params": params}, x) - wanted) ** 2).sum()

        gradient = jax.grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient)

    for _ in range(200):
        params = step(params)
    np.testing.assert_allclose(params["offsets"], [(1, -1)] * 4, atol=0.05)


def test_offsets_begin_within_a_pixel():
    x = jnp.ones((1, 4, 4, 500))
    for module in (ActiveShift(), SparseShift()):
        offsets = module.init(jax.random.key(0), x)["params"]["offsets"]
        assert offsets.dtype == jnp.float32
        assert -1 <= offsets.min() < -0.9
        assert 0.9 < offsets.max() <= 1


def test_a_sparse_shift_moves_by_whole_pixels_and_learns_real_ones(rng):
    x = rng.normal(size=(2, 5, 6, 7)).astype(np.float32)
    offsets = rng.uniform(-2.4, 2.4, (7, 2)).astype(np.float32)
    g = rng.normal(size=x.shape).astype(np.float32)
    table = np.round(offsets).astype(int)

    def apply(x, offsets):
        return SparseShift().apply({"params": {"offsets": offsets}}, x)

    y, (dx, doffsets) = with_gradients(apply, x, offsets, g)
    np.testing.assert_array_equal(y, displace(x, table))
    np.testing.assert_allclose(dx, displace(g, -table), rtol=1e-6)
    real = jax.jit(jax.grad(loss_of, 1))(x, offsets, g)
    np.testing.assert_allclose(doffsets, real, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_sparse_shift_by_hand():
    """One row 1 2 4 8 and dx = 0.8: it moves by 1, and the slope is that at 0.8."""
    x = jnp.array([1.0, 2.0, 4.0, 8.0]).reshape(1, 4, 1)
    g = jnp.array([1.0, 10.0, 100.0, 1000.0]).reshape(1, 4, 1)
    offsets = jnp.array([[0.0, 0.8]])

    def apply(x, offsets):
        return SparseShift().apply({"params": {"offsets": offsets}}, x)

    y, (dx, doffsets) = with_gradients(apply, x, offsets, g)
    assert y[0, :, 0].tolist() == [2, 4, 8, 0]
    assert dx[0, :, 0].tolist() == [0, 1, 10, 100]
    # Differences to the right: 1, 2, 4, -8.
    assert doffsets[0, 1].item() == 1 + 20 + 400 - 8000
    _, along = jax.jvp(apply, (x, offsets), (jnp.zeros_like(x), jnp.array([[0.0, 1]])))
    assert along[0, :, 0].tolist() == [1, 2, 4, -8]


def test_a_sparse_shift_computes_nothing_but_moves(rng):
    """Numbers that are not finite stay where a shift brings them."""
    x = rng.normal(size=(5, 6, 3)).astype(np.float32)
    x[2, 3], x[0, 1] = np.inf, np.nan
    offsets = np.array([(0.7, -1.2), (0.0, 1.0), (-3e9, 0.4)], np.float32)
    y = SparseShift().apply({"params": {"offsets": offsets}}, x)
    np.testing.assert_array_equal(y, displace(x, [(1, -1), (0, 1), (-9, 0)]))


def test_far_away_is_outside_in_any_precision():
    """257, the width, is no number of bfloat16; 256 would still be inside."""
    x = jnp.ones((1, 257, 2))
    offsets = jnp.array([[0, 1000], [0, -1000]], jnp.bfloat16)
    for module in (ActiveShift(), SparseShift()):
        assert not jax.jit(module.apply)({"params": {"offsets": offsets}}, x).any()


def test_the_penalty_counts_displacements_alone():
    params = {
        "block1": {"shift": {"offsets": jnp.array([[1.5, -2.0], [0.0, 0.25]])}},
        "block2": {"shift": {"offsets": jnp.array([[-1.0, 0.0]])}},
        "head": {"kernel": jnp.full((2, 2), 100.0)},
    }
    assert offset_penalty(params).item() == 4.75
    gradient = jax.grad(offset_penalty)(params)
    assert gradient["block1"]["shift"]["offsets"].tolist()[0] == [1, -1]
    assert not gradient["head"]["kernel"].any()
    assert offset_penalty({"head": params["head"]}).item() == 0


def test_an_infinite_pixel_stays_itself_at_a_whole_displacement():
    """0 * inf is nan, but the pixel beside it has no share in the result."""
    x = jnp.array([1.0, jnp.inf, 3.0, -jnp.inf])[None, :, None]
    slope = jax.jit(jax.jacobian(lambda offsets: interpolate(x, offsets)))
    for dx in (-1.0, 0.0, 1.0, 2.0):
        y = interpolate(x, [(0.0, dx)])
        np.testing.assert_array_equal(y, displace(x, [(0, int(dx))]))
        assert not jnp.isnan(slope(jnp.array([(0.0, dx)]))).any()
    upright = x.swapaxes(0, 1)
    np.testing.assert_array_equal(
        interpolate(upright, [(1.0, 0.0)]), displace(upright, [(1, 0)])
    )


@pytest.mark.parametrize("kind", [ActiveShift, SparseShift])
def test_a_displacement_that_is_no_number_shows(kind):
    """As nan in its channel, so that a run stops; not as a displacement of zero."""
    offsets = jnp.array([(jnp.nan, 0.0), (0.0, jnp.nan), (1.0, 0.0)])
    y = kind().apply({"params": {"offsets": offsets}}, jnp.ones((2, 3, 3, 3)))
    assert jnp.isnan(y[..., :2]).all()
    assert y[0, :, 0, 2].tolist() == [1.0, 1.0, 0.0]
