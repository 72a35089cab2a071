"""A cache of decoded images on disk, which saves seconds of decoding CIFAR.

An entry is a folder with two arrays and a description, named by a digest of everything
that the arrays depend on. It is written to a temporary folder and renamed, so it is
never partial. Checksums are compared at every read, and damaged entries are rebuilt.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from shiftjax.errors import InputError
from train.data.image_set import ImageSet

_LOG = logging.getLogger(__name__)
_FORMAT = 1  # to be increased when the same images decode to other numbers


def cache_directory() -> Path:
    """Returns the folder of the cache: `$SHIFTJAX_CACHE`, or `~/.cache/shiftjax`."""
    return Path(os.environ.get("SHIFTJAX_CACHE") or "~/.cache/shiftjax").expanduser()


def cached(identity: Mapping[str, object], build: Callable[[], ImageSet]) -> ImageSet:
    """Reads images and labels from the cache, or builds them and writes them to it.

    A cache that cannot be read or written is not an error; it only costs time.

    Args:
      identity: everything that the examples depend on, as JSON values; the name of
        the entry starts with `identity["name"]`.
      build: called without arguments; returns the examples.

    Returns:
      The examples.
    """
    text = json.dumps({"format": _FORMAT, **identity}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:20]
    name = re.sub(r"[^\w.]+", "-", str(identity["name"]))
    entry = cache_directory() / "data" / f"{name}-{digest}"
    try:
        return _read(entry)
    except FileNotFoundError:
        pass
    # A damaged array's header may raise almost anything.
    except Exception as e:
        _LOG.warning("cache entry %s is damaged (%s) and is built anew", entry, e)
    examples = build()
    try:
        _write(entry, examples, text)
    except OSError as e:
        _LOG.warning("cannot write the cache entry %s: %s", entry, e)
    return examples


def _read(entry: Path) -> ImageSet:
    """Reads an entry and verifies its checksums."""
    about = json.loads((entry / "about.json").read_text())
    arrays = {}
    for key in ("images", "labels"):
        arrays[key] = np.load(entry / f"{key}.npy")
        if _checksum(arrays[key]) != about["crc32"][key]:
            raise InputError(f"{key}.npy does not have its checksum")
    return ImageSet(**arrays, class_names=tuple(about["class_names"]))


def _write(entry: Path, examples: ImageSet, identity: str) -> None:
    """Writes an entry to a temporary folder and renames it."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".writing-"))
    try:
        arrays = {"images": examples.images, "labels": examples.labels}
        for key, array in arrays.items():
            np.save(scratch / f"{key}.npy", array)
        about = {
            "identity": json.loads(identity),
            "class_names": examples.class_names,
            "crc32": {key: _checksum(array) for key, array in arrays.items()},
        }
        (scratch / "about.json").write_text(json.dumps(about, indent=1))
        if entry.exists():  # damaged, or just written by another process
            shutil.rmtree(entry, ignore_errors=True)
        os.replace(scratch, entry)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _checksum(array: np.ndarray) -> int:
    """Returns the CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
