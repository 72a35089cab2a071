"""Products of pixels and averages of windows: values, derivatives, and programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from shiftjax.fast.pixels import average_pool, product_of_pixels
from tests.shiftjax.conftest import whole_numbers

PIXELS = (((3,), (0,)), ((), ()))


def product(x, kernel):
    return product_of_pixels(x, kernel, PIXELS)


def gradients(x, kernel, g):
    """The derivatives by definition, pixel by pixel."""
    dx, d_kernel = np.zeros_like(x), np.zeros_like(kernel)
    for pixel in np.ndindex(x.shape[:3]):
        dx[pixel] = kernel @ g[pixel]
        d_kernel += np.outer(x[pixel], g[pixel])
    return dx, d_kernel


@pytest.mark.parametrize("size", [(2, 3, 5), (1, 1, 1), (0, 3, 5)])
def test_value_and_gradients(rng, size):
    x, kernel, g = (whole_numbers(rng, *n) for n in ((*size, 7), (7, 4), (*size, 4)))
    y, pull = jax.vjp(product, x, kernel)
    np.testing.assert_array_equal(y, np.asarray(x) @ np.asarray(kernel))
    arrays = map(np.asarray, (x, kernel, g))
    for found, expected in zip(pull(g), gradients(*arrays), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_forward_mode_and_batches_of_kernels(rng):
    x, dx = whole_numbers(rng, 2, 3, 5, 7), whole_numbers(rng, 2, 3, 5, 7)
    kernels, d_kernels = whole_numbers(rng, 3, 7, 4), whole_numbers(rng, 3, 7, 4)

    def both(kernel, d_kernel):
        return jax.jvp(product, (x, kernel), (dx, d_kernel))

    y, dy = jax.vmap(both)(kernels, d_kernels)
    for i in range(3):
        np.testing.assert_array_equal(y[i], np.asarray(x) @ np.asarray(kernels[i]))
        first, second = (dx, kernels[i]), (x, d_kernels[i])
        expected = sum(np.asarray(a) @ np.asarray(b) for a, b in (first, second))
        np.testing.assert_array_equal(dy[i], expected)


@pytest.mark.parametrize(("arguments", "products"), [((0,), 2), ((1,), 2), ((0, 1), 3)])
def test_a_frozen_kernel_or_input_costs_no_product(arguments, products):
    shapes = [jax.ShapeDtypeStruct(n, jnp.float32) for n in ((2, 3, 5, 7), (7, 4))]
    gradient = jax.jit(jax.grad(lambda *a: (product(*a) ** 2).sum(), arguments))
    assert gradient.lower(*shapes).as_text().count("dot_general") == products


@pytest.mark.parametrize(
    ("policy", "products"), [("dots_saveable", 3), ("nothing_saveable", 4)]
)
def test_policies_of_rematerialization_save_products(policy, products):
    shapes = [jax.ShapeDtypeStruct(n, jnp.float32) for n in ((2, 3, 5, 7), (7, 4))]
    saved = getattr(jax.checkpoint_policies, policy)
    loss = jax.checkpoint(lambda *a: jnp.sin(jnp.sin(product(*a))).sum(), policy=saved)
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))
    assert gradient.lower(*shapes).as_text().count("dot_general") == products


@pytest.mark.parametrize("split", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_pixels_on_explicit_axes(rng, devices, split):
    names = ("rows", "columns")
    mesh = jax.make_mesh((2, 2), names, (AxisType.Explicit,) * 2, devices=devices)
    x, kernel = whole_numbers(rng, 4, 8, 12, 7), whole_numbers(rng, 7, 4)
    g = whole_numbers(rng, 4, 8, 12, 4)
    expected = jax.vjp(product, x, kernel)[1](g)
    spec = [None] * 4
    for axis, name in zip(split, names, strict=False):
        spec[axis] = name
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))

        @jax.jit
        def pulled(x, kernel, g):
            return jax.vjp(product, x, kernel)[1](g)

        found = pulled(*jax.device_put((x,), sharding), kernel,
                       *jax.device_put((g,), sharding))  # fmt: skip
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def kernel_gradient(x, kernel, g):
    return jax.vjp(functools.partial(product, jax.nn.relu(x)), kernel)[1](g)[0]


def test_a_cpu_transposes_no_input(rng):
    """Else the transposition takes ten times as long as the product."""
    arrays = [whole_numbers(rng, *n) for n in ((2, 8, 8, 16), (16, 24), (2, 8, 8, 24))]
    text = jax.jit(kernel_gradient).lower(*arrays).compile().as_text()
    assert "dot(" in text
    assert "f32[16,128]" not in text


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_keep_the_axes(platform):
    """So height and width can be spread over devices."""
    shapes = [(2, 8, 8, 16), (16, 24), (2, 8, 8, 24)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    traced = jax.jit(kernel_gradient).trace(*arrays)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "dot_general" in text
    assert "reshape" not in text


@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("size", [(2, 5, 6), (1, 1, 1), (1, 8, 7), (0, 4, 4)])
def test_average_pool_and_its_gradient(rng, size, strides):
    batch, height, width = size
    x = rng.normal(size=(*size, 3))
    out = np.zeros((batch, -(-height // strides), -(-width // strides), 3))
    g, dx = rng.normal(size=out.shape), np.zeros_like(x)
    for i, j in np.ndindex(out.shape[1:3]):
        rows = slice(max(i * strides - 1, 0), i * strides + 2)
        columns = slice(max(j * strides - 1, 0), j * strides + 2)
        out[:, i, j] = x[:, rows, columns].sum((1, 2)) / 9
        dx[:, rows, columns] += g[:, None, None, i, j] / 9
    with jax.enable_x64(True):
        y, pull = jax.vjp(lambda x: average_pool(x, strides), jnp.asarray(x))
        np.testing.assert_allclose(y, out, atol=1e-15)
        np.testing.assert_allclose(pull(jnp.asarray(g))[0], dx, atol=1e-15)


@pytest.mark.parametrize(("platform", "windows"), [("cpu", 2), ("tpu", 1), ("cuda", 1)])
def test_the_gradient_of_a_pool_is_in_turns_on_a_cpu(platform, windows):
    x = jax.ShapeDtypeStruct((2, 8, 8, 16), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x: (average_pool(x, 2) ** 2).sum()))
    text = gradient.trace(x).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("reduce_window") == 1 + windows
