"""Reading of image files of any size and format, in the shape that a network takes."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from shiftjax.errors import InputError

# fmt: off
EXTENSIONS = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pnm", ".avif",
)
# fmt: on
_MODES = {1: "L", 3: "RGB"}


def find(folder: str | Path) -> list[Path]:
    """Lists the image files of a folder, at any depth.

    Args:
      folder: the folder.

    Returns:
      The files that end in one of `EXTENSIONS`, sorted by path.

    Raises:
      InputError: if there is none.
    """
    found = sorted(
        Path(inside) / file
        for inside, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
    )
    if not found:
        raise InputError(
            f"{folder} has no images; it needs files that end in "
            + ", ".join(EXTENSIONS)
        )
    return found


def check_shape(image_size: int, channels: int) -> None:
    """Checks that images can have a size and a number of channels.

    Args:
      image_size: height and width in pixels.
      channels: 1 (gray) or 3 (RGB).

    Raises:
      InputError: if the size is below 1, or the number of channels is another.
    """
    if image_size < 1:
        raise InputError(f"image_size={image_size}: it must be at least 1 pixel")
    if channels not in _MODES:
        raise InputError(f"channels={channels}: it must be 1 (gray) or 3 (RGB)")


def decode(
    image: bytes | Path, image_size: int, channels: int, *, upright: bool = False
) -> np.ndarray:
    """Decodes an image, resizes its short side and crops the center.

    An image of the right size keeps its pixels.

    Args:
      image: the encoded bytes, or the path of a file.
      image_size: height and width of the result, in pixels.
      channels: 1 for gray, 3 for RGB.
      upright: if True, turns the image upright by its EXIF orientation.

    Returns:
      uint8 `[image_size, image_size, channels]`.

    Raises:
      InputError: if it is not an image, or is damaged.
    """
    with opened(image) as file:
        # Pillow decodes a JPEG at 1/2, 1/4 or 1/8 of its size, which saves most of the
        # time. The filter still gets at least twice the size of the result.
        file.draft(None, (2 * image_size, 2 * image_size))
        turned = ImageOps.exif_transpose(file) if upright else file
        return fit(turned, image_size, channels)


@contextlib.contextmanager
def opened(image: bytes | Path) -> Iterator[Image.Image]:
    """Opens an image; a context in which every error becomes an InputError.

    Args:
      image: the encoded bytes, or the path of a file.

    Yields:
      The image, whose pixels Pillow decodes on use.

    Raises:
      InputError: if it is not an image, or is damaged.
    """
    source = io.BytesIO(image) if isinstance(image, bytes) else image
    try:
        with Image.open(source) as file:
            yield file
    except MemoryError:
        raise
    except Exception as e:  # Pillow raises almost anything on a damaged file
        name = f"{len(image)} bytes" if isinstance(image, bytes) else str(image)
        raise InputError(f"{name}: cannot be read as an image ({e})") from e


def fit(image: Image.Image, image_size: int, channels: int) -> np.ndarray:
    """Resizes the short side of an image, crops the center and converts the channels.

    Args:
      image: the image.
      image_size: height and width of the result, in pixels.
      channels: 1 for gray, 3 for RGB.

    Returns:
      uint8 `[image_size, image_size, channels]`.

    Raises:
      InputError: if the pixels have 32 bits, which have no agreed range.

    Example:
      >>> fit(Image.new("L", (64, 48), 7), image_size=32, channels=3).shape
      (32, 32, 3)
    """
    image = to_mode(image, channels)
    size = (image_size, image_size)
    if image.size != size:
        # Bilinear is the custom of the field. Pillow averages when it shrinks an image.
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(*size, channels)


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Converts an image to 8 bits and to one channel (gray) or three (RGB).

    Args:
      image: the image.
      channels: 1 for gray, 3 for RGB.

    Returns:
      The image in mode "L" or "RGB".

    Raises:
      InputError: if the pixels have 32 bits, which have no agreed range.
    """
    if image.mode in ("I", "F"):
        raise InputError(
            "its pixels have 32 bits, which have no agreed range: convert them to 8"
        )
    if image.mode.startswith("I;16"):
        # convert() would clip 16 bits at 255, which makes an image white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns
    return image.convert(_MODES[channels])


def rings(image_size: int, channels: int) -> np.ndarray:
    """Computes an image of rings around the center, with another hue on each side.

    Args:
      image_size: height and width, in pixels.
      channels: number of channels.

    Returns:
      uint8 `[image_size, image_size, channels]`.
    """
    y, x = np.mgrid[:image_size, :image_size] / image_size - 0.5
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    turns = 2 * np.pi * np.arange(channels) / 3
    color = 128 + 60 * np.cos(angle[..., None] - turns)
    return (color + 60 * np.cos(18 * radius)[..., None]).astype(np.uint8)


def temple(image_size: int, channels: int) -> np.ndarray:
    """Returns scikit-learn's sample photograph of a temple in China.

    Args:
      image_size: height and width, in pixels.
      channels: 1 for gray, 3 for RGB.

    Returns:
      uint8 `[image_size, image_size, channels]`.

    Raises:
      ImportError: if scikit-learn is not installed.
    """
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image("china.jpg"))
    return fit(image, image_size, channels)


# The images whose logits are stored with each release.
SAMPLES: Mapping[str, Callable[[int, int], np.ndarray]] = {
    "rings": rings,
    "temple": temple,
}
