"""The manifest of released weights: their files, digests and results.

A folder of releases holds one safetensors file for each release, and `manifest.json`.
The manifest records size and sha256 of each file, and the results of its training runs.
The folder is the given one, else the one of the environment variable
SHIFTJAX_CHECKPOINTS, else the one of this package. "hf:owner/name" is a repository of
the Hugging Face Hub, whose files are downloaded on use.
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

from shiftjax import json_fields as fields
from shiftjax.errors import InputError, MissingFileError, unknown_name
from shiftjax.files import user_path, write_atomically

FILE = "manifest.json"
ENVIRONMENT = "SHIFTJAX_CHECKPOINTS"
HUB = "hf:"
FORMAT = 1

_COUNT = fields.whole_number(0)
_HOURS = fields.number("a number of at least 0", lambda x: x >= 0)
_METRICS = fields.table("an object of numbers", fields.is_number)
_LOGITS = fields.table(
    "an object of lists of numbers",
    lambda x: isinstance(x, list) and x != [] and all(map(fields.is_finite, x)),
)
RELEASE = {
    "name": fields.NAME,
    "file": fields.FILE,
    "size": _COUNT,
    "sha256": fields.SHA256,
    "params": _COUNT,
    "macs": _COUNT,
    "dataset": fields.TEXT,
    "recipe": fields.TEXT,
    "runs": fields.sequence("a list of objects", lambda x: isinstance(x, dict)),
}
RUN = {"seed": _COUNT, "test": _METRICS}
RUN_OPTIONAL = {
    "validation": _METRICS,
    "epochs": _HOURS,
    "hours": _HOURS,
    "hardware": fields.TEXT,
    "command": fields.TEXT,
    "commit": fields.TEXT,
    "log": fields.FILE_OR_NONE,
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run of a release, and its results.

    Attributes:
      seed: seed of the initial params, the order of examples and the augmentation.
      test: metrics of the test set, which is read once. Of a classifier these are
        "loss", "top1" and, for more than ten classes, "top5".
      validation: the metrics of the validation split, if one was held out.
      epochs: number of passes over the training set.
      hours: duration of the run, in hours.
      hardware: hardware of the run.
      command: command line of the run.
      commit: commit of the project at the time of the run.
      log: the compressed metrics.jsonl of the run, a file next to the manifest.
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
      file: name of the file in the folder.
      size: size of the file, in bytes.
      sha256: digest of the file, in hexadecimal digits.
      params: number of parameters.
      macs: multiply-adds for one image.
      dataset: training set.
      recipe: name of the training recipe.
      runs: runs of the recipe with different seeds; the weights are those of the first.
      logits: logits of the sample images of `shiftjax.image_files`, by their names; see
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
        """Name of the network, for `create_model`."""
        return self.name.partition(".")[0]

    def mean(self, metric: str = "top1") -> float:
        """Returns the mean of a test metric over the runs."""
        return float(np.mean([run.test[metric] for run in self.runs]))

    def spread(self, metric: str = "top1") -> float | None:
        """Returns the standard deviation of a test metric over the runs.

        Args:
          metric: name of the metric.

        Returns:
          The sample standard deviation; None for fewer than two runs.
        """
        if len(self.runs) < 2:
            return None
        return float(np.std([run.test[metric] for run in self.runs], ddof=1))


def default_directory() -> str:
    """Returns the folder of releases that is used if none is given."""
    package = Path(__file__).parents[1]
    # A wheel contains the folder; in a checkout it is next to the package.
    shipped = package / "checkpoints"
    beside = package.parent / "checkpoints"
    return os.environ.get(ENVIRONMENT) or str(shipped if shipped.is_dir() else beside)


def locate(file: str, directory: str | os.PathLike | None = None) -> Path:
    """Returns the local path of a file of a folder of releases.

    Args:
      file: name of the file in the folder.
      directory: the folder, or "hf:owner/name"; None for the default one.

    Returns:
      The path; a file of the Hub is downloaded first.

    Raises:
      MissingFileError: if the file does not exist.
    """
    folder = os.fspath(directory or default_directory())
    if folder.startswith(HUB):
        from shiftjax.releases.hub import fetch

        return fetch(folder.removeprefix(HUB), file)
    path = user_path(folder) / file
    if not path.is_file():
        raise MissingFileError(
            f"{path} does not exist: set directory= or {ENVIRONMENT} to its folder, "
            'or to "hf:owner/name"'
        )
    return path


def read(directory: str | os.PathLike | None = None) -> dict[str, Release]:
    """Reads the manifest of a folder.

    Args:
      directory: the folder, or "hf:owner/name"; None for the default one.

    Returns:
      The releases by name, in sorted order.

    Raises:
      MissingFileError: if the folder has no manifest.
      InputError: if the manifest is invalid.
    """
    path = locate(FILE, directory)
    stat = path.stat()
    return dict(_parsed(path, stat.st_mtime_ns, stat.st_size))


def release_names(directory: str | os.PathLike | None = None) -> list[str]:
    """Lists the names of the releases of a folder; empty without a manifest."""
    try:
        return list(read(directory))
    except MissingFileError:
        return []


def find(name: str, directory: str | os.PathLike | None = None) -> Release:
    """Returns a release by name.

    Args:
      name: "architecture.tag".
      directory: the folder, or "hf:owner/name"; None for the default one.

    Raises:
      MissingFileError: if the folder has no manifest.
      UnknownNameError: if there is no such release; the message suggests the nearest.
    """
    releases = read(directory)
    if name not in releases:
        raise unknown_name("weights", name, releases)
    return releases[name]


def write_manifest(directory: Path, releases: Mapping[str, Release]) -> None:
    """Writes the manifest of a folder atomically.

    Args:
      directory: the folder.
      releases: all its releases, by name.

    Raises:
      InputError: if it cannot be written.
    """
    entries = [dataclasses.asdict(releases[name]) for name in sorted(releases)]
    text = json.dumps({"format": FORMAT, "releases": entries}, indent=1)
    write_atomically(directory / FILE, f"{text}\n".encode())


def verified(release: Release, directory: str | os.PathLike | None = None) -> bytes:
    """Reads the file of a release and compares its size and digest.

    Args:
      release: the release.
      directory: the folder, or "hf:owner/name"; None for the default one.

    Returns:
      The content of the file.

    Raises:
      MissingFileError: if the file does not exist.
      InputError: if size or digest are not those of the manifest.
    """
    path = locate(release.file, directory)
    data = path.read_bytes()
    if len(data) != release.size:
        raise InputError(
            f"{path} has {len(data):,} bytes, not the {release.size:,} of the release: "
            "it was cut or changed; copy it again"
        )
    if (digest := hashlib.sha256(data).hexdigest()) != release.sha256:
        raise InputError(
            f"{path} is damaged: its sha256 is {digest[:12]}..., not the "
            f"{release.sha256[:12]}... of the release; copy it again"
        )
    return data


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, changed: int, size: int) -> Mapping[str, Release]:
    """Parses a manifest; `changed` and `size` renew the cache with the file."""
    del changed, size
    try:
        content = json.loads(path.read_text())
        if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
            raise InputError(
                f"it has format {fields.shown(content['format'])}; this version of "
                f"shiftjax only reads {FORMAT}"
            )
        whole = {"format": _COUNT, "releases": fields.LIST}
        entries = fields.checked_fields(content, whole, {})["releases"]
        releases = [_release(entry) for entry in entries]
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not a valid manifest of releases: {error}"
        ) from error
    return {release.name: release for release in releases}


def _release(entry: Any) -> Release:
    """Builds a release from its entry in the manifest.

    Raises:
      InputError: if a field is missing, unknown or of another kind.
    """
    values = dict(fields.checked_fields(entry, RELEASE, {"logits": _LOGITS}))
    values["runs"] = tuple(
        Run(**fields.checked_fields(run, RUN, RUN_OPTIONAL)) for run in values["runs"]
    )
    return Release(**values)
