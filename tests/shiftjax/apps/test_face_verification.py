"""The protocol of LFW: cases by hand, and loops over pairs and thresholds."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from shiftjax import InputError
from shiftjax.apps.face_verification import (
    best_threshold,
    cosine_similarities,
    flip_averaged,
    verify_fold,
    verify_pairs,
)

# Three folds: two pairs of one person, then two of two people.
SIMILARITIES = np.array(
    [[0.9, 0.6, 0.1, 0.5], [0.8, 0.3, 0.2, 0.4], [0.7, 0.58, 0.05, 0.35]]
)
SAME = np.array([[True, True, False, False]] * 3)
FOLDS = np.array([[7] * 4, [2] * 4, [5] * 4])


def test_the_protocol_by_hand():
    """Of the 12 pairs in order only that of one person at 0.3 is in a wrong place."""
    pairs = SIMILARITIES.ravel(), SAME.ravel(), FOLDS.ravel()
    result = verify_pairs(*pairs)
    # In the order of the folds' numbers: 2, 5, 7.
    assert result.fold_thresholds == pytest.approx((0.54, 0.55, 0.49))
    assert result.fold_accuracies == (0.75, 1.0, 0.75)
    assert result.accuracy == pytest.approx(10 / 12)
    assert result.accuracy_std == pytest.approx((1 / 48) ** 0.5)
    assert result.accuracy_standard_error == pytest.approx(1 / 12)
    assert result.threshold == pytest.approx(0.54)
    assert result.auc == pytest.approx(33 / 36)
    assert result.eer == pytest.approx(1 / 6)
    assert result.tar_at_far == {
        0.01: pytest.approx(5 / 6),
        0.001: pytest.approx(5 / 6),
    }


def test_one_fold_by_hand():
    """Of fold 2, one person at 0.8 and 0.3, two people at 0.2 and 0.4."""
    pairs = SIMILARITIES.ravel(), SAME.ravel(), FOLDS.ravel()
    result = verify_fold(*pairs, fold=2)
    assert result.threshold == pytest.approx(0.54)  # chosen on folds 5 and 7
    assert (result.accuracy, result.auc, result.eer) == (0.75, 0.75, 0.5)
    assert result.tar_at_far == {0.01: 0.5, 0.001: 0.5}


# Similarities of pairs of one person, of two people, and the threshold.
THRESHOLDS = {
    "apart": ([0.5, 0.9], [0.1, 0.3], 0.4),
    "the highest of two": ([0.45, 0.6, 0.7, 0.9], [0.05, 0.1, 0.35, 0.5], 0.55),
    "equal similarities": ([0.5, 0.8], [0.2, 0.5], 0.65),
    "negative": ([-0.2], [-0.8], -0.5),
    "one person": ([0.2, 0.5], [], 0.2),
    "two people": ([], [0.2, 0.5], np.nextafter(0.5, 1)),
    "all equal": ([0.5, 0.5], [0.5], 0.5),
    "adjacent floats": ([np.nextafter(0.5, 1)], [0.5], np.nextafter(0.5, 1)),
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_the_threshold_by_hand(name):
    one, two, threshold = THRESHOLDS[name]
    same = [True] * len(one) + [False] * len(two)
    actual = best_threshold(one + two, same)
    assert actual == pytest.approx(threshold, rel=1e-15)
    if name == "adjacent floats":
        assert actual == threshold


def counted(similarities, same, threshold):
    """Number of right decisions."""
    return sum(
        (s >= threshold) == kind for s, kind in zip(similarities, same, strict=True)
    )


def searched(similarities, same):
    """The best threshold: all are tried, the highest first."""
    values = sorted(set(similarities))
    tried = [
        values[0],
        *((a + b) / 2 for a, b in itertools.pairwise(values)),
    ]
    tried.append(np.nextafter(values[-1], np.inf))
    return max(reversed(tried), key=lambda t: counted(similarities, same, t))


def rates(similarities, same):
    """False and true accept rates, from the strictest threshold to the loosest."""
    one = [s for s, kind in zip(similarities, same, strict=True) if kind]
    two = [s for s, kind in zip(similarities, same, strict=True) if not kind]
    return [
        (sum(s >= t for s in two) / len(two), sum(s >= t for s in one) / len(one))
        for t in [np.inf, *sorted(set(similarities), reverse=True)]
    ]


def equal_error_rate(points):
    """Where the straight line between two points crosses `far = 1 - tar`."""
    for (far, tar), (far2, tar2) in itertools.pairwise(points):
        before, after = far + tar - 1, far2 + tar2 - 1
        if before <= 0 <= after:
            return far + (far2 - far) * -before / (after - before)
    raise AssertionError("no crossing")


@pytest.mark.parametrize("digits", [1, 2, 15], ids=["many ties", "some ties", "none"])
def test_the_protocol_in_loops(rng, digits):
    """Folds of different sizes, in any order; 1,200 pairs of two people."""
    same = np.arange(2000) % 5 < 2
    folds = rng.permutation(np.repeat([0, 1, 2, 3], [900, 500, 400, 200]))
    similarities = np.round(rng.normal(size=2000) / 4 + 0.35 * same, digits)
    result = verify_pairs(similarities, same, folds)
    if digits < 15:  # every threshold is tried with every pair
        for fold in range(4):
            train, test = folds != fold, folds == fold
            threshold = searched(similarities[train], same[train])
            assert result.fold_thresholds[fold] == pytest.approx(threshold)
            right = counted(similarities[test], same[test], threshold)
            assert result.fold_accuracies[fold] == right / sum(test)
        assert result.threshold == pytest.approx(searched(similarities, same))
    mean = sum(result.fold_accuracies) / 4
    variance = sum((a - mean) ** 2 for a in result.fold_accuracies) / 3
    assert result.accuracy == pytest.approx(mean)
    assert result.accuracy_std == pytest.approx(variance**0.5)
    assert result.accuracy_standard_error == pytest.approx((variance / 4) ** 0.5)

    one, two = similarities[same][:, None], similarities[~same][None]
    wins = (one > two).sum() + (one == two).sum() / 2
    assert result.auc == pytest.approx(wins / one.size / two.size)
    if digits < 15:
        points = rates(similarities, same)
        curve = zip(result.false_accept_rates, result.true_accept_rates, strict=True)
        np.testing.assert_allclose(list(curve), points, rtol=1e-12)
        assert result.eer == pytest.approx(equal_error_rate(points))
        for most, tar in result.tar_at_far.items():
            assert tar == pytest.approx(max(t for f, t in points if f <= most))
    assert list(result.tar_at_far) == [0.01, 0.001]


def test_a_false_accept_rate_is_reached_exactly():
    """One of 1,000 pairs of two people is above 60 of 100 of one person."""
    one = np.r_[np.full(60, 0.5), np.full(40, 0.9)]
    two = np.r_[np.full(9, 0.55), 0.6, np.full(990, 0.0)]
    two[0] = 0.95
    same = np.repeat([True, False], [100, 1000])
    result = verify_pairs(np.r_[one, two], same, np.arange(1100) % 2)
    assert result.tar_at_far == {0.01: 1.0, 0.001: 0.4}


def test_similarities_are_cosines(rng):
    pairs = rng.normal(size=(5, 2, 7))
    actual = cosine_similarities(pairs)
    for (a, b), cosine in zip(pairs, actual, strict=True):
        expected = sum(a * b) / (sum(a * a) * sum(b * b)) ** 0.5
        assert cosine == pytest.approx(expected)
        squared = sum((a / sum(a * a) ** 0.5 - b / sum(b * b) ** 0.5) ** 2)
        assert squared == pytest.approx(2 - 2 * cosine)
    np.testing.assert_array_equal(
        cosine_similarities(3 * pairs[:, 0], pairs[:, 1]).round(12), actual.round(12)
    )
    np.testing.assert_array_equal(cosine_similarities([[[0, 0], [1, 2]]]), [0])
    assert abs(cosine_similarities([[[0.1] * 3, [0.3] * 3]])[0]) <= 1


def test_an_image_and_its_mirror_have_one_embedding():
    """The embedding is twice the upper left pixel, and the upper right one."""

    def embed(images):
        return np.stack([2 * images[:, 0, 0, 0], images[:, 0, -1, 0]], -1)

    image = np.array([[3.0, 7.0, 1.0], [100.0, 100.0, 50.0]])[None, :, :, None]
    expected = np.array([[8.0, 4.0]]) / 80**0.5
    np.testing.assert_allclose(flip_averaged(embed, image), expected, rtol=1e-15)
    mirrored = image[:, :, ::-1]
    np.testing.assert_allclose(flip_averaged(embed, mirrored), expected, rtol=1e-15)


UNFIT = {
    "kinds": (lambda: best_threshold([0.1, 0.2], [True]), r"similarities \[2\] and"),
    "none": (lambda: best_threshold([], []), "for at least one pair"),
    "nan": (
        lambda: best_threshold([0.1, np.nan], [True, False]),
        "the similarities of pair 1 are not finite",
    ),
    "folds": (lambda: verify_pairs([0.1], [True], [0, 1]), r"folds \[2\] for pairs"),
    "one fold": (
        lambda: verify_pairs([0.1, 0.2], [True, False], [3, 3]),
        "there is 1 fold; at least 2",
    ),
    "no such fold": (
        lambda: verify_fold([0.1, 0.2], [True, False], [3, 5], 4),
        r"there is no fold 4: \[3, 5\]",
    ),
    "one person": (
        lambda: verify_pairs([0.1, 0.2, 0.3], [True, False, True], [0, 0, 4]),
        "fold 4 has only pairs of one person",
    ),
    "two people": (
        lambda: verify_pairs([0.1, 0.2, 0.3], [True, False, False], [1, 1, 0]),
        "fold 0 has only pairs of two people",
    ),
    "threes": (
        lambda: cosine_similarities(np.zeros((4, 3, 8))),
        r"the embeddings are \[4, 3, 8\]; they must be \[pairs, 2, features\]",
    ),
    "lengths": (
        lambda: cosine_similarities(np.zeros((4, 8)), np.zeros((5, 8))),
        r"are \[4, 8\] and \[5, 8\]; they",
    ),
    "infinite": (
        lambda: cosine_similarities([[1, 2], [3, np.inf]], [[1, 2], [3, -np.inf]]),
        "the embeddings of pair 1 are not finite",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_named(name):
    call, message = UNFIT[name]
    with pytest.raises(InputError, match=message):
        call()


def test_without_scikit_learn_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"pip install 'shiftjax\[train\]'"):
        verify_pairs(SIMILARITIES.ravel(), SAME.ravel(), FOLDS.ravel())
    assert best_threshold([0.1, 0.3], [False, True]) == pytest.approx(0.2)


def test_the_import_is_light():
    """Beside what `import shiftjax` loads, which is tested on its own."""
    program = (
        "import sys, shiftjax; before = set(sys.modules)\n"
        "import shiftjax.apps.face_verification\n"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert "shiftjax" in done.stdout, done.stderr
    assert set(done.stdout.split()) <= {"shiftjax", "numpy"}
