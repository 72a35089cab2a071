"""The losses of face networks and their gradients, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.faces.losses import arcface_logits, center_losses, move_centers
from train.parallel import AXIS

MARGIN, SCALE = 0.4, 5.0
# Angles to the own identity: the last two are so large that the margin exceeds pi.
ANGLES = [[0.1, 1.2, 2.9], [2.0, 0.7, 1.5], [0.3, 2.5, 1.0], [2.9, 1.0, 0.2]]
LABELS = [0, 1, 1, 0]


def numpy_cross_entropy(cosines: np.ndarray) -> float:
    """The mean loss of ArcFace, number by number."""
    losses = []
    for row, label in zip(cosines, LABELS, strict=True):
        logits = [SCALE * x for x in row]
        angle = np.arccos(row[label])
        logits[label] = SCALE * (
            np.cos(angle + MARGIN)
            if angle + MARGIN < np.pi
            else np.cos(angle) - MARGIN * np.sin(MARGIN)
        )
        losses.append(np.log(np.sum(np.exp(logits))) - logits[label])
    return float(np.mean(losses))


def cross_entropy(cosines: jax.Array) -> jax.Array:
    """The same, by the function that is tested."""
    logits = arcface_logits(cosines, jnp.array(LABELS), MARGIN, SCALE)
    own = jnp.take_along_axis(logits, jnp.array(LABELS)[:, None], 1)[:, 0]
    return (jax.nn.logsumexp(logits, 1) - own).mean()


def slopes(function, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The gradient of a function by central differences."""
    result = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        moved = np.zeros_like(x)
        moved[place] = step
        result[place] = (function(x + moved) - function(x - moved)) / (2 * step)
    return result


@pytest.mark.usefixtures("float64")
def test_arcface_and_its_gradient():
    cosines = np.cos(ANGLES)
    loss, gradient = jax.value_and_grad(cross_entropy)(jnp.asarray(cosines))
    assert loss == pytest.approx(numpy_cross_entropy(cosines), rel=1e-12)
    # The error of central differences.
    wanted = slopes(numpy_cross_entropy, cosines)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-6, atol=1e-9)


def test_without_margin_the_logits_are_the_cosines():
    cosines = jnp.cos(jnp.array(ANGLES))
    logits = arcface_logits(cosines, jnp.array(LABELS), 0.0, SCALE)
    np.testing.assert_allclose(logits, SCALE * cosines, rtol=1e-6)


@pytest.mark.parametrize("cosine", [1.0, -1.0])
def test_the_gradient_of_arcface_is_finite_at_the_ends(cosine):
    def own(cosine):
        row = jnp.stack([cosine, jnp.float32(0.5)])
        return arcface_logits(row[None], jnp.array([0]), MARGIN, SCALE)[0, 0]

    value, slope = jax.value_and_grad(own)(jnp.float32(cosine))
    wanted = np.cos(MARGIN) if cosine == 1 else -1 - MARGIN * np.sin(MARGIN)
    assert value == pytest.approx(SCALE * wanted, rel=1e-3)  # of the least sine
    # At 1 the sine has its least value and no slope; beyond pi the line has slope 1.
    assert slope == pytest.approx(SCALE * (np.cos(MARGIN) if cosine == 1 else 1))


def test_a_larger_angle_never_has_a_larger_logit():
    angles = np.linspace(0, np.pi, 1001)
    rows = jnp.cos(jnp.array(np.stack([angles, np.zeros(1001)], 1)))
    own = arcface_logits(rows, jnp.zeros(1001, int), 0.5, 64.0)[:, 0]
    assert (np.diff(own) < 1e-4).all()  # rounding, of 64


@pytest.mark.usefixtures("float64")
def test_center_loss_and_its_gradient(rng):
    embeddings, centers = rng.normal(size=(4, 3)), rng.normal(size=(2, 3))

    def wanted(x):
        pairs = zip(x, LABELS, strict=True)
        return sum(((row - centers[label]) ** 2).sum() / 2 for row, label in pairs)

    def loss(x):
        return center_losses(x, jnp.array(LABELS), jnp.array(centers)).sum()

    value, gradient = jax.value_and_grad(loss)(jnp.array(embeddings))
    assert value == pytest.approx(wanted(embeddings), rel=1e-12)
    np.testing.assert_allclose(gradient, embeddings - centers[LABELS], rtol=1e-12)


def test_centers_move_by_hand():
    """Two embeddings of identity 0, on two devices; one of 1; none of 2."""
    centers = jnp.array([[0.0, 0.0], [1.0, 1.0], [5.0, 6.0]])
    embeddings = jnp.array([[[3.0, 0.0], [1.0, 3.0]], [[0.0, 6.0], [1.0, 1.0]]])
    labels = jnp.array([[0, 1], [0, 1]])
    moved = jax.vmap(move_centers, (None, 0, 0, None), axis_name=AXIS)(
        centers, embeddings, labels, 0.5
    )
    # 0: differences (3, 6), over 1 + 2, half of it. 1: (0, 2), over 1 + 2, half of it.
    wanted = [[0.5, 1.0], [1.0, 1 + 1 / 3], [5.0, 6.0]]
    np.testing.assert_allclose(moved, [wanted, wanted], rtol=1e-6)
