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
from train.logging.metric_names import FOLD


@dataclasses.dataclass(frozen=True)
class PairSet(ImageSet):
    """The images of pairs, each once, and the pairs.

    The labels are 0 and have no meaning. The classes are those of the network's
    training.

    Attributes:
      positions: int `[pairs, 2]`, the positions of both images.
      same: bool `[pairs]`, True for two images of one person.
      folds: int `[pairs]`, from 1.
      tested: the folds to test, from 1; none for all of them.
    """

    positions: np.ndarray
    same: np.ndarray
    folds: np.ndarray
    tested: tuple[int, ...] = ()

    def verify(self, embeddings: np.ndarray) -> dict[str, float]:
        """Verifies the pairs of the folds to test.

        See `verify_pairs` and `verify_fold` in `shiftjax.apps.face_verification`. The
        threshold of a fold is chosen on the others that are tested too. For one alone
        it is chosen on the folds that are not tested.

        Args:
          embeddings: `[images, features]`, of any length.

        Returns:
          "accuracy" and the other metrics of the protocol by name, "accuracy_fold_1" to
          the last fold, the number of "pairs" and the "threshold" for use.
        """
        first, second = embeddings[self.positions.T]
        similarities = cosine_similarities(first, second)
        if len(self.tested) == 1:
            (fold,) = self.tested
            found = verify_fold(similarities, self.same, self.folds, fold)
            count, spread = int((self.folds == fold).sum()), {}
            accuracies = {fold: found.accuracy}
        else:
            found = verify_pairs(similarities, self.same, self.folds)
            count = len(self.same)
            spread = {"accuracy_standard_error": found.accuracy_standard_error}
            names = np.unique(self.folds).tolist()
            accuracies = dict(zip(names, found.fold_accuracies, strict=True))
        rates = {f"tar_at_far_{far:g}": x for far, x in found.tar_at_far.items()}
        return {
            "accuracy": found.accuracy,
            **spread,
            **{fold_metric(fold): x for fold, x in accuracies.items()},
            "auc": found.auc,
            "eer": found.eer,
            **rates,
            "threshold": found.threshold,
            "pairs": count,
        }


def fold_metric(fold: int) -> str:
    """Returns the name of the accuracy of a fold, from 1.

    Example:
      >>> fold_metric(3)
      'accuracy_fold_3'
    """
    return f"accuracy{FOLD}{fold}"


def people(pairs: Sequence[Pair]) -> frozenset[str]:
    """Returns the people of pairs: the names of the folders of their images."""
    return frozenset(
        path.parent.name for pair in pairs for path in (pair.first, pair.second)
    )


def load_images(
    pairs: Sequence[Pair],
    options: Data,
    class_names: tuple[str, ...],
    tested: tuple[int, ...] = (),
) -> PairSet:
    """Decodes the images of pairs.

    Args:
      pairs: the pairs.
      options: the size and the channels of the images.
      class_names: the classes of the network's training.
      tested: the folds to test, from 1; none for all of them.

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
        image_size=options.image_size,
        channels=len(options.mean),
        resize=options.resize,
        threads=options.threads,
    )
    images = Encoded.of(files, decoding).decoded()
    return PairSet(
        images.images,
        images.labels,
        class_names,
        positions=np.array([[places[path] for path in two] for two in both]),
        same=np.array([pair.same for pair in pairs]),
        folds=np.array([pair.fold + 1 for pair in pairs]),
        tested=tested,
    )
