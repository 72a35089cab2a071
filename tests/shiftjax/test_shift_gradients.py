"""The derivatives of the operation: exact, of any order and in both modes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax import displace, shift
from shiftjax.lowerings import LOWERINGS
from tests.shiftjax.conftest import SHIFT_CASES as CASES
from tests.shiftjax.conftest import assert_identical, whole_numbers, with_gradient

PLATFORMS = ["cpu", "cuda", "rocm", "tpu"]


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
