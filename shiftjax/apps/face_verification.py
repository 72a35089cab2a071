"""Face verification: whether two images show one person, by the protocol of LFW.

Two images are called the same person if the cosine of their embeddings is at least a
threshold. The protocol (Huang et al. 2007, *Labeled Faces in the Wild*, section 4)
chooses the threshold of each fold on all other folds, and reports the mean accuracy
over the folds. `shiftjax.apps.face_pairs` reads the pairs and their folds.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from shiftjax.errors import InputError

FALSE_ACCEPT_RATES = (1e-2, 1e-3)


@dataclasses.dataclass(frozen=True, eq=False)
class Verification:
    """The result of verifying pairs of faces.

    Attributes:
      accuracy: mean accuracy over the folds, each at a threshold chosen on the others.
      accuracy_std: standard deviation of the folds' accuracies, of a sample (`ddof=1`).
      accuracy_standard_error: `accuracy_std / sqrt(folds)`, which LFW's results report.
      fold_accuracies: accuracy of each fold, in the order of the folds.
      fold_thresholds: threshold of each fold, chosen on all other folds.
      threshold: the threshold for use, chosen by the same rule on all pairs. The
        accuracy above is not that of this threshold.
      auc: area under the ROC curve; equal similarities count as half.
      eer: equal error rate, where as large a share of the pairs of two people is
        accepted as of the pairs of one person is rejected; on straight lines between
        the points of the curve.
      tar_at_far: for each of `FALSE_ACCEPT_RATES` the largest share of accepted pairs
        of one person (true accept rate) at a threshold that accepts at most that share
        of the pairs of two people (false accept rate). It is not interpolated.
      false_accept_rates: `[points]`, ascending from 0 to 1, the ROC curve's x.
      true_accept_rates: `[points]`, ascending from 0 to 1, the ROC curve's y.
    """

    accuracy: float
    accuracy_std: float
    accuracy_standard_error: float
    fold_accuracies: tuple[float, ...]
    fold_thresholds: tuple[float, ...]
    threshold: float
    auc: float
    eer: float
    tar_at_far: Mapping[float, float]
    false_accept_rates: np.ndarray
    true_accept_rates: np.ndarray


@dataclasses.dataclass(frozen=True)
class FoldVerification:
    """The result of verifying the pairs of one fold.

    Attributes:
      accuracy: accuracy on the fold.
      threshold: the threshold, chosen on all other folds.
      auc: area under the ROC curve of the fold, as in `Verification`.
      eer: equal error rate of the fold, as in `Verification`.
      tar_at_far: true accept rates of the fold, as in `Verification`.
    """

    accuracy: float
    threshold: float
    auc: float
    eer: float
    tar_at_far: Mapping[float, float]


def flip_averaged(
    embed: Callable[[np.ndarray], np.ndarray], images: np.ndarray
) -> np.ndarray:
    """Embeds images together with their mirror images.

    The embedding of an image is the normalized sum of the embeddings of the image and
    of its mirror image, so that both have the same one.

    Args:
      embed: function from images to embeddings `[images, features]`.
      images: `[images, height, width, channels]`.

    Returns:
      float64 `[images, features]`, of length 1.
    """
    images = np.asarray(images)
    one, other = (
        np.asarray(embed(x), np.float64) for x in (images, images[:, :, ::-1])
    )
    return _normalize(one + other)


def cosine_similarities(
    embeddings: ArrayLike, others: ArrayLike | None = None
) -> np.ndarray:
    """Computes the cosine similarity of each pair of embeddings.

    For embeddings of length 1 the squared distance is `2 - 2 * similarity`. A threshold
    of either one makes the same decisions.

    Args:
      embeddings: `[pairs, 2, features]`; or the first of each pair,
        `[pairs, features]`. Their length has no effect.
      others: the second of each pair, `[pairs, features]`, if the first are given.

    Returns:
      float64 `[pairs]` in -1 .. 1; 0 if one embedding of a pair is zero.

    Raises:
      InputError: if the shapes do not fit, or a number is not finite.

    Example:
      >>> cosine_similarities([[[3, 0], [1, 1]], [[0, 2], [0, -5]]]).round(3)
      array([ 0.707, -1.   ])
    """
    first = np.asarray(embeddings, np.float64)
    if others is None and first.ndim == 3 and first.shape[1] == 2:
        first, second = first[:, 0], first[:, 1]
    else:
        second = np.asarray([] if others is None else others, np.float64)
    if first.ndim != 2 or first.shape != second.shape:
        shapes = [list(np.shape(x)) for x in (embeddings, others) if x is not None]
        raise InputError(
            f"the embeddings are {' and '.join(map(str, shapes))}; they must be "
            "[pairs, 2, features], or twice [pairs, features]"
        )
    _check_finite("embeddings", np.stack([first, second], 1))
    return np.clip((_normalize(first) * _normalize(second)).sum(1), -1, 1)


def best_threshold(similarities: ArrayLike, same: ArrayLike) -> float:
    """Chooses the threshold with the highest accuracy.

    Thresholds lie in the middle between two neighboring similarities. Two more accept
    all pairs (the lowest similarity) and none (the next float above the highest). Of
    equally accurate thresholds the highest is chosen, which accepts the fewest pairs.

    Args:
      similarities: `[pairs]`.
      same: bool `[pairs]`, True for pairs of one person.

    Returns:
      The threshold; a pair is accepted if its similarity is at least this.

    Raises:
      InputError: if there are no pairs, the shapes differ, or a number is not finite.

    Example:
      >>> best_threshold([0.1, 0.3, 0.5, 0.9], [False, False, True, True])
      0.4
    """
    similarities, same = _check_pairs(similarities, same)
    values, places = np.unique(similarities, return_inverse=True)
    one_person = np.bincount(places[same], minlength=len(values))
    two_people = np.bincount(places[~same], minlength=len(values))
    # Accepting values[k:] is right for the pairs of two people below, and of one above.
    right = np.append(0, two_people.cumsum()) - np.append(0, one_person.cumsum())
    best = len(right) - 1 - int(right[::-1].argmax())
    if best == 0:
        return float(values[0])
    if best == len(values):
        return float(np.nextafter(values[-1], np.inf))
    low, high = values[best - 1 : best + 1]
    middle = low + (high - low) / 2
    return float(middle if middle > low else high)  # it rounds between adjacent floats


def verify_pairs(
    similarities: ArrayLike, same: ArrayLike, folds: ArrayLike
) -> Verification:
    """Verifies pairs of faces by the protocol of LFW.

    Args:
      similarities: `[pairs]`, larger for more similar images.
      same: bool `[pairs]`, True for pairs of one person.
      folds: int `[pairs]`, the fold of each pair.

    Returns:
      Accuracy, thresholds and ROC curve.

    Raises:
      InputError: if the shapes differ, a number is not finite, there are fewer than two
        folds, a fold has pairs of one kind only, or scikit-learn is not installed.

    Example:
      >>> result = verify_pairs(
      ...     [0.9, 0.2, 0.7, 0.4], [True, False, True, False], [0, 0, 1, 1])
      >>> result.accuracy, result.auc
      (1.0, 1.0)
    """
    similarities, same = _check_pairs(similarities, same)
    folds = _check_folds(folds, same)
    tested = [_test_fold(similarities, same, folds, n) for n in np.unique(folds)]
    thresholds, accuracies = zip(*tested, strict=True)
    std = float(np.std(accuracies, ddof=1))
    far, tar, auc = _roc(similarities, same)
    return Verification(
        accuracy=float(np.mean(accuracies)),
        accuracy_std=std,
        accuracy_standard_error=std / len(tested) ** 0.5,
        fold_accuracies=accuracies,
        fold_thresholds=thresholds,
        threshold=best_threshold(similarities, same),
        auc=auc,
        eer=_equal_error_rate(far, tar),
        tar_at_far=_true_accept_rates(far, tar),
        false_accept_rates=far,
        true_accept_rates=tar,
    )


def verify_fold(
    similarities: ArrayLike, same: ArrayLike, folds: ArrayLike, fold: int
) -> FoldVerification:
    """Verifies the pairs of one fold, for a network that is trained for this fold.

    Args:
      similarities: `[pairs]` of all folds, larger for more similar images.
      same: bool `[pairs]`, True for pairs of one person.
      folds: int `[pairs]`, the fold of each pair.
      fold: the fold to verify.

    Returns:
      The accuracy on the fold at the threshold that is chosen on the others.

    Raises:
      InputError: as `verify_pairs`, or if there is no such fold.

    Example:
      >>> result = verify_fold(
      ...     [0.9, 0.2, 0.7, 0.4], [True, False, True, False], [0, 0, 1, 1], fold=1)
      >>> result.accuracy, result.threshold
      (1.0, 0.55)
    """
    similarities, same = _check_pairs(similarities, same)
    folds = _check_folds(folds, same)
    if fold not in folds:
        raise InputError(f"there is no fold {fold}: {np.unique(folds).tolist()}")
    threshold, accuracy = _test_fold(similarities, same, folds, fold)
    inside = folds == fold
    far, tar, auc = _roc(similarities[inside], same[inside])
    return FoldVerification(
        accuracy,
        threshold,
        auc,
        _equal_error_rate(far, tar),
        _true_accept_rates(far, tar),
    )


def _test_fold(
    similarities: np.ndarray, same: np.ndarray, folds: np.ndarray, fold: int
) -> tuple[float, float]:
    """Returns the threshold chosen outside a fold, and the accuracy inside it."""
    inside = folds == fold
    if same[inside].all() or not same[inside].any():
        kind = "one person" if same[inside].all() else "two people"
        raise InputError(f"fold {fold} has only pairs of {kind}; it needs both kinds")
    threshold = best_threshold(similarities[~inside], same[~inside])
    accepted = similarities[inside] >= threshold
    return threshold, float((accepted == same[inside]).mean())


def _equal_error_rate(far: np.ndarray, tar: np.ndarray) -> float:
    """Returns the rate at which a ROC curve has as many errors of both kinds."""
    return float(np.interp(0, far + tar - 1, far))


def _true_accept_rates(far: np.ndarray, tar: np.ndarray) -> dict[float, float]:
    """Returns the largest true accept rate for each of `FALSE_ACCEPT_RATES`."""
    return {most: float(tar[far <= most].max()) for most in FALSE_ACCEPT_RATES}


def check_scikit_learn() -> None:
    """Raises InputError if scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise InputError(
            "the ROC curve needs scikit-learn: pip install 'shiftjax[train]'"
        ) from error


def _roc(
    similarities: np.ndarray, same: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Computes the ROC curve, a point for each distinct similarity, and its area."""
    check_scikit_learn()
    from sklearn import metrics

    far, tar, _ = metrics.roc_curve(same, similarities, drop_intermediate=False)
    return far, tar, float(metrics.auc(far, tar))


def _check_pairs(
    similarities: ArrayLike, same: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Checks similarities and kinds, and returns them as float64 and bool arrays."""
    similarities = np.asarray(similarities, np.float64)
    same = np.asarray(same, bool)
    if similarities.ndim != 1 or similarities.shape != same.shape or not same.size:
        raise InputError(
            f"there are similarities {list(similarities.shape)} and kinds "
            f"{list(same.shape)}; both must be [pairs], for at least one pair"
        )
    _check_finite("similarities", similarities)
    return similarities, same


def _check_folds(folds: ArrayLike, same: np.ndarray) -> np.ndarray:
    """Checks that each pair has a fold, and that there are two folds or more."""
    folds = np.asarray(folds)
    if folds.shape != same.shape:
        raise InputError(
            f"there are folds {list(folds.shape)} for pairs {list(same.shape)}"
        )
    count = len(np.unique(folds))
    if count < 2:
        raise InputError(f"there is {count} fold; at least 2 folds are needed")
    return folds


def _check_finite(kind: str, values: np.ndarray) -> None:
    """Raises if a number is not finite, with the index of the first such pair."""
    finite = np.isfinite(values).reshape(len(values), -1).all(1)
    if not finite.all():
        raise InputError(f"the {kind} of pair {finite.argmin()} are not finite")


def _normalize(x: np.ndarray) -> np.ndarray:
    """Divides vectors `[..., features]` by their lengths; zeros stay zeros."""
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(length > 0, length, 1)
