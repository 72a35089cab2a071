"""An object store below `gs://`, of files in a local folder.

As in a real store, nothing can be appended or renamed, and there are no empty folders.
Orbax writes arrays by tensorstore, whose driver for Google Cloud Storage is replaced by
the one for files.
"""

import importlib.util
import os
import shutil
from pathlib import Path

from etils.epath import backend, gpath
from orbax.checkpoint._src.path import gcs_utils


class Store(backend._OsPathBackend):
    """A backend of epath that refuses what an object store cannot do.

    The methods that no run calls are not implemented.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def local(self, path: object) -> str:
        name = os.fspath(path)
        assert name.startswith("gs://"), name
        return os.path.join(self.root, name.removeprefix("gs://"))

    def open(self, path, mode):
        assert mode.strip("bt") in ("r", "w"), f"an object cannot be opened by {mode!r}"
        if "w" in mode:
            os.makedirs(os.path.dirname(self.local(path)), exist_ok=True)
        return super().open(self.local(path), mode)

    def exists(self, path):
        name = self.local(path)
        return os.path.isfile(name) or self.isdir(path)

    def isdir(self, path):
        return any(files for _, _, files in os.walk(self.local(path)))

    def listdir(self, path):
        if not self.isdir(path):
            raise FileNotFoundError(path)
        names = super().listdir(self.local(path))
        return [name for name in names if self.exists(os.path.join(path, name))]

    def glob(self, path):
        found = super().glob(self.local(path))
        return [f"gs://{os.path.relpath(name, self.root)}" for name in found]

    def walk(self, top, *, top_down=True, on_error=None):
        raise NotImplementedError

    def makedirs(self, path, *, exist_ok=False, mode=None):
        """Does nothing: a store has no folders."""

    def mkdir(self, path, *, exist_ok=False, mode=None):
        """Does nothing: a store has no folders."""

    def rmtree(self, path):
        if not os.path.isdir(self.local(path)):
            raise FileNotFoundError(path)
        shutil.rmtree(self.local(path))

    def remove(self, path):
        os.remove(self.local(path))

    def rename(self, path, dst):
        raise AssertionError(f"an object cannot be renamed: {path}")

    def replace(self, path, dst):
        raise AssertionError(f"an object cannot be renamed: {path}")

    def copy(self, path, dst, overwrite):
        raise NotImplementedError

    def stat(self, path):
        return super().stat(self.local(path))


def mount(monkeypatch, root: Path) -> Store:
    """Puts a store below `gs://`, as if gcsfs were installed."""
    store, find = Store(root), importlib.util.find_spec

    def find_spec(name, package=None):
        return "found" if name == "gcsfs" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", store)
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setattr(
        gcs_utils,
        "get_kvstore_for_gcs",
        lambda path: {"driver": "file", "path": store.local(path)},
    )
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda _: False)
    return store
