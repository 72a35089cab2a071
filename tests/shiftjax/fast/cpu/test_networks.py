"""Whole networks by the implementation for CPUs, compared with the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax.models.resnet import ResNet, ShiftResNet

pytestmark = pytest.mark.usefixtures("quick")

# In float64, eight layers with their normalizations lose some thousand units in the
# last place (2e-16).
FLOAT64 = 2e-12

NETWORKS = {
    "ResNet": (
        ResNet(8, block_reduction=2, net_reduction=4),
        (5, 9, 10, 1),
    ),
    "ShiftResNet": (ShiftResNet(8, expansion=2), (4, 8, 9, 3)),
    "ShiftResNet, 5x5, dilated": (
        ShiftResNet(8, kernel_size=5, dilation=2, expansion=2),
        (3, 9, 7, 3),
    ),
}


def train(model, variables, images, implementation):
    """Logits, features and new statistics."""
    return model.clone(implementation=implementation).apply(
        variables, images, train=True, capture_features=True, mutable=["batch_stats"]
    )


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.usefixtures("float64")
def test_a_network_on_planes_equals_itself(rng, randomize, assert_trees_close, name):
    """Logits, features and new statistics.

    Eight layers amplify what one loses, which leaves 1e-10.
    """
    model, shape = NETWORKS[name]
    images = rng.normal(size=shape)
    variables = randomize(model, images)
    actual, expected = (
        jax.jit(functools.partial(train, model, implementation=implementation))(
            variables, images
        )
        for implementation in ("cpu", "reference")
    )
    assert_trees_close(actual, expected, 1e-10)


@pytest.mark.usefixtures("float64")
def test_gradients_of_a_network_on_planes(rng, randomize, assert_trees_close):
    """Compares gradients of params and images, rematerialized, to 1e-10."""
    images = rng.normal(size=(2, 6, 5, 3))
    model = ShiftResNet(8, expansion=2)
    variables = randomize(model, images)

    def loss(model, implementation, params, images):
        now = variables | {"params": params}
        return (train(model, now, images, implementation)[0][0] ** 2).mean()

    actual, expected = (
        jax.jit(jax.grad(functools.partial(loss, *choice), (0, 1)))(
            variables["params"], images
        )
        for choice in ((model.clone(remat=True), "cpu"), (model, "reference"))
    )
    assert_trees_close(actual, expected, 1e-10)


@pytest.mark.usefixtures("float64")
def test_a_network_takes_one_pixel(rng, randomize, assert_trees_close):
    images = rng.normal(size=(2, 1, 1, 3))
    variables = randomize(ShiftResNet(8), images)
    actual, expected = (
        jax.jit(ShiftResNet(8, implementation=implementation).apply)(variables, images)
        for implementation in ("cpu", "reference")
    )
    assert_trees_close(actual, expected, 1e-10)


@pytest.mark.usefixtures("float64")
def test_vmap_over_variables(rng, randomize, assert_trees_close):
    """An ensemble: one network with several sets of variables."""
    model = ShiftResNet(8, implementation="cpu")
    images = rng.normal(size=(2, 4, 4, 3))
    members = [randomize(model, images) for _ in range(2)]
    ensemble = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    logits = jax.jit(jax.vmap(model.apply, (0, None)))
    one = jax.jit(model.apply)
    expected = np.stack([one(member, images) for member in members])
    assert_trees_close(logits(ensemble, images), expected, FLOAT64)


def test_an_empty_batch_gives_empty_logits():
    model = ResNet(8, implementation="cpu")
    images = jnp.zeros((0, 8, 8, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert jax.eval_shape(model.apply, variables, images).shape == (0, 10)
