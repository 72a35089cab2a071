"""The files of a run: their places, and a disk that is full."""

import os
from pathlib import Path

import pytest

from shiftjax.errors import InputError, named_if_denied
from train import files


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """A shell leaves that of --workdir=~/run as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert os.fspath(files.folder("~/run")) == str(tmp_path / "run")
    assert os.fspath(files.folder("run/~")) == "run/~"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_full_disk_is_said_with_the_file(tmp_path):
    """The system names no file when it refuses a write, unlike an opening."""
    (tmp_path / "sample.png.partial").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"/sample\.png: No space"), named_if_denied():
        files.write(files.folder(tmp_path) / "sample.png", b"pixels")
