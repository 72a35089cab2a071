"""Where examples lie, and which of a batch are a host's."""

import jax
import numpy as np
import pytest

from train.config import Data
from train.data.image_set import ImageSet
from train.data.placement import host_share, is_resident, training_items
from train.data.sources import load_source
from train.data.stream import Order


@pytest.fixture
def pretend_hosts(monkeypatch):
    """Returns a function that makes this process one of several."""

    def pretend(index: int, count: int) -> None:
        monkeypatch.setattr(jax, "process_index", lambda: index)
        monkeypatch.setattr(jax, "process_count", lambda: count)

    return pretend


def test_hosts_share_each_batch(pretend_hosts):
    indices = np.arange(24).reshape(3, 8)
    shares = []
    for index in range(4):
        pretend_hosts(index, 4)
        shares.append(host_share(indices))
    assert [share.shape for share in shares] == [(3, 2)] * 4
    np.testing.assert_array_equal(np.concatenate(shares, 1), indices)


def test_examples_of_a_balanced_step_have_their_places_on_any_number_of_hosts(
    pretend_hosts,
):
    order = Order(40, 8, seed=0, classes=np.array([0] * 39 + [1]))
    whole = training_items(order, range(3, 5), None, 2)
    assert whole["place"].tolist() == [list(range(8))] * 2
    shares = []
    for index in range(4):
        pretend_hosts(index, 4)
        shares.append(training_items(order, range(3, 5), None, 2))
    for name, wanted in whole.items():
        np.testing.assert_array_equal(
            np.concatenate([share[name] for share in shares], 1), wanted
        )


def test_examples_of_other_steps_are_told_apart_by_their_positions(pretend_hosts):
    """By which runs have been augmented before."""
    item = training_items(Order(40, 8, seed=0), range(3, 5), None, 2)
    assert list(item) == ["index"]


def test_a_single_host_has_all():
    indices = np.arange(24).reshape(3, 8)
    np.testing.assert_array_equal(host_share(indices), indices)


def test_a_set_is_resident_up_to_its_bytes():
    size = 41 * 4 * 4 * 3
    images = np.zeros((41, 4, 4, 3), np.uint8)
    examples = ImageSet(images, np.zeros(41, np.int32), ("a", "b"))
    assert is_resident(examples, Data(resident_bytes=size))
    assert not is_resident(examples, Data(resident_bytes=size - 1))


def test_encoded_examples_are_never_resident():
    assert not is_resident(load_source("fake:2", "train"), Data())
