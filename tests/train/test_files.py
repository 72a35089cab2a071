"""The files of a run."""

import os

from train import files


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """A shell leaves that of --workdir=~/run as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert os.fspath(files.folder("~/run")) == str(tmp_path / "run")
    assert os.fspath(files.folder("run/~")) == "run/~"
