"""The cache: the same pictures, whatever happens to its files."""

import json
import logging
import os

import numpy as np
import pytest

from train.data import cache
from train.data.image_set import ImageSet

IDENTITY = {"name": "some/set-train", "files": [["a", 1, 2]]}


@pytest.fixture
def pictures(noise):
    labels = np.arange(50, dtype=np.int32) % 3
    return ImageSet(noise(50, 8, 8, 3), labels, ("a", "b", "ü"))


class Build:
    """Makes the pictures and counts how often."""

    def __init__(self, pictures):
        self.pictures, self.calls = pictures, 0

    def __call__(self):
        self.calls += 1
        return self.pictures


@pytest.fixture
def build(pictures):
    return Build(pictures)


def check(received, expected):
    assert np.array_equal(received.images, expected.images)
    assert np.array_equal(received.labels, expected.labels)
    assert received.images.dtype == np.uint8
    assert received.labels.dtype == np.int32
    assert received.class_names == expected.class_names


def entry():
    (folder,) = (cache.cache_directory() / "data").iterdir()
    return folder


def test_the_second_time_nothing_is_built(build, pictures):
    check(cache.cached(IDENTITY, build), pictures)
    check(cache.cached(dict(reversed(IDENTITY.items())), build), pictures)
    assert build.calls == 1
    assert entry().name.startswith("some-set-train-")


def test_another_identity_is_another_entry(build):
    cache.cached(IDENTITY, build)
    cache.cached(IDENTITY | {"files": [["a", 1, 3]]}, build)
    assert build.calls == 2


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap_labels(path):
    np.save(path, np.load(path)[::-1])


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("images.npy", flip),
        ("labels.npy", flip),
        ("labels.npy", swap_labels),
        ("images.npy", lambda path: os.truncate(path, 1000)),
        ("images.npy", lambda path: os.truncate(path, 0)),
        ("images.npy", lambda path: path.write_bytes(b"\x93NUMPY\x01\0\xff\xff{")),
        ("labels.npy", lambda path: path.unlink()),
        ("about.json", lambda path: path.write_text("{")),
        ("about.json", lambda path: path.write_text("{}")),
        ("about.json", lambda path: path.unlink()),
    ],
)
def test_a_damaged_entry_is_built_anew(build, pictures, file, damage):
    cache.cached(IDENTITY, build)
    damage(entry() / file)
    check(cache.cached(IDENTITY, build), pictures)
    assert build.calls == 2
    check(cache.cached(IDENTITY, build), pictures)
    assert build.calls == 2


def test_the_folder_of_the_cache(monkeypatch):
    monkeypatch.setenv("SHIFTJAX_CACHE", "~/somewhere")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(cache.cache_directory()) == "/home/me/somewhere"
    monkeypatch.delenv("SHIFTJAX_CACHE")
    assert str(cache.cache_directory()) == "/home/me/.cache/shiftjax"


def test_a_cache_that_cannot_be_written_costs_only_time(
    build, pictures, tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SHIFTJAX_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        check(cache.cached(IDENTITY, build), pictures)
    assert "cannot write the cache entry" in caplog.text


def test_a_full_disk_leaves_nothing_half_written(build, pictures, monkeypatch):
    save = np.save

    def fail(path, array):
        if path.name == "labels.npy":
            raise OSError(28, "No space left on device")
        save(path, array)

    monkeypatch.setattr(np, "save", fail)
    check(cache.cached(IDENTITY, build), pictures)
    assert not list((cache.cache_directory() / "data").iterdir())


def test_what_was_cached_can_be_read_by_people(build):
    cache.cached(IDENTITY, build)
    about = json.loads((entry() / "about.json").read_text())
    assert about["identity"]["name"] == "some/set-train"
