"""Releases on the Hugging Face hub, by its own client, from its cache."""

import shutil
import sys

import pytest

from shiftjax import InputError, MissingFileError
from shiftjax.releases import manifest

constants = pytest.importorskip(
    "huggingface_hub.constants", reason="the hub's client is an extra"
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXT = '{"format": 1, "releases": []}'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The client's cache, with one file of one repository, and no network."""
    snapshot = tmp_path / "models--owner--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / manifest.FILE).write_text(TEXT)
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.mark.parametrize("folder", ["hf:owner/name", f"hf:owner/name@{COMMIT}"])
def test_files_come_from_the_hub(cache, folder, monkeypatch):
    path = manifest.locate(manifest.FILE, folder)
    assert path.read_text() == TEXT
    assert manifest.read(folder) == {}
    monkeypatch.setenv(manifest.ENVIRONMENT, folder)
    assert manifest.read() == {}


@pytest.mark.parametrize("folder", ["hf:owner/other", "hf:owner/name@v2"])
def test_what_is_neither_there_nor_in_the_cache(cache, folder):
    with pytest.raises(MissingFileError, match="neither on the Hub nor in the local"):
        manifest.locate(manifest.FILE, folder)


def test_a_file_that_the_repository_has_not(cache):
    shutil.rmtree(cache / "models--owner--name")
    with pytest.raises(MissingFileError, match=r"manifest\.json of hf:owner/name"):
        manifest.locate(manifest.FILE, "hf:owner/name")


@pytest.mark.parametrize("name", ["a/b/c", "-/-", "a b/c"])
def test_names_that_are_none(cache, name):
    with pytest.raises(InputError, match="must be hf:owner/name"):
        manifest.locate(manifest.FILE, f"hf:{name}")


def test_without_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'shiftjax\[hub\]'"):
        manifest.locate(manifest.FILE, "hf:owner/name")
