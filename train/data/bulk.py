"""Turns pictures of any size and kind into uint8 arrays of one size, on all cores."""

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from shiftjax.errors import InputError

_THREADS = min(16, os.cpu_count() or 1)
_CHUNK = 256  # examples a task: reading records one by one costs twice the time
_MODES = {1: "L", 3: "RGB"}


def check_shape(image_size: int, channels: int) -> None:
    """Refuses sizes and channels that no picture can be brought to.

    Args:
      image_size: height and width in pixels.
      channels: 1 (grey) or 3 (RGB).

    Raises:
      InputError: the size is not positive, or another number of channels.
    """
    if image_size < 1:
        raise InputError(f"image_size {image_size} is not allowed: 1 pixel at least")
    if channels not in _MODES:
        raise InputError(f"channels {channels} is not allowed: 1 (grey) or 3 (RGB)")


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


def decode(
    picture: bytes | Path, image_size: int, channels: int, *, upright: bool = False
) -> np.ndarray:
    """Decodes a picture: short side to `image_size`, centre crop, uint8.

    A picture that has the size already is not touched.

    Args:
      picture: the encoded bytes, or a file's path.
      image_size: height and width of the result.
      channels: 1 for grey, 3 for RGB.
      upright: turn the picture as its EXIF orientation says, as cameras mean it.

    Returns:
      uint8 `[image_size, image_size, channels]`.

    Raises:
      InputError: not a picture, or a damaged one.
    """
    try:
        with Image.open(
            io.BytesIO(picture) if isinstance(picture, bytes) else picture
        ) as f:
            # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which saves most of the
            # time; twice the size wanted is left to the filter.
            f.draft(None, (2 * image_size, 2 * image_size))
            return fit(
                ImageOps.exif_transpose(f) if upright else f, image_size, channels
            )
    except MemoryError:
        raise
    except Exception as e:  # Pillow raises almost anything on a damaged file
        name = f"{len(picture)} bytes" if isinstance(picture, bytes) else str(picture)
        raise InputError(f"{name}: cannot be read as a picture ({e})") from e


def fit(image: Image.Image, image_size: int, channels: int) -> np.ndarray:
    """Brings a picture to one size and kind: short side resized, centre cropped.

    Args:
      image: the picture.
      image_size: height and width of the result.
      channels: 1 for grey, 3 for RGB.

    Returns:
      uint8 `[image_size, image_size, channels]`.

    Raises:
      InputError: pixels of 32 bits, which have no agreed range.

    Example:
      >>> fit(Image.new("L", (64, 48), 7), image_size=32, channels=3).shape
      (32, 32, 3)
    """
    if image.mode in ("I", "F"):
        raise InputError("pixels of 32 bits have no agreed range: convert them to 8")
    if image.mode.startswith("I;16"):
        # convert() would clip 16 bits at 255 and leave a white picture.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # as Pillow asks for, with a warning
    image = image.convert(_MODES[channels])
    size = (image_size, image_size)
    if image.size != size:
        # Bilinear, the field's habit; when shrinking Pillow averages (anti-aliasing).
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(*size, channels)


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
