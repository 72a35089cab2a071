"""Parameters that are chosen by their paths: frozen, or with rates of their own."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from shiftjax import InputError
from train.config import Optimizer
from train.optimizer import make_optimizer, muon_labels

# --- what is frozen -----------------------------------------------------------------

PARAMS = {
    "stem": {"conv": {"kernel": np.full((2, 2), 2.0)}, "norm": {"scale": np.ones(2)}},
    "stage1_block01": {"kernel": np.full((2, 2), 3.0)},
    "head": {"kernel": np.full((2, 2), 4.0), "bias": np.full(2, 5.0)},
}


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        (["stem"], {"stem/conv/kernel", "stem/norm/scale"}),
        (["stem/conv", "stage*"], {"stem/conv/kernel", "stage1_block01/kernel"}),
        (["*/kernel"], {"stem/conv/kernel", "stage1_block01/kernel", "head/kernel"}),
        (["head/bias"], {"head/bias"}),
    ],
)
def test_frozen_parameters_stay_and_others_move_as_ever(patterns, frozen):
    """With weight decay, which would move them even without a gradient."""
    options = Optimizer(weight_decay=0.1, freeze=tuple(patterns))
    moved = make_optimizer(Optimizer(weight_decay=0.1), lambda step: 0.5)
    kept = make_optimizer(options, lambda step: 0.5)
    gradient = jax.tree.map(np.ones_like, PARAMS)
    expected, _ = moved.update(gradient, moved.init(PARAMS), PARAMS)
    actual, _ = kept.update(gradient, kept.init(PARAMS), PARAMS)
    expected, actual = (flatten_dict(tree, sep="/") for tree in (expected, actual))
    for path, update in actual.items():
        wanted = 0 if path in frozen else expected[path]
        np.testing.assert_array_equal(update, wanted)
        assert np.any(expected[path])


def test_what_is_frozen_stays_also_with_muon():
    options = Optimizer("muon", freeze=("stage1_block01",))
    optimizer = make_optimizer(options, lambda step: 0.5)
    params = PARAMS | {"stage2_block01": {"kernel": np.eye(2)}}
    gradient = jax.tree.map(np.ones_like, params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    moved = {path for path, x in flatten_dict(updates, sep="/").items() if np.any(x)}
    assert moved == set(flatten_dict(params, sep="/")) - {"stage1_block01/kernel"}


def test_a_pattern_that_freezes_nothing_is_named():
    optimizer = make_optimizer(Optimizer(freeze=("sten",)), lambda step: 0.5)
    with pytest.raises(InputError, match="freeze 'sten': did you mean 'stem'"):
        optimizer.init(PARAMS)


# --- learned displacements ----------------------------------------------------------

SHIFTED = {
    "block": {
        "shift": {"offsets": np.array([(3.0, -4.0), (0.0, 0.0), (0.5, 2.0)])},
        "expand": {"kernel": np.full((2, 2), 2.0)},
    },
    "head": {"bias": np.full(2, 5.0)},
}


def updates_of(options: Optimizer, gradient: dict) -> dict:
    optimizer = make_optimizer(options, lambda step: 0.5)
    updates, _ = optimizer.update(gradient, optimizer.init(SHIFTED), SHIFTED)
    return flatten_dict(updates, sep="/")


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_rate_by_path_multiplies_the_learning_rate(kind):
    """Of several patterns the last one counts, also beside frozen parameters."""
    gradient = jax.tree.map(np.ones_like, SHIFTED)
    plain = updates_of(Optimizer(kind, weight_decay=0.1), gradient)
    rates = {"block": 4.0, "*/offsets": 0.01}
    options = Optimizer(kind, weight_decay=0.1, rates=rates, freeze=("head",))
    factors = {
        "block/shift/offsets": 0.01,
        "block/expand/kernel": 4.0,
        "head/bias": 0.0,
    }
    for path, update in updates_of(options, gradient).items():
        np.testing.assert_allclose(update, factors[path] * plain[path], rtol=1e-6)


def test_a_rate_of_no_parameter_is_named():
    options = Optimizer(rates={"heads": 0.01})
    with pytest.raises(
        InputError, match="a rate of its own 'heads': did you mean 'head'"
    ):
        updates_of(options, SHIFTED)


def test_gradients_of_displacements_are_divided_by_their_length():
    """Lengths 5, 0 and 13 by hand; displacements are no kernels, so nothing decays."""
    gradient = jax.tree.map(np.ones_like, SHIFTED)
    offsets = np.array([(-3.0, 4.0), (0.0, 0.0), (5.0, 12.0)])
    gradient["block"]["shift"]["offsets"] = offsets
    options = Optimizer(
        "sgd", 0.0, False, weight_decay=0.1, decay="kernels", normalize_offsets=True
    )
    updates = updates_of(options, gradient)
    wanted = -0.5 * np.array([(-3 / 5, 4 / 5), (0, 0), (5 / 13, 12 / 13)])
    np.testing.assert_allclose(updates["block/shift/offsets"], wanted, rtol=1e-6)
    np.testing.assert_allclose(updates["head/bias"], -0.5)
    wanted = -0.5 * (1 + 0.1 * 2)
    np.testing.assert_allclose(updates["block/expand/kernel"], wanted, rtol=1e-6)


def test_muon_does_not_update_displacements():
    labels = muon_labels(SHIFTED)["block"]
    assert labels == {"shift": {"offsets": "sgd"}, "expand": {"kernel": "muon"}}
