"""Random-resized crops of JPEG files by OpenCV, in 0.7 of Pillow's time.

What differs is the filter. Pillow averages the pixels of a box that shrinks. OpenCV
interpolates between the nearest four, as TensorFlow's input pipelines do.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags

from shiftjax import image_files, image_sizes
from shiftjax.errors import InputError, needs_extra
from shiftjax.image_files import Box

_UPRIGHT = (None, 1)  # of the EXIF orientations


def check_installed() -> None:
    """Raises InputError if OpenCV is not installed."""
    with needs_extra("--augment.crop-decoder opencv", "opencv"):
        import cv2

    # The trainer decodes on one thread per core already.
    cv2.setNumThreads(1)


def decode_crop(
    image: bytes | Path,
    image_size: image_sizes.Size,
    channels: int,
    box: Callable[[int, int], Box],
    *,
    upright: bool,
) -> np.ndarray | None:
    """Decodes a JPEG file, and resizes a box of it with bilinear interpolation.

    A file is decoded at 1/2, 1/4 or 1/8 of its size if the box then still is as large
    as the result.

    Args:
      image: the encoded bytes, or the path of a file.
      image_size: height and width of the result, in pixels.
      channels: 1 for gray, 3 for RGB.
      box: chooses the box, from the width and the height of the image.
      upright: True if an image is to be turned upright by its EXIF orientation.

    Returns:
      uint8 `[height, width, channels]`; None for a file that cannot be read, is cut
      off, has to be turned, or is not a JPEG of gray or RGB pixels.
    """
    import cv2

    try:
        encoded = image if isinstance(image, bytes) else image.read_bytes()
        with image_files.opened(encoded) as file:
            orientation = file.getexif().get(ExifTags.Base.Orientation)
            turned = upright and orientation not in _UPRIGHT
            if file.format != "JPEG" or file.mode not in ("L", "RGB") or turned:
                return None
            width, height = file.size
    except (OSError, InputError):
        return None
    chosen = box(width, height)
    size = image_sizes.extent(image_size)
    short = min(chosen[2] - chosen[0], chosen[3] - chosen[1])
    scale = next(x for x in (8, 4, 2, 1) if x == 1 or short >= x * max(size))
    # Each flag is a bit. Those of the scales are named for gray, and one adds color.
    reduced = {
        8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
        4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
        2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
        1: cv2.IMREAD_GRAYSCALE,
    }
    color = 0 if channels == 1 else cv2.IMREAD_COLOR_RGB
    flags = reduced[scale] | color | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if pixels is None:
        return None
    across, down = pixels.shape[1] / width, pixels.shape[0] / height
    left, right = (round(edge * across) for edge in chosen[::2])
    top, bottom = (round(edge * down) for edge in chosen[1::2])
    # The exact kind gives the same pixels on any processor.
    part = cv2.resize(
        pixels[top:bottom, left:right],
        size[::-1],
        interpolation=cv2.INTER_LINEAR_EXACT,
    )
    return part.reshape(*size, channels)
