"""Embeddings of face images with a trained network, and the nearest of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from shiftjax.apps.face_pairs import Pair
from shiftjax.apps.face_verification import cosine_similarities, flip_averaged
from shiftjax.apps.predict import network_outputs, read_batches, read_image
from shiftjax.errors import InputError
from shiftjax.models import facenet
from shiftjax.models.facenet import FaceNet
from shiftjax.weights import Pretrained


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
    """The embeddings of image files.

    Attributes:
      files: the files.
      vectors: float32 `[files, features]`, of length 1.
    """

    files: tuple[Path, ...]
    vectors: np.ndarray

    def nearest(self, vector: np.ndarray, count: int) -> list[tuple[Path, float]]:
        """Finds the images that are most similar to an embedding.

        Args:
          vector: `[features]`.
          count: number of images, at most.

        Returns:
          Files and cosine similarities, the most similar first.

        Example:
          >>> faces = Embeddings((Path("a"), Path("b")), np.eye(2, dtype=np.float32))
          >>> [(str(file), x) for file, x in faces.nearest(np.array([0, 2]), 1)]
          [('b', 1.0)]
        """
        others = np.broadcast_to(vector, self.vectors.shape)
        similarities = cosine_similarities(self.vectors, others)
        order = np.argsort(-similarities, kind="stable")[:count]
        return [(self.files[i], float(similarities[i])) for i in order]


class Embedder:
    """A face network with its weights, ready to embed images.

    An embedding is the normalized sum of those of the image and of its mirror image, as
    in the protocol of verification.

    Args:
      pretrained: result of `shiftjax.weights.open_pretrained`.

    Raises:
      InputError: if it is not a face network.
    """

    def __init__(self, pretrained: Pretrained) -> None:
        model, self.card = pretrained.model, pretrained.card
        if not isinstance(model, FaceNet):
            raise InputError(
                f"a {self.card.architecture} returns {model.outputs}, not embeddings "
                f"of faces: use weights of {', '.join(facenet.VARIANTS)}"
            )
        self.size = model.embedding_size
        apply: Any = jax.jit(model.apply)
        self._apply = functools.partial(apply, pretrained.variables)

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embeds images, batch by batch.

        Args:
          images: uint8 `[images, height, width, channels]`, of any number.

        Returns:
          float32 `[images, features]`, of length 1.

        Raises:
          InputError: if dtype, shape or number of channels do not fit the network.
        """
        card, size = self.card, self.size
        averaged = flip_averaged(
            lambda some: network_outputs(self._apply, some, card, size), images
        )
        return averaged.astype(np.float32)

    def read(self, *files: Path) -> np.ndarray:
        """Embeds image files; see `embed_files`.

        Returns:
          float32 `[files, features]`, of length 1.

        Raises:
          InputError: if a file is not an image.
        """
        return self.embed(np.stack([read_image(file, self.card) for file in files]))

    def compare(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Computes the similarity of each pair of images; each file is read once.

        Args:
          pairs: result of `shiftjax.apps.face_pairs.read_pairs`.

        Returns:
          float64 `[pairs]`, cosines.

        Raises:
          InputError: if a file is not an image.
        """
        files = sorted({file for pair in pairs for file in (pair.first, pair.second)})
        places = {file: i for i, file in enumerate(files)}
        some = [self.embed(images) for _, images in read_batches(files, self.card)]
        vectors = np.concatenate(some)
        return cosine_similarities(
            vectors[[places[pair.first] for pair in pairs]],
            vectors[[places[pair.second] for pair in pairs]],
        )

    def embed_files(
        self, files: Iterable[Path], on_skip: Callable[[str], None]
    ) -> Embeddings:
        """Embeds image files of any size and format, without those that are damaged.

        Each image is resized by its short side, to the size that the card of the
        network names, and then center cropped.

        Args:
          files: the files.
          on_skip: called with a message for each file that cannot be read.

        Returns:
          The other files, in their order, with their embeddings.
        """
        kept: list[Path] = []
        vectors = [np.zeros((0, self.size), np.float32)]
        for some, images in read_batches(files, self.card, on_skip):
            kept += some
            vectors.append(self.embed(images))
        return Embeddings(tuple(kept), np.concatenate(vectors))
