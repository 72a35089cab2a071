"""The networks from images to images: their cost, and their numbers in NumPy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax import InputError, create_model, list_models, summarize
from shiftjax.instancenorm import InstanceNorm
from shiftjax.models.stylizer import VARIANTS, StyleConv, StyleNet
from shiftjax.module import SHARED, Unit

pytestmark = pytest.mark.usefixtures("quick")

FLOAT64 = 1e-11  # sixteen layers, of which each loses some units in the last place
RECORDED = ["instance_stats"]

# Windows of the layers, at the size they are computed at for a picture of 256 x 256.
PLAIN = [
    (81 * 3 * 32, 256),
    (49 * 32 * 64, 128),
    (9 * 64 * 128, 64),
    (10 * 9 * 128 * 128, 64),
    (25 * 128 * 64, 128),
    (49 * 64 * 32, 256),
    (81 * 32 * 3, 256),
]
SHIFTED = [
    PLAIN[0],
    (32 * 64, 128),
    (64 * 128, 64),
    (10 * 128 * 128, 64),
    (128 * 64, 128),
    *PLAIN[-2:],
]
# Published params; multiply-adds of the convolutions.
COSTS = {
    name: (params, sum(kernel * size**2 for kernel, size in layers))
    for name, params, layers in (
        ("stylizer", 1_974_147, PLAIN),
        ("shift_stylizer", 302_979, SHIFTED),
    )
}


def instance_norm(params, x, given=None):
    """For every picture and channel by itself."""
    out = np.empty_like(x)
    for n in range(x.shape[0]):
        for c in range(x.shape[3]):
            pixels = x[n, :, :, c].ravel()
            mean = sum(pixels) / len(pixels)
            var = sum((p - mean) ** 2 for p in pixels) / len(pixels)
            if given is not None:
                mean, var = given["mean"][0, c], given["var"][0, c]
            y = (x[n, :, :, c] - mean) / np.sqrt(var + 1e-5)
            out[n, :, :, c] = params["scale"][c] * y + params["bias"][c]
    return out


def layer(reference, params, x, stride=1, shift=0):
    """Shift and 1x1 convolution, or a convolution padded by reflection; the norm."""
    kernel = params["conv"]["kernel"]
    if shift:
        y = reference.conv(reference.shift(x, shift), kernel, stride)
    else:
        half = len(kernel) // 2
        inside = slice(half, -half)
        edges = (0, 0), (half, half), (half, half), (0, 0)
        y = reference.conv(np.pad(x, edges, "reflect"), kernel)[:, inside, inside]
        y = y[:, ::stride, ::stride]
    y = y + params["conv"]["bias"]
    return instance_norm(params["norm"], y) if "norm" in params else y


def paint(reference, params, x, shifted):
    """The network, for heights and widths that 4 divides."""
    apply, relu = functools.partial(layer, reference), functools.partial(np.maximum, 0)
    twice = functools.partial(np.kron, b=np.ones((1, 2, 2, 1)))
    seven, five, three = (7, 5, 3) if shifted else (0, 0, 0)
    x = relu(apply(params["conv1"], x))
    x = relu(apply(params["conv2"], x, 2, seven))
    x = relu(apply(params["conv3"], x, 2, three))
    for name in sorted(name for name in params if name.startswith("block")):
        y = relu(apply(params[name]["conv1"], x, 1, three))
        x = x + apply(params[name]["conv2"], y, 1, three)
    x = relu(apply(params["up1"], twice(x), 1, five))
    x = relu(apply(params["up2"], twice(x)))
    return apply(params["out"], x)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_network_costs_what_is_published(name):
    assert name in list_models()
    summary = summarize(name)
    assert (summary.params, summary.macs) == COSTS[name]
    assert summary.image == (256, 256, 3)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.usefixtures("float64")
def test_a_network_equals_numpy(reference, rng, randomize, assert_trees_close, name):
    model = create_model(name, blocks=2)
    images = rng.normal(size=(2, 16, 12, 3))
    variables = randomize(model, images)
    expected = paint(reference, variables["params"], images, model.shifted)
    actual = jax.jit(model.apply)(variables, images)
    assert actual.dtype == np.float64
    assert_trees_close(actual, expected, FLOAT64)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.usefixtures("float64")
def test_a_size_that_4_does_not_divide_is_filled_by_reflection(rng, randomize, name):
    model = create_model(name, blocks=1)
    images = rng.normal(size=(1, 13, 10, 3))
    filled = np.pad(images, ((0, 0), (0, 3), (0, 2), (0, 0)), "reflect")
    variables = randomize(model, images)
    paint = jax.jit(model.apply)
    actual, expected = (paint(variables, x) for x in (images, filled))
    np.testing.assert_allclose(actual, expected[:, :13, :10], rtol=1e-12)


# Layers on a coarser grid: kernel size, upsampling, channels, features, height, width.
COARSE = {
    "blocks of 2x2": (9, 1, 3, 8, 12, 14),
    "blocks of 4x4": (9, 1, 9, 3, 13, 10),
    "larger than the image": (7, 1, 2, 8, 5, 6),
    "upsampled 3x3": (3, 2, 2, 3, 3, 4),
    "upsampled 5x5": (5, 2, 2, 3, 5, 6),
    "upsampled 7x7": (7, 2, 3, 2, 7, 9),
    "upsampled 9x9": (9, 2, 2, 2, 9, 10),
    "upsampled, smaller than its window": (7, 2, 2, 2, 4, 9),
}


@pytest.mark.parametrize("case", COARSE)
@pytest.mark.usefixtures("float64")
def test_a_layer_on_a_coarser_grid_equals_numpy(reference, rng, randomize, case):
    size, times, channels, features, *extent = COARSE[case]
    x = rng.normal(size=(2, *extent, channels))
    conv = StyleConv(features, size, upsampling=times, implementation="cpu")
    variables = randomize(conv, x)
    enlarged = np.kron(x, np.ones((1, times, times, 1)))
    expected = layer(reference, variables["params"], enlarged)
    actual = jax.jit(conv.apply)(variables, x)
    np.testing.assert_allclose(actual, expected, atol=1e-11)


@pytest.mark.parametrize("case", COARSE)
@pytest.mark.usefixtures("float64")
def test_gradients_on_a_coarser_grid_are_those_of_the_reference(rng, randomize, case):
    size, times, channels, features, *extent = COARSE[case]
    x = rng.normal(size=(2, *extent, channels))
    shape = (2, *(times * n for n in extent), features)
    weights, conv = rng.normal(size=shape), StyleConv(features, size, upsampling=times)
    variables = randomize(conv, x)

    def gradients(name):
        net = conv.clone(implementation=name)
        loss = lambda v, x: (weights * net.apply(v, x)).sum()  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1)))(variables, x)

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-10),
        gradients("cpu"),
        gradients("reference"),
    )


def test_the_coarser_grid_has_fewer_products():
    """A third of them where pixels are repeated, and the reference has them all."""
    x = jnp.zeros((1, 64, 64, 16))
    conv = StyleConv(8, 7, upsampling=2)
    variables = jax.eval_shape(conv.init, jax.random.key(0), x)

    def flops(name):
        apply = jax.jit(conv.clone(implementation=name).apply)
        return apply.lower(variables, x).cost_analysis()["flops"]

    assert flops("cpu") < 0.45 * flops("reference")
    assert flops(None) == flops("cpu")


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (64, 1), (33, 130)])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_size_comes_back(name, size):
    """In training dtypes too: float32 from bfloat16."""
    model = create_model(name, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((3, *size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert set(variables) == {"params"}
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out = jax.eval_shape(model.apply, variables, images)
    assert (out.shape, out.dtype) == (images.shape, jnp.float32)


def test_gradients_in_bfloat16_are_finite(rng):
    model = create_model("shift_stylizer", dtype=jnp.bfloat16, blocks=1)
    images = rng.normal(size=(1, 8, 8, 3)).astype("float32")
    variables = jax.jit(model.init)(jax.random.key(0), images)

    @jax.jit
    @jax.grad
    def gradient(params):
        return ((model.apply({"params": params}, images) - images) ** 2).mean()

    found = gradient(variables["params"])
    for leaf in jax.tree.leaves(found):
        assert jnp.isfinite(leaf).all()
    for part in ("conv1", "conv2", "block1", "up1", "out"):
        assert jnp.linalg.norm(jax.tree.leaves(found[part])[-1]) > 0


def test_the_fields_of_a_network_reach_every_unit_and_norm():
    fields = {"epsilon": 1e-3, "dtype": jnp.bfloat16, "param_dtype": jnp.float16}
    assert set(fields) <= set(SHARED)
    modules = []

    def collect(call, args, kwargs, context):
        modules.append(context.module)
        return call(*args, **kwargs)

    model, images = StyleNet(**fields), jnp.zeros((1, 8, 8, 3))
    with nn.intercept_methods(collect):
        jax.eval_shape(model.init, jax.random.key(0), images)
    found = [m for m in modules if isinstance(m, Unit | InstanceNorm)]
    assert len({m.path for m in found if isinstance(m, InstanceNorm)}) == 15
    for module in found:
        assert {name: getattr(module, name) for name in fields} == fields


# Instance norm.


@pytest.mark.usefixtures("float64")
def test_a_norm_equals_numpy(rng, randomize):
    norm, x = InstanceNorm(), 3 + 2 * rng.normal(size=(2, 5, 4, 3))
    variables = randomize(norm, x)
    y, recorded = norm.apply(variables, x, mutable=RECORDED)
    expected = instance_norm(variables["params"], x)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    np.testing.assert_array_equal(y, norm.apply(variables, x))
    stats = recorded["instance_stats"]
    np.testing.assert_allclose(stats["mean"], x.mean((1, 2)), rtol=1e-12)
    np.testing.assert_allclose(stats["var"], x.var((1, 2)), rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_given_statistics_are_used_and_own_ones_recorded(rng, randomize):
    norm, x = InstanceNorm(), rng.normal(size=(2, 5, 4, 3))
    variables = randomize(norm, x)
    given = {"mean": rng.normal(size=(1, 3)), "var": rng.uniform(1, 2, (1, 3))}
    both = variables | {"instance_stats": given}
    y, recorded = norm.apply(both, x, mutable=RECORDED)
    expected = instance_norm(variables["params"], x, given)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    np.testing.assert_array_equal(y, norm.apply(both, x))
    own = recorded["instance_stats"]["mean"]
    np.testing.assert_allclose(own, x.mean((1, 2)), rtol=1e-12)


def test_statistics_of_bfloat16_are_those_of_float32(rng):
    """A mean of 100 and a deviation of 1, of which bfloat16 keeps three bits."""
    x = jnp.asarray(100 + rng.normal(size=(1, 64, 64, 1)), jnp.bfloat16)
    norm = InstanceNorm(dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x)
    y, recorded = norm.apply(variables, x, mutable=RECORDED)
    exact = np.asarray(x, np.float64)
    assert y.dtype == jnp.bfloat16
    stats = recorded["instance_stats"]
    assert {s.dtype for s in jax.tree.leaves(stats)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(stats["mean"], exact.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], exact.var((1, 2)), rtol=1e-3)


IMAGES = jnp.zeros((1, 8, 8, 3))
INVALID = {
    "no blocks": (StyleNet(blocks=0), IMAGES, "blocks=0"),
    "implementation": (
        StyleNet(implementation="tup"),
        IMAGES,
        "'tup': did you mean.* 'tpu'",
    ),
    "bytes": (StyleNet(), IMAGES.astype(jnp.uint8), r"uint8 \[1, 8, 8, 3\]"),
    "one image": (StyleNet(), IMAGES[0], r"float32 \[8, 8, 3\]"),
    "features": (StyleConv(0, shifted=True), IMAGES, "features=0"),
    "even window": (StyleConv(8, 4), IMAGES, "kernel_size=4: it must be odd"),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_option_or_input_is_named_with_its_value(name):
    model, images, message = INVALID[name]
    with pytest.raises(InputError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), images)


def test_images_of_other_channels_than_the_params_are_named():
    variables = jax.eval_shape(StyleNet().init, jax.random.key(0), IMAGES)
    with pytest.raises(InputError, match=r"1 channels.* 3"):
        jax.eval_shape(StyleNet().apply, variables, IMAGES[..., :1])
