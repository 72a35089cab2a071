"""The face networks: small ones in NumPy, length 1, and what has no classes says so."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax import InputError, UnknownNameError, create_model, load_pretrained
from shiftjax.apps.predict import Classifier
from shiftjax.models.facenet import FaceResNet, ShiftFaceNet, l2_normalize
from shiftjax.weights import Card, open_pretrained, save
from tests.shiftjax.models.test_imagenet_models import SMALL, finish, shiftnet

pytestmark = pytest.mark.usefixtures("quick")


def resnet(reference, model, params, stats, x, train):
    """Stem of 7x7, plain blocks; the first of each stage has stride 2."""
    new, features = {}, {}
    y, new["stem"] = reference.conv_norm(params["stem"], stats["stem"], x, train, 2)
    y = features["stem"] = np.maximum(y, 0)
    for stage, count in enumerate(model.blocks, 1):
        for index in range(1, count + 1):
            name = f"stage{stage}_block{index:02}"
            own, stride = (params[name], stats[name]), 2 if index == 1 else 1
            y, new[name] = reference.residual_block(*own, y, train, stride)
        features[f"stage{stage}"] = y
    return finish(params, y, features, new)


NETWORKS = {
    "ShiftFaceNet": (
        ShiftFaceNet(stages=SMALL, stem_features=5, shortcut="add", embedding_size=6),
        shiftnet,
    ),
    "FaceResNet": (FaceResNet(blocks=(1, 2), width=7, embedding_size=6), resnet),
}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.usefixtures("float64")
def test_a_face_network_equals_numpy(assert_equals_numpy, name, train):
    model, oracle = NETWORKS[name]

    def normalized(*arguments):
        y, features, stats = oracle(*arguments)
        return np.stack([row / sum(row**2) ** 0.5 for row in y]), features, stats

    assert_equals_numpy(model, normalized, train)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_embeddings_have_length_1_in_float32(rng, randomize, name, dtype):
    model, _ = NETWORKS[name]
    images = rng.normal(size=(4, 32, 32, 3)).astype("float32")
    variables = randomize(model, images)
    y = jax.jit(model.clone(dtype=dtype).apply)(variables, images)
    assert (y.shape, y.dtype) == ((4, 6), jnp.float32)
    np.testing.assert_allclose((np.asarray(y, "float64") ** 2).sum(1), 1, rtol=1e-6)
    full = jax.jit(model.apply)(variables, images)
    # bfloat16 has 8 bits, of which each of some ten layers loses a part.
    assert ((y * full).sum(1) > (0.98 if dtype == "bfloat16" else 1 - 1e-6)).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_an_embedding_of_zero_has_a_finite_gradient(rng, randomize, name):
    """A head of zeros, as some initialize it."""
    model, _ = NETWORKS[name]
    images = rng.normal(size=(2, 32, 32, 3)).astype("float32")
    variables = randomize(model, images)
    head = jax.tree.map(np.zeros_like, variables["params"]["head"])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        y = model.apply(variables | {"params": params}, images)
        return y.sum(), y

    (_, y), gradient = loss(variables["params"] | {"head": head})
    np.testing.assert_array_equal(y, np.zeros((2, 6)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert (gradient["head"]["bias"] != 0).all()


def test_the_gradient_keeps_the_length():
    """d(x / |x|) = (g - y (y g)) / |x|, by hand for (3, 4) and g = (1, 0)."""
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    y, pull = jax.vjp(l2_normalize, x)
    np.testing.assert_allclose(y, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    (gradient,) = pull(jnp.array([[1.0, 0.0], [1.0, 0.0]]))
    np.testing.assert_allclose(gradient[0], [0.128, -0.096], rtol=1e-5)
    np.testing.assert_allclose(gradient[1], [1e6, 0], rtol=1e-5)


def test_a_face_network_has_a_size_and_no_classes():
    with pytest.raises(UnknownNameError, match="option of shift_facenet 'num_classes'"):
        create_model("shift_facenet", num_classes=10)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    for name, option, value, message in (
        ("shift_facenet", "embedding_size", 0, "embedding_size=0"),
        ("facenet_resnet26_w11", "width", 0, "width=0"),
        ("facenet_resnet26_w11", "blocks", (1, 0), r"blocks\[1\]=0: it must be an int"),
        (
            "facenet_resnet26_w11",
            "width",
            1,
            "width=1: it must be an integer of at least 2",
        ),
    ):
        model = create_model(name, **{option: value})
        with pytest.raises(InputError, match=message):
            jax.eval_shape(model.init, jax.random.key(0), images)


def test_weights_of_a_face_network(tmp_path, rng, randomize, assert_trees_close):
    """They are saved and loaded, and refused where classes are needed."""
    options = {"width": 4, "blocks": [1], "embedding_size": 5}
    card = Card("facenet_resnet26_w11", options, (), 32, (0.5,) * 3, (0.25,) * 3)
    variables = randomize(card.model(), jnp.zeros((1, 32, 32, 3)))
    path = str(tmp_path / "faces.safetensors")
    save(path, variables, card)
    _, loaded = load_pretrained(path)
    assert_trees_close(loaded, variables, 0)
    with pytest.raises(
        InputError, match=r"num_classes=3: .* returns embeddings and has"
    ):
        load_pretrained(path, num_classes=3)
    wanted = r"_w11 returns embeddings, not classes: use `shiftjax embed`$"
    with pytest.raises(InputError, match=wanted):
        Classifier(open_pretrained(path))
