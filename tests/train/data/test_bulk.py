"""Room for many pictures, and work on all of them."""

import os

import pytest

from shiftjax.errors import InputError
from train.data import bulk


def test_more_than_the_memory_is_refused_before_it_is_touched():
    with pytest.raises(
        InputError, match=r"need 1505280 GB and this machine has \d+ GB"
    ):
        bulk.allocate(10**10, (224, 224, 3))


@pytest.mark.parametrize(
    ("files", "wanted"), [(["4096\n"], 4096), (["max\n", "8192"], 8192), ([], None)]
)
def test_the_limit_of_a_container_counts(tmp_path, monkeypatch, files, wanted):
    paths = [tmp_path / name for name in ("version2", "version1")]
    for path, text in zip(paths, files, strict=False):
        path.write_text(text)
    monkeypatch.setattr(bulk, "LIMITS", paths)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert bulk.memory() == (wanted or physical)


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
