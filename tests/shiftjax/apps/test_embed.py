"""Embeddings of face images, against the network applied to one image at a time."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from shiftjax import InputError, create_model
from shiftjax.apps import predict
from shiftjax.apps.embed import Embedder, Embeddings
from shiftjax.weights import Card, Pretrained

pytestmark = pytest.mark.usefixtures("quick")

SIZE = 16
OPTIONS = {"width": 4, "blocks": (1,), "embedding_size": 5}
CARD = Card(
    "facenet_resnet26_w11", OPTIONS, (), SIZE, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
)


@pytest.fixture
def pretrained(randomize):
    model = CARD.model()
    variables = randomize(model, jnp.zeros((1, SIZE, SIZE, 3)))
    return Pretrained(model, variables, CARD)


def expected(pretrained: Pretrained, image: np.ndarray) -> np.ndarray:
    """The embedding of one image, by the definition."""
    total = np.zeros(5)
    for shown in (image, image[:, ::-1]):
        pixels = (shown / 255 - np.array(CARD.mean)) / np.array(CARD.std)
        out = jax.jit(pretrained.model.apply)(pretrained.variables, pixels[None])
        total += np.asarray(out, np.float64)[0]
    return total / np.sqrt((total**2).sum())


@pytest.fixture
def folder(tmp_path, rng):
    """Seven images, in the size of the network, and two files that are none."""
    pixels = rng.integers(0, 256, (7, SIZE, SIZE, 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "2b.png").write_bytes(b"no image")
    (tmp_path / "9.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    return tmp_path, pixels


def test_an_embedding_is_the_normalized_sum_of_both_mirror_images(
    pretrained, folder, monkeypatch
):
    """Of each file that is an image, by batches; the others are named."""
    monkeypatch.setattr(predict, "BATCH_SIZE", 3)
    root, pixels = folder
    wanted = np.stack([expected(pretrained, image) for image in pixels])
    skipped: list[str] = []
    embedder = Embedder(pretrained)
    found = embedder.embed_files(sorted(root.iterdir()), skipped.append)
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(found.vectors, wanted, atol=1e-5)
    assert [file.name for file in found.files] == [f"{i}.png" for i in range(7)]
    first, second = skipped
    assert first.startswith(f"{root / '2b.png'}: cannot be read as an image")
    assert second.startswith(f"{root / '9.png'}: cannot be read as an image")
    mirrored = embedder.embed(pixels[:, :, ::-1])
    np.testing.assert_allclose(mirrored, found.vectors, atol=1e-6)


def test_no_images_have_no_embeddings(pretrained):
    found = Embedder(pretrained).embed_files([], print)
    assert (found.files, found.vectors.shape) == ((), (0, 5))


def test_the_nearest_have_the_largest_cosines():
    """By hand: 3 / 5, 4 / 5, -3 / 5 and 4 / 5 again, of vectors of length 1."""
    vectors = np.array([[0.6, 0.8], [0.8, -0.6], [-0.6, 0.8], [0.8, 0.6]], np.float32)
    faces = Embeddings(tuple(map(Path, "abcd")), vectors)
    found = faces.nearest(np.array([2.0, 0.0]), 3)
    assert [str(file) for file, _ in found] == ["b", "d", "a"]
    np.testing.assert_allclose([x for _, x in found], [0.8, 0.8, 0.6], rtol=1e-6)
    assert len(faces.nearest(np.array([2.0, 0.0]), 9)) == 4


def test_only_a_face_network_embeds():
    card = Card("resnet20", {}, tuple("0123456789"), 8, (0.5,) * 3, (0.5,) * 3)
    other = Pretrained(create_model("resnet20"), {}, card)
    with pytest.raises(
        InputError, match=r"a resnet20 returns logits, .* shift_facenet"
    ):
        Embedder(other)


def test_images_of_another_shape_are_named(pretrained):
    with pytest.raises(InputError, match=r"uint8 \[1, 16, 16, 1\]"):
        Embedder(pretrained).embed(np.zeros((1, SIZE, SIZE, 1), np.uint8))
