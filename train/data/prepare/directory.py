"""Creates the directory of a data set atomically, if its disk has space."""

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from shiftjax.errors import InputError


def check_space(folder: Path, needed: int) -> None:
    """Creates a directory, and checks that its disk has space.

    Args:
      folder: the directory.
      needed: the number of bytes.

    Raises:
      InputError: if it cannot be created, or its disk has too little space.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"data_dir {folder} cannot be written: {e}") from e
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder}: {_size(free)} are free on its disk and {_size(needed)} are "
            "needed; make room or name another data_dir"
        )


def _size(size: int) -> str:
    """Formats a number of bytes."""
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


@contextlib.contextmanager
def locked(target: Path, console: Console) -> Iterator[None]:
    """Waits for other processes in this context, also on other machines.

    Args:
      target: the directory of the data set, `data_dir/NAME/VERSION`.
      console: the console for a line if it has to wait.

    Yields:
      None.
    """
    with (target.parents[1] / f".{target.parent.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"waiting: another process prepares {target.parent.name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield  # locked until the file is closed


@contextlib.contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """Makes a temporary directory on the disk of a data set, removed at the end.

    Args:
      target: the directory of the data set, `data_dir/NAME/VERSION`.

    Yields:
      The temporary directory.
    """
    root = target.parents[1]
    with tempfile.TemporaryDirectory(
        dir=root, prefix=f".{target.parent.name}-"
    ) as name:
        yield Path(name)


def move_to_place(written: Path, target: Path) -> None:
    """Moves a finished directory to its place.

    Args:
      written: the directory of the finished data set.
      target: its place, `data_dir/NAME/VERSION`.
    """
    target.parent.mkdir(exist_ok=True)
    try:
        written.rename(target)
    except OSError:
        # Another process may have finished first; its records are the same.
        if not target.exists():
            raise
