"""Many pictures at once: room for them, and work on all cores."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from shiftjax.errors import InputError

_THREADS = min(16, os.cpu_count() or 1)
_CHUNK = 256  # examples a task: reading records one by one costs twice the time


def allocate(examples: int, image_size: int, channels: int) -> np.ndarray:
    """Makes room for pictures, or says that the machine's memory cannot hold them.

    Args:
      examples: number of pictures.
      image_size: their height and width.
      channels: 1 or 3.

    Returns:
      uint8 `[examples, image_size, image_size, channels]`, not initialised.

    Raises:
      InputError: more bytes than the machine has memory.
    """
    shape = (examples, image_size, image_size, channels)
    needed = int(np.prod(shape, dtype=np.int64))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Linux hands out more memory than there is, and ends the process when it is used.
    if needed > memory:
        raise InputError(
            f"{examples} pictures of {image_size}x{image_size} need "
            f"{needed / 1e9:.0f} GB and this machine has {memory / 1e9:.0f} GB of "
            "memory: choose a smaller image_size or a part of the data"
        )
    return np.empty(shape, np.uint8)


def for_chunks(examples: int, work: Callable[[range], None]) -> None:
    """Calls `work` on consecutive ranges that cover all examples, on several threads.

    Args:
      examples: number of examples.
      work: handles one range; its first exception ends everything and is raised.
    """
    starts = range(0, examples, _CHUNK)
    with ThreadPoolExecutor(_THREADS) as pool:
        tasks = [pool.submit(work, range(examples)[s : s + _CHUNK]) for s in starts]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
