"""Memory for many images, and work on them with several threads."""

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from shiftjax.errors import InputError
from train.machine import cores

_CHUNK = 256  # most examples a task; reading records one by one takes twice the time

# The limits of a container: of cgroup version 2, and of version 1.
LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def memory() -> int:
    """Returns the memory of the machine or of the container, in bytes."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
            sizes.append(int(path.read_text()))
    return min(sizes)


def allocate(examples: int, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Allocates an array of images, unless it exceeds the machine's memory.

    Args:
      examples: the number of images.
      image_shape: `(height, width, channels)` of an image.

    Returns:
      uint8 `[examples, height, width, channels]`, not initialized.

    Raises:
      InputError: if the machine has less memory.
    """
    shape = (examples, *image_shape)
    needed = int(np.prod(shape, dtype=np.int64))
    # Linux allocates more memory than it has, and kills the process that uses it.
    if needed > memory():
        raise InputError(
            f"{examples} images of {image_shape[0]}x{image_shape[1]} need "
            f"{needed / 1e9:.0f} GB and this machine has {memory() / 1e9:.0f} GB of "
            "memory: choose --data.decode each_epoch or a smaller image_size"
        )
    return np.empty(shape, np.uint8)


def for_chunks(
    examples: int, work: Callable[[range], None], threads: int | None = None
) -> None:
    """Calls `work` on consecutive ranges that cover all examples, on several threads.

    Args:
      examples: the number of examples.
      work: handles one range; its first exception cancels the others and is raised.
      threads: the number of threads; None for one per core that the process may use.
    """
    threads = threads or len(cores())
    # Several tasks a thread, so that all threads end at about the same time.
    size = min(max(examples // (8 * threads), 1), _CHUNK)
    starts = range(0, examples, size)
    with ThreadPoolExecutor(threads) as pool:
        tasks = [pool.submit(work, range(examples)[s : s + size]) for s in starts]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
