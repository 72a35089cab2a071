"""Downloads one file, with a progress bar, and resumes partial downloads."""

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from shiftjax.errors import InputError

_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte until the download fails


def download(
    url: str,
    path: Path,
    size: int,
    *,
    verify: Callable[[Path], None],
    console: Console,
) -> None:
    """Downloads a file of known size.

    The data are written to a `.part` file beside `path`, which a later call continues.
    `path` itself is created when the file is complete and verified.

    Args:
      url: the address of the file.
      path: the path to download to; its directory is created if needed.
      size: the expected number of bytes.
      verify: raises `InputError` if a file is not the expected one.
      console: the console for the progress bar.

    Raises:
      InputError: if the download failed, with the reason and a remedy.
    """
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        _fetch(url, part, size, console)
    except (OSError, http.client.HTTPException) as e:
        raise InputError(
            f"could not download {url} ({e}): try again, which resumes where it "
            "stopped, or download it by other means and name the file as the source"
        ) from e
    received = part.stat().st_size
    if received > size:
        part.unlink()
        raise InputError(f"{url}: more than the {size} bytes expected: another file")
    if received < size:
        raise InputError(
            f"{url}: the server stopped after {received} of {size} bytes: try again, "
            "which resumes from there"
        )
    try:
        verify(part)
    except InputError:
        part.unlink()  # otherwise every later call would fail too
        raise
    os.replace(part, path)


def _fetch(url: str, part: Path, size: int, console: Console) -> None:
    """Appends the missing bytes to the partial file."""
    begun = part.stat().st_size if part.exists() else 0
    if begun == size:
        return
    request = urllib.request.Request(url)
    if 0 < begun < size:
        request.add_header("Range", f"bytes={begun}-")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with (
        urllib.request.urlopen(request, timeout=_TIMEOUT) as response,
        Progress(*columns, console=console) as progress,
    ):
        # A server that ignores the range sends everything from the start.
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        description = f"downloading {url.rpartition('/')[2]}"
        task = progress.add_task(
            description, total=size, completed=begun if resumed else 0
        )
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
