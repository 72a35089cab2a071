"""Room for many pictures, and work on all of them."""

import pytest

from shiftjax.errors import InputError
from train.data import bulk


def test_more_than_the_memory_is_refused_before_it_is_touched():
    with pytest.raises(
        InputError, match=r"need 1505280 GB and this machine has \d+ GB"
    ):
        bulk.allocate(10**10, (224, 224, 3))


def test_all_examples_are_worked_on_once_and_errors_come_out():
    seen = []
    bulk.for_chunks(1000, lambda chunk: seen.extend(chunk))
    assert sorted(seen) == list(range(1000))
    bulk.for_chunks(0, lambda chunk: pytest.fail("nothing to do"))

    def fail(chunk):
        if 600 in chunk:
            raise InputError("here")

    with pytest.raises(InputError, match="here"):
        bulk.for_chunks(1000, fail)
