"""A comparison of networks with NumPy, and the features of a CIFAR network."""

import functools

import jax
import pytest

FLOAT64 = 1e-11  # dozens of layers, of which each loses some units in the last place


@pytest.fixture
def assert_equals_numpy(reference, rng, randomize, assert_trees_close):
    """Returns a function that compares a network with its oracle.

    Outputs, features and running averages are compared, for images of an odd size.
    """

    def compare(model, oracle, train):
        images = rng.normal(size=(2, 17, 13, 3))
        variables = randomize(model, images)
        apply = functools.partial(
            model.apply, train=train, capture_features=True, mutable=["batch_stats"]
        )
        actual = jax.jit(apply)(variables, images)
        weights = variables["params"], variables["batch_stats"]
        outputs, features, stats = oracle(reference, model, *weights, images, train)
        if not train:
            stats = variables["batch_stats"]
        expected = ((outputs, features), {"batch_stats": stats})
        assert_trees_close(actual, expected, FLOAT64)

    return compare


def cifar_features(images, widths=(16, 32, 64)):
    """Shapes of the features: strides 2 round the size up."""
    batch, height, width, _ = images
    sizes = [(-(-height // stride), -(-width // stride)) for stride in (1, 2, 4)]
    stages = [(batch, *size, c) for size, c in zip(sizes, widths, strict=True)]
    names = ["stage1", "stage2", "stage3", "pre_logits", "stem"]
    return dict(zip(names, [*stages, (batch, widths[2]), stages[0]], strict=True))
