"""The releases: which weights there are, what is known of them, and where they are.

A folder of releases holds one safetensors file for each, and `manifest.json`, which
says what each file must be (size, sha256) and what came out of the runs that made it.
The folder is, in this order: what is given, the environment's SHIFTJAX_CHECKPOINTS, the
one that is part of this package. "hf:owner/name" is a repository of the Hugging Face
hub, whose files are fetched when they are needed.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shiftjax.errors import InputError, MissingFileError, unknown_name

FILE = "manifest.json"
ENVIRONMENT = "SHIFTJAX_CHECKPOINTS"
HUB = "hf:"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run of a release, and what it gave.

    Attributes:
      seed: decides initial parameters, order of examples and augmentation.
      test: means over the test set, read once: "loss", "top1", of more than ten classes
        "top5".
      validation: means over the validation split, where one was held out.
      epochs: how often each example was seen.
      hours: how long it took.
      hardware: what it ran on.
      command: what made it.
      commit: of the project, when it ran.
      log: its metrics.jsonl, compressed: a file beside the manifest.
    """

    seed: int
    test: Mapping[str, float]
    validation: Mapping[str, float] = dataclasses.field(default_factory=dict)
    epochs: float = 0.0
    hours: float = 0.0
    hardware: str = ""
    command: str = ""
    commit: str = ""
    log: str = ""


@dataclasses.dataclass(frozen=True)
class Release:
    """One file of weights, as the manifest describes it.

    Attributes:
      name: "architecture.tag".
      file: its name in the folder.
      size: of the file, in bytes.
      sha256: of the file, in hexadecimal digits.
      params: number of parameters.
      macs: multiply-adds for one image.
      dataset: what it was trained on.
      recipe: how.
      runs: of the same recipe with one seed each; the weights are those of the first.
      logits: of the pictures in `shiftjax.image_files`, by name; see
        `shiftjax.apps.verify.sample_logits`.
    """

    name: str
    file: str
    size: int
    sha256: str
    params: int
    macs: int
    dataset: str
    recipe: str
    runs: tuple[Run, ...]
    logits: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """The part of the name that `create_model` knows."""
        return self.name.partition(".")[0]

    def mean(self, metric: str = "top1") -> float:
        """Mean over the runs of a test metric."""
        return float(np.mean([run.test[metric] for run in self.runs]))

    def spread(self, metric: str = "top1") -> float | None:
        """Standard deviation over the runs of a test metric; None of fewer than two."""
        if len(self.runs) < 2:
            return None
        return float(np.std([run.test[metric] for run in self.runs], ddof=1))


def default_directory() -> str:
    """Returns where releases are looked for if no folder is given."""
    package = Path(__file__).parents[1]
    shipped = package / "checkpoints"  # in a wheel; in a checkout it is beside it
    beside = package.parent / "checkpoints"
    return os.environ.get(ENVIRONMENT) or str(shipped if shipped.is_dir() else beside)


def locate(file: str, directory: str | os.PathLike | None = None) -> Path:
    """Returns the path of a file of a folder of releases, fetched if need be.

    Raises:
      MissingFileError: if it is not there.
    """
    folder = os.fspath(directory or default_directory())
    if folder.startswith(HUB):
        from shiftjax.releases.hub import fetch

        return fetch(folder.removeprefix(HUB), file)
    path = Path(folder).expanduser() / file
    if not path.is_file():
        raise MissingFileError(
            f"{path} is not there: give directory=, or set {ENVIRONMENT}, to the "
            'folder that holds it (or "hf:owner/name")'
        )
    return path


def read(directory: str | os.PathLike | None = None) -> dict[str, Release]:
    """Reads the manifest of a folder.

    Args:
      directory: the folder, or "hf:owner/name"; None for the default one.

    Returns:
      The releases by name, sorted.

    Raises:
      MissingFileError: if the folder has no manifest.
      InputError: if it cannot be read.
    """
    path = locate(FILE, directory)
    stat = path.stat()
    return dict(_parsed(path, stat.st_mtime_ns, stat.st_size))


def names(directory: str | os.PathLike | None = None) -> list[str]:
    """Lists the releases of a folder; none where there is no manifest."""
    try:
        return list(read(directory))
    except MissingFileError:
        return []


def find(name: str, directory: str | os.PathLike | None = None) -> Release:
    """Returns the release of a name.

    Raises:
      UnknownNameError: if there is none; the nearest are named.
    """
    releases = read(directory)
    if name not in releases:
        raise unknown_name("weights", name, releases)
    return releases[name]


def write(directory: Path, releases: Mapping[str, Release]) -> None:
    """Writes the manifest of a folder, whole or not at all."""
    entries = [dataclasses.asdict(releases[name]) for name in sorted(releases)]
    text = json.dumps({"format": FORMAT, "releases": entries}, indent=1)
    partial = directory / f"{FILE}.partial"
    partial.write_text(text + "\n")
    partial.replace(directory / FILE)


def verified(release: Release, directory: str | os.PathLike | None = None) -> bytes:
    """Reads the file of a release.

    Raises:
      MissingFileError: if it is not there.
      InputError: if it is not the file that was released.
    """
    path = locate(release.file, directory)
    data = path.read_bytes()
    if len(data) != release.size:
        raise InputError(
            f"{path} has {len(data):,} bytes, the release {release.size:,}: it was cut "
            "or changed; copy it again"
        )
    if (digest := hashlib.sha256(data).hexdigest()) != release.sha256:
        raise InputError(
            f"{path} is damaged: its sha256 is {digest[:12]}..., the release's "
            f"{release.sha256[:12]}...; copy it again"
        )
    return data


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, changed: int, size: int) -> Mapping[str, Release]:
    """Reads a manifest, once for as long as the file stays the same."""
    del changed, size
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise InputError(
                f"{path} has format {content['format']}; this version of shiftjax "
                f"reads {FORMAT}"
            )
        releases = [_release(entry) for entry in content["releases"]]
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no manifest of releases: {error!r}") from error
    return {release.name: release for release in releases}


def _release(entry: dict[str, Any]) -> Release:
    fields: dict[str, Any] = dict(entry)
    fields["runs"] = tuple(Run(**run) for run in entry["runs"])
    return Release(**fields)
