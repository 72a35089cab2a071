"""Pairs of face images as the test split of a run, verified by the protocol of LFW."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from shiftjax.apps.face_pairs import Pair
from shiftjax.apps.face_verification import (
    cosine_similarities,
    verify_fold,
    verify_pairs,
)
from train.config import Data
from train.data.decoding import Decoding
from train.data.encoded import Encoded
from train.data.folder import Files
from train.data.image_set import ImageSet


@dataclasses.dataclass(frozen=True)
class PairSet(ImageSet):
    """The images of pairs, each once, and the pairs.

    The labels are 0 and have no meaning. The classes are those of the network's
    training.

    Attributes:
      positions: int `[pairs, 2]`, the positions of both images.
      same: bool `[pairs]`, True for two images of one person.
      folds: int `[pairs]`.
      fold: the fold to test; None for all of them.
    """

    positions: np.ndarray
    same: np.ndarray
    folds: np.ndarray
    fold: int | None = None

    def verify(self, embeddings: np.ndarray) -> dict[str, float]:
        """Verifies the pairs of all folds, or of one.

        See `verify_pairs` and `verify_fold` in `shiftjax.apps.face_verification`.

        Args:
          embeddings: `[images, features]`, of any length.

        Returns:
          "accuracy" and the other metrics of the protocol by name, with the number of
          "pairs" and the "threshold" for use.
        """
        first, second = embeddings[self.positions.T]
        similarities = cosine_similarities(first, second)
        spread, count = {}, len(self.same)
        if self.fold is None:
            found = verify_pairs(similarities, self.same, self.folds)
            spread = {"accuracy_standard_error": found.accuracy_standard_error}
        else:
            found = verify_fold(similarities, self.same, self.folds, self.fold)
            count = int((self.folds == self.fold).sum())
        rates = {f"tar_at_far_{far:g}": x for far, x in found.tar_at_far.items()}
        return {
            "accuracy": found.accuracy,
            **spread,
            "auc": found.auc,
            "eer": found.eer,
            **rates,
            "threshold": found.threshold,
            "pairs": count,
        }


def people(pairs: Sequence[Pair]) -> frozenset[str]:
    """Returns the people of pairs: the names of the folders of their images."""
    return frozenset(
        path.parent.name for pair in pairs for path in (pair.first, pair.second)
    )


def load_images(
    pairs: Sequence[Pair],
    options: Data,
    class_names: tuple[str, ...],
    fold: int | None = None,
) -> PairSet:
    """Decodes the images of pairs.

    Args:
      pairs: the pairs.
      options: the size of the images.
      class_names: the classes of the network's training.
      fold: the fold to test; None for all of them.

    Returns:
      The images of all pairs, each once, with the pairs.

    Raises:
      InputError: for a damaged image.
    """
    both = [(pair.first, pair.second) for pair in pairs]
    paths = sorted({path for two in both for path in two})
    places = {path: i for i, path in enumerate(paths)}
    files = Files(paths, np.zeros(len(paths), np.int32), class_names)
    decoding = Decoding(
        image_size=options.image_size, resize=options.resize, threads=options.threads
    )
    images = Encoded.of(files, decoding).decoded()
    return PairSet(
        images.images,
        images.labels,
        class_names,
        positions=np.array([[places[path] for path in two] for two in both]),
        same=np.array([pair.same for pair in pairs]),
        folds=np.array([pair.fold for pair in pairs]),
        fold=fold,
    )
