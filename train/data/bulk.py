"""Memory for many images, and work on them with several threads."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from shiftjax.errors import InputError

_THREADS = min(16, os.cpu_count() or 1)
_CHUNK = 256  # examples per task; reading records one by one takes twice the time


def allocate(examples: int, image_size: int, channels: int) -> np.ndarray:
    """Allocates an array of images, unless it exceeds the machine's memory.

    Args:
      examples: the number of images.
      image_size: the height and width of the images.
      channels: 1 or 3.

    Returns:
      uint8 `[examples, image_size, image_size, channels]`, not initialized.

    Raises:
      InputError: if the machine has less memory.
    """
    shape = (examples, image_size, image_size, channels)
    needed = int(np.prod(shape, dtype=np.int64))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Linux allocates more memory than it has, and kills the process that uses it.
    if needed > memory:
        raise InputError(
            f"{examples} images of {image_size}x{image_size} need "
            f"{needed / 1e9:.0f} GB and this machine has {memory / 1e9:.0f} GB of "
            "memory: choose a smaller image_size or a part of the data"
        )
    return np.empty(shape, np.uint8)


def for_chunks(examples: int, work: Callable[[range], None]) -> None:
    """Calls `work` on consecutive ranges that cover all examples, on several threads.

    Args:
      examples: the number of examples.
      work: handles one range; its first exception cancels the others and is raised.
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
