"""The operation under vmap, pmap, shard_map, jit and export."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import jet
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from shiftjax import displace, displacements, shift
from shiftjax.lowerings import DEFAULT_LOWERING, LOWERINGS
from tests.shiftjax.conftest import (
    assert_identical,
    numbers,
    whole_numbers,
    with_gradient,
)

PLATFORMS = ["cpu", "cuda", "rocm", "tpu"]


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


@pytest.mark.usefixtures("float64")
def test_taylor_series_by_jet(reference, rng):
    """Derivatives of y = s^3, where s is the shift of x + v t + w t^2 / 2.

    By hand, with s1 and s2 for the derivatives of s (the third is 0): 3 s^2 s1,
    6 s s1^2 + 3 s^2 s2, and 6 s1^3 + 18 s s1 s2.
    """
    x, v, w = (rng.normal(size=(4, 5, 9)) for _ in range(3))
    y, series = jet.jet(lambda x: shift(x) ** 3, (x,), ((v, w, np.zeros_like(x)),))
    s, s1, s2 = (reference.shift(a) for a in (x, v, w))
    np.testing.assert_allclose(y, s**3, rtol=1e-12)
    derivatives = (
        3 * s**2 * s1,
        6 * s * s1**2 + 3 * s**2 * s2,
        6 * s1**3 + 18 * s * s1 * s2,
    )
    for actual, expected in zip(series, derivatives, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


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


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("axes", "stride", "border", "split", "kept"),
    [
        (2, 1, "zeros", (None, "rows", "columns", None), (None, "rows", "columns")),
        (2, 2, "zeros", ("rows", "columns", None, None), ("rows", "columns", None)),
        (2, 5, "zeros", (None, None, ("rows", "columns"), None), (None, None, None)),
        (2, 1, "edge", (None, "rows", None, None), (None, None, None)),
        (1, 1, "zeros", (None, "rows", "columns", None), (None, "rows", "columns")),
        (3, 1, "zeros", ("rows", "columns", None, None), (None, None, None)),
    ],
)
def test_pixels_on_explicit_axes(rng, devices, axes, stride, border, split, kept):
    """Value and gradient are those of one device; the result stays split if it can."""
    mesh = jax.make_mesh(
        (2, 2), ("rows", "columns"), (AxisType.Explicit,) * 2, devices=devices
    )
    table = rng.integers(-3, 4, (5, axes))
    operation = functools.partial(displace, table=table, stride=stride, border=border)
    x = whole_numbers(rng, 4, 8, 12, 5)
    g = whole_numbers(rng, *operation(x).shape)
    y, dx = with_gradient(operation, x, g)
    with jax.set_mesh(mesh):

        @jax.jit
        def both(x, g):
            z, pull = jax.vjp(operation, x)
            return z, *pull(jax.sharding.reshard(g, jax.typeof(z).sharding.spec))

        parts = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*split)))
        found, slope = both(parts, g)
    assert_identical(found, y)
    assert_identical(slope, dx)
    assert found.sharding.spec[:3] == kept


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


def test_a_derivative_is_applied_to_an_array_of_numpy(rng):
    """As those of JAX's own operations are, outside of jit."""
    x, g = (rng.normal(size=(1, 4, 5, 9)).astype(np.float32) for _ in range(2))
    wanted = jax.jit(jax.vjp(shift, jnp.asarray(x))[1])(g)[0]
    np.testing.assert_array_equal(jax.vjp(shift, x)[1](g)[0], wanted)
    np.testing.assert_array_equal(jax.linearize(shift, x)[1](g), shift(g))
    transposed = jax.linear_transpose(shift, x)
    np.testing.assert_array_equal(transposed(g)[0], wanted)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("stride", [1, 2])
def test_no_lowering_needs_rank_promotion(lowering, stride):
    x, table = jnp.ones((2, 5, 4, 9)), displacements(9)
    with jax.numpy_rank_promotion("raise"):
        y = displace(x, table, stride=stride, lowering=lowering)
        assert y.shape == (2, 5 // stride + stride - 1, 4 // stride, 9)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("x64", [False, True])
def test_no_lowering_needs_type_promotion(reference, lowering, x64):
    x, table = np.arange(2 * 3 * 9, dtype=np.float32).reshape(2, 3, 9), displacements(9)
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(x64):
        y = displace(x, table, lowering=lowering)
    np.testing.assert_array_equal(y, reference.displace(x, table))
