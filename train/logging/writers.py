"""Writers of the log beside `metrics.jsonl`, which `--log-to` names.

Each takes the lines of the log one by one. What it writes can be made again from
`metrics.jsonl`, so a resumed run gives it the lines that are kept.
"""

import csv
import dataclasses
import importlib.util
import io
import json
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from shiftjax.errors import InputError, unknown_name
from train import config as config_file
from train import files

Record = dict[str, Any]

CSV_FILE = "metrics.csv"
WANDB_ID_FILE = "wandb_id.txt"
FLUSH_SECONDS = 10  # between two writes of events of training to the disk
_PLACES = ("step", "epoch", "split")


class LogWriter(Protocol):
    """A destination of the log."""

    def write(self, record: Record) -> None:
        """Writes a line.

        Args:
          record: numbers and strings by name, including "step" and "split". A number
            that is not finite is NaN.

        Raises:
          OSError: if it cannot be written.
        """

    def close(self) -> None:
        """Writes what is left, and ends.

        Raises:
          OSError: if it cannot be written.
        """


class TensorBoardWriter:
    """Writes TensorBoard events to `tensorboard/`, as `split/name`.

    Args:
      workdir: the local folder of the run.
      records: the lines that are kept; they are in older files.
      step: the step at which the run resumes; TensorBoard hides older events after it.
    """

    def __init__(
        self, workdir: files.Folder, records: Sequence[Record], step: int
    ) -> None:
        # Not SummaryWriter: a full disk ends its thread, for which it waits for ever.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        del records
        folder = workdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        # Without a suffix, files of the same second would share a name.
        self._events = EventsWriter(str(folder / "events"), f".{step + 1}")
        self._protos: Any = event_pb2  # whose classes are made when it is imported
        log = self._protos.SessionLog
        self._add(step + 1, session_log=log(status=log.START))
        self._flushed = time.monotonic()

    def write(self, record: Record) -> None:
        """Adds the numbers of a line."""
        from tensorboardX.summary import scalar

        for name, value in _numbers(record):
            self._add(record["step"], summary=scalar(name, value))
        late = time.monotonic() - self._flushed >= FLUSH_SECONDS
        if late or record["split"] != "train":  # the next line may be far away
            self._events.flush()
            self._flushed = time.monotonic()

    def _add(self, step: int, **content: Any) -> None:
        """Adds an event."""
        event = self._protos.Event(wall_time=time.time(), step=step, **content)
        self._events.write_event(event)

    def close(self) -> None:
        """Closes the file."""
        self._events.close()


class CsvWriter:
    """Writes `metrics.csv`: a row for each line, with an empty cell for what it lacks.

    The columns keep their order. A new name becomes the last column, for which the file
    is written anew; this happens a few times at the start of a run.

    Args:
      workdir: the folder of the run.
      records: the lines that are kept, with which the file begins.
      step: the step at which the run resumes.

    Raises:
      OSError: if the file cannot be written.
    """

    def __init__(
        self, workdir: files.Folder, records: Sequence[Record], step: int
    ) -> None:
        del step
        self._path = workdir / CSV_FILE
        self._records = list(records)
        self._columns = list(_PLACES)
        self._add_columns(name for record in records for name in record)
        self._lines = files.Lines(self._path, self._table())

    def write(self, record: Record) -> None:
        """Adds a row."""
        self._records.append(record)
        if record.keys() <= set(self._columns):
            self._lines.add(self._row(record))
            return
        self._add_columns(record)
        self._lines.close()
        self._lines = files.Lines(self._path, self._table())

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()

    def _add_columns(self, names: Iterable[str]) -> None:
        self._columns = list(dict.fromkeys([*self._columns, *names]))

    def _table(self) -> list[str]:
        """Formats the header and all rows."""
        header = dict(zip(self._columns, self._columns, strict=True))
        return [self._row(record) for record in [header, *self._records]]

    def _row(self, record: Record) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="").writerow(record)
        return text.getvalue()


class WandbWriter:
    """Writes a run of Weights & Biases, which a resumed run continues.

    The project has the name of the folder above the run's, unless WANDB_PROJECT is set,
    and the run that of its folder. The id of the run is kept in `wandb_id.txt`. Steps
    that were logged before the run was resumed are ignored by Weights & Biases.

    Args:
      workdir: the folder of the run.
      records: the lines that are kept, which a new run of Weights & Biases gets.
      step: the step at which the run resumes.

    Raises:
      InputError: if it cannot start.
      OSError: if the id cannot be written.
    """

    def __init__(
        self, workdir: files.Folder, records: Sequence[Record], step: int
    ) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        del step
        *_, project, name = ("", *Path(os.path.abspath(workdir)).parts)
        path = workdir / WANDB_ID_FILE
        known = path.read_text().strip() if path.exists() else ""
        number = known or secrets.token_hex(4)
        options = workdir / config_file.FILE
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or _allowed(project),
                name=name,
                id=number,
                resume="allow",
                dir=None if files.in_store(workdir) else str(workdir),
                config=json.loads(options.read_text()) if options.exists() else {},
            )
        except wandb.Error as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"--log-to wandb cannot start: {reason}") from error
        if not known:
            files.write(path, number.encode())
            for record in records:
                self.write(record)

    def write(self, record: Record) -> None:
        """Logs the numbers of a line, as `split/name`, and its epoch."""
        epoch = {"epoch": record["epoch"]} if "epoch" in record else {}
        self._run.log({**dict(_numbers(record)), **epoch}, step=record["step"])

    def close(self) -> None:
        """Uploads what is left."""
        self._run.finish()


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of writer.

    Attributes:
      open: makes the writer of a run, from its folder, the lines that are kept and the
        step at which the run resumes, -1 for a new run.
      package: the package that it imports; None if it needs no other.
      extra: the extra of shiftjax that installs this package.
      is_local: True if it writes to local folders only.
    """

    open: Callable[[files.Folder, Sequence[Record], int], LogWriter]
    package: str | None = None
    extra: str = ""
    is_local: bool = False


WRITERS = {
    "tensorboard": Kind(TensorBoardWriter, "tensorboardX", "train", is_local=True),
    "csv": Kind(CsvWriter),
    "wandb": Kind(WandbWriter, "wandb", "wandb"),
}


def check_writers(names: Iterable[str]) -> None:
    """Checks the writers of `--log-to` before a run begins.

    Raises:
      UnknownNameError: if one does not exist.
      InputError: if the package of one is not installed.
    """
    for name in names:
        if name not in WRITERS:
            raise unknown_name("--log-to", name, WRITERS)
        kind = WRITERS[name]
        if kind.package and not _is_installed(kind.package):
            raise InputError(
                f"--log-to {name} needs the package {kind.package}: pip install "
                f"'shiftjax[{kind.extra}]'"
            )


def open_writers(
    names: Iterable[str], workdir: files.Folder, records: Sequence[Record], step: int
) -> Iterator[LogWriter]:
    """Opens the writers of a run, one by one, without the local ones in a store.

    Args:
      names: keys of `WRITERS`.
      workdir: the folder of the run.
      records: the lines that are kept.
      step: the step at which the run resumes, -1 for a new run.
    """
    for name in dict.fromkeys(names):
        kind = WRITERS[name]
        if not (kind.is_local and files.in_store(workdir)):
            yield kind.open(workdir, records, step)


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # not merely a folder `wandb/`


def _numbers(record: Record) -> list[tuple[str, float]]:
    """Returns the finite numbers of a line but for its place, by `split/name`."""
    return [
        (f"{record['split']}/{name}", value)
        for name, value in record.items()
        if name not in _PLACES
        and isinstance(value, float | int)
        and math.isfinite(value)
    ]


def _allowed(project: str) -> str:
    """Replaces the characters that Weights & Biases does not allow in a project."""
    return re.sub(r"[/\\#?%:]", "-", project).strip("-") or "shiftjax"
