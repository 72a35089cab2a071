"""Images per second of inference, measured by `python -m benchmarks inference`."""

import dataclasses
import json
import statistics
from collections.abc import Mapping
from pathlib import Path

from shiftjax.errors import InputError
from shiftjax.releases.manifest import Release

FILE = "inference-cpu.json"
OURS = "shiftjax"  # the row of each table


@dataclasses.dataclass(frozen=True)
class Speeds:
    """The inference speeds in a benchmark file, at its largest batch in float32.

    Attributes:
      where: batch, dtype, machine and command, in words.
      images_per_second: the speed by architecture, parameters and multiply-adds.
    """

    where: str
    images_per_second: Mapping[tuple[str, int, int], float]

    def find(self, release: Release) -> float | None:
        """Returns the speed of a release's network; None if it was not measured."""
        key = release.architecture, release.params, release.macs
        return self.images_per_second.get(key)


def read_speeds(folder: Path) -> Speeds | None:
    """Reads the speeds in a folder of benchmarks; None if it has no file of them.

    Args:
      folder: the folder of benchmark results.

    Raises:
      InputError: if the file exists and is not a benchmark report.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text())
        machine = report["machine"]
        found = {}
        tables = [t for t in report["tables"] if t["facts"]["dtype"] == "float32"]
        batch = max((t["facts"]["batch_size"] for t in tables), default=0)
        for table in tables:
            for row in table["rows"]:
                if row["name"] == OURS and table["facts"]["batch_size"] == batch:
                    costs = row["facts"]["params"], row["facts"]["macs"]
                    seconds = statistics.median(row["times"])
                    found[table["facts"]["model"], *costs] = batch / seconds
        where = (
            f"{batch} images, float32, on {machine['cores']} cores of "
            f"{machine['cpu']}: `{report['command']}`"
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a benchmark report: {error!r}") from error
    return Speeds(where, found) if found else None
