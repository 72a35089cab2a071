"""Gram matrices and losses, against loops in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax import InputError
from train.style.features import FeatureNet
from train.style.losses import (
    RELATIVE_WEIGHTS,
    Perceptual,
    gram,
    make_loss,
    mean_square,
    style_loss,
)


def gram_by_loops(x):
    batch, height, width, channels = x.shape
    out = np.zeros((batch, channels, channels))
    for n in range(batch):
        for i in range(channels):
            for j in range(channels):
                out[n, i, j] = sum(
                    x[n, h, w, i] * x[n, h, w, j]
                    for h in range(height)
                    for w in range(width)
                )
    return out / (height * width * channels)


def variation_by_loops(x):
    _, height, width, _ = x.shape
    down = [(x[:, h + 1] - x[:, h]) ** 2 for h in range(height - 1)]
    across = [(x[:, :, w + 1] - x[:, :, w]) ** 2 for w in range(width - 1)]
    return np.mean(down) + np.mean(across)


def two_layers(params, images):
    """Features of two sizes; the second sees neighbours."""
    wide = images @ params["wide"]
    return {"wide": wide, "small": (wide**2)[:, ::2, 1::2]}


@pytest.fixture
def net(rng):
    params = {"wide": jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)}
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    return FeatureNet(two_layers, params, "small", ("wide", "small"), mean, std)


@pytest.mark.usefixtures("float64")
def test_gram_matrices_equal_loops(rng):
    x = rng.normal(size=(2, 3, 5, 4))
    np.testing.assert_allclose(gram(x), gram_by_loops(x), rtol=1e-12)


def test_grams_of_bfloat16_are_summed_in_float32(rng):
    """Ten thousand pixels, of which bfloat16 would lose all but the first hundreds."""
    x = jnp.asarray(rng.uniform(1, 2, (1, 100, 100, 2)), jnp.bfloat16)
    found = gram(x)
    assert found.dtype == jnp.float32
    exact = np.einsum("nhwi,nhwj->nij", *[np.asarray(x, np.float64)] * 2) / 2e4
    np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_a_mean_square_by_hand():
    """(1 + 4 + 9 + 0) / 4."""
    value = mean_square(jnp.array([1.0, 2.0, 3.0, 0.0], jnp.bfloat16), jnp.zeros(4))
    assert (float(value), value.dtype) == (3.5, jnp.float32)


@pytest.mark.usefixtures("float64")
def test_the_style_of_a_batch_is_compared_with_one_painting(rng):
    features = {name: rng.normal(size=(3, 4, 4, 2)) for name in ("a", "b", "unused")}
    wanted = {name: rng.normal(size=(1, 2, 2)) for name in ("a", "b")}
    expected = 0
    for name, target in wanted.items():
        grams = gram_by_loops(features[name])
        expected += sum((g - target[0]) ** 2 for g in grams).sum() / (3 * 4)
    np.testing.assert_allclose(style_loss(features, wanted), expected, rtol=1e-12)


def test_the_loss_is_weighted_and_on_normalised_pictures(net, rng):
    painting, pictures, contents = (
        rng.uniform(size=shape).astype("float32")
        for shape in ((1, 6, 8, 3), (2, 4, 4, 3), (2, 4, 4, 3))
    )
    loss = Perceptual(net, 3.0, 70.0, 0.5, content_scale=2.0, style_scales={"wide": 7})
    grams = loss.grams(net.params, painting)
    total, parts = jax.jit(loss.__call__)(net.params, grams, pictures, contents)

    def features(x):
        x = (x - np.array(net.mean)) / np.array(net.std)
        wide = x @ np.asarray(net.params["wide"], np.float64)
        return {"wide": wide, "small": (wide**2)[:, ::2, 1::2]}

    found, wanted, style = map(features, (pictures, contents, painting))
    errors = {
        k: ((gram_by_loops(found[k]) - gram_by_loops(style[k])) ** 2).mean()
        for k in found
    }
    expected = {
        "content": 3 * ((found["small"] - wanted["small"]) ** 2).mean() / 2,
        "style": 70 * (errors["wide"] / 7 + errors["small"]),
        "variation": 0.5 * variation_by_loops(pictures),
    }
    assert set(parts) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5)
    np.testing.assert_allclose(total, sum(expected.values()), rtol=1e-5)


def test_the_best_picture_is_the_painting_itself(net, rng):
    painting = rng.uniform(size=(1, 4, 4, 3)).astype("float32")
    loss = Perceptual(net)
    grams = loss.grams(net.params, painting)

    def value(pictures):
        return loss(net.params, grams, pictures, painting)[0]

    best, worse = (jax.value_and_grad(value)(x) for x in (painting, painting[:, ::-1]))
    for least, more in zip(best, worse, strict=True):  # the loss, its gradient
        assert np.abs(more).max() > 1
        assert np.abs(least).max() < 1e-5 * np.abs(more).max()


def test_the_losses_of_a_network_without_weights_are_relative(net, rng):
    """Features a thousand times larger in one layer change nothing."""
    painting, pictures, contents = (
        jnp.asarray(rng.uniform(size=shape), jnp.float32)
        for shape in ((1, 6, 8, 3), (2, 4, 4, 3), (2, 4, 4, 3))
    )
    x = (np.asarray(painting, np.float64) - np.array(net.mean)) / np.array(net.std)
    wide = x @ np.asarray(net.params["wide"], np.float64)
    found = {"wide": wide, "small": (wide**2)[:, ::2, 1::2]}
    content = (found["small"] ** 2).mean()
    style = {k: 2 * (gram_by_loops(v) ** 2).mean() for k, v in found.items()}
    loss = make_loss(net, painting)
    assert loss.content_scale == pytest.approx(content, rel=6e-3)  # three digits
    assert loss.style_scales == pytest.approx(style, rel=6e-3)

    def nothing(params, images):
        return jax.tree.map(jnp.zeros_like, two_layers(params, images))

    empty = dataclasses.replace(loss, net=dataclasses.replace(net, apply=nothing))
    grams = loss.grams(net.params, painting)
    _, parts = empty(net.params, grams, painting, painting)
    assert float(parts["style"]) == pytest.approx(2, rel=6e-3)

    def large(params, images):
        features = two_layers(params, images)
        return features | {"small": 1000 * features["small"]}

    parts = []
    for one in (net, dataclasses.replace(net, apply=large)):
        loss = make_loss(one, painting)
        grams = loss.grams(one.params, painting)
        parts.append(loss(one.params, grams, pictures, contents)[1])
    for name in ("content", "style"):
        assert float(parts[0][name]) == pytest.approx(float(parts[1][name]), rel=1e-2)


def test_given_weights_and_those_of_the_network_come_first(net, rng):
    painting = jnp.asarray(rng.uniform(size=(1, 4, 4, 3)), jnp.float32)
    known = dataclasses.replace(net, weights=(7.0, 8.0))

    def weights(*arguments):
        loss = make_loss(*arguments)
        return loss.content_weight, loss.style_weight, loss.variation_weight

    assert weights(net, painting) == RELATIVE_WEIGHTS
    assert weights(known, painting) == (7, 8, 0)
    assert weights(known, painting, 0.0, None, 4.0) == (0, 8, 4)
    assert weights(net, painting, None, 7.0) == (1, 7, 0.2)
    assert (make_loss(known, painting).content_scale, known.weights) == (1, (7, 8))
    assert make_loss(known, painting).style_scales == {}


def test_features_without_a_scale_are_refused(net):
    grey = jnp.broadcast_to(jnp.asarray(net.mean), (1, 4, 4, 3))
    with pytest.raises(InputError, match=r"--style\.image: its features are zero"):
        make_loss(net, grey, 1.0, 2.0)
    known = dataclasses.replace(net, weights=(7.0, 8.0))
    assert make_loss(known, grey).style_weight == 8
