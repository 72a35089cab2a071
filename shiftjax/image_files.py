"""Pictures of any size and kind, brought to the shape that a network takes."""

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
    """Lists the pictures in a folder, at any depth, sorted by path.

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
            f"{folder} has no pictures; pictures are files that end in "
            + ", ".join(EXTENSIONS)
        )
    return found


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
    with opened(picture) as file:
        # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which saves most of the
        # time; twice the size wanted is left to the filter.
        file.draft(None, (2 * image_size, 2 * image_size))
        image = ImageOps.exif_transpose(file) if upright else file
        return fit(image, image_size, channels)


@contextlib.contextmanager
def opened(picture: bytes | Path) -> Iterator[Image.Image]:
    """Opens a picture; what goes wrong with it within the context is an InputError.

    Args:
      picture: the encoded bytes, or a file's path.

    Raises:
      InputError: not a picture, or a damaged one.
    """
    source = io.BytesIO(picture) if isinstance(picture, bytes) else picture
    try:
        with Image.open(source) as file:
            yield file
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
    image = to_mode(image, channels)
    size = (image_size, image_size)
    if image.size != size:
        # Bilinear, the field's habit; when shrinking Pillow averages (anti-aliasing).
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(*size, channels)


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Brings a picture to bytes of one channel (grey) or three (RGB).

    Raises:
      InputError: pixels of 32 bits, which have no agreed range.
    """
    if image.mode in ("I", "F"):
        raise InputError("pixels of 32 bits have no agreed range: convert them to 8")
    if image.mode.startswith("I;16"):
        # convert() would clip 16 bits at 255 and leave a white picture.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # as Pillow asks for, with a warning
    return image.convert(_MODES[channels])


def rings(image_size: int, channels: int) -> np.ndarray:
    """Draws a picture by a formula: rings around the centre, another hue on each side.

    Returns:
      uint8 `[image_size, image_size, channels]`.
    """
    y, x = np.mgrid[:image_size, :image_size] / image_size - 0.5
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    turns = 2 * np.pi * np.arange(channels) / 3
    colour = 128 + 60 * np.cos(angle[..., None] - turns)
    return (colour + 60 * np.cos(18 * radius)[..., None]).astype(np.uint8)


def temple(image_size: int, channels: int) -> np.ndarray:
    """Returns scikit-learn's sample photograph of a temple in China.

    Raises:
      ImportError: if scikit-learn is not installed.
    """
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image("china.jpg"))
    return fit(image, image_size, channels)


# For which the releases keep their logits.
SAMPLES: Mapping[str, Callable[[int, int], np.ndarray]] = {
    "rings": rings,
    "temple": temple,
}
