"""Reading of image files of any size and format, in the shape that a network takes."""

import contextlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from shiftjax.errors import InputError, reading
from shiftjax.files import user_path
from shiftjax.image_sizes import Size, extent

# fmt: off
EXTENSIONS = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pnm", ".avif",
)
# fmt: on
_MODES = {1: "L", 3: "RGB"}
SIXTEEN_BITS = "shiftjax: 16 bits"
_SIDEWAYS = (5, 6, 7, 8)  # the EXIF orientations that exchange width and height
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Box = tuple[int, int, int, int]  # left, top, right, bottom


def find_images(folder: str | Path) -> list[Path]:
    """Lists the image files of a folder, at any depth.

    Args:
      folder: the folder.

    Returns:
      The files that end in one of `EXTENSIONS`, sorted by path.

    Raises:
      InputError: if there is none, or a folder cannot be read.
    """
    found = sorted(walk_images(folder))
    if not found:
        raise InputError(
            f"{folder} has no images; it needs files that end in "
            + ", ".join(EXTENSIONS)
        )
    return found


def walk_images(folder: str | Path) -> Iterator[Path]:
    """Finds the image files of a folder, at any depth.

    Args:
      folder: the folder. A link to a folder that it is in is not followed, and hidden
        files and folders in it are left out.

    Yields:
      The files that end in one of `EXTENSIONS`, in any order.

    Raises:
      InputError: if a folder cannot be read.
    """

    def stop(error: OSError) -> None:
        with reading(error.filename):
            raise error

    folder = user_path(folder)
    above = {os.fspath(folder): {os.path.realpath(folder)}}
    for inside, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        around = above.pop(inside)
        for name in list(folders):
            path = os.path.join(inside, name)
            real = os.path.realpath(path)
            if real in around or name.startswith("."):
                folders.remove(name)
            else:
                above[path] = around | {real}
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield Path(inside) / name


def decode(
    image: bytes | Path,
    image_size: Size,
    channels: int,
    *,
    upright: bool = False,
    resize: int | None = None,
    box: Callable[[int, int], Box] | None = None,
) -> np.ndarray:
    """Decodes an image, resizes its short side and crops the center, or crops a box.

    An image of the right size keeps its pixels.

    Args:
      image: the encoded bytes, or the path of a file.
      image_size: height and width of the result, in pixels.
      channels: 1 for gray, 3 for RGB.
      upright: if True, turns the image upright by its EXIF orientation.
      resize: the short side before the center is cropped; None for `image_size`.
      box: chooses the part of the image to resize, from its width and height; None for
        the center.

    Returns:
      uint8 `[height, width, channels]`.

    Raises:
      InputError: if it is not an image, or is damaged.
    """
    height, width = extent(image_size)
    with opened(image) as file:
        if box is not None:
            part = _box(file, box, max(height, width), upright)
            part = to_mode(part, channels)
            part = part.resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(part).reshape(height, width, channels)
        # Pillow decodes a JPEG at 1/2, 1/4 or 1/8 of its size, which saves most of the
        # time. The filter still gets at least twice the size of the result.
        side = 2 * (resize or max(height, width))
        file.draft(None, (side, side))
        whole = turned(file) if upright else file
        return fit(whole, image_size, channels, resize)


def _box(
    file: Image.Image,
    box: Callable[[int, int], Box],
    side: int,
    upright: bool,
) -> Image.Image:
    """Decodes a box of an image, at a fraction of its size if it is large enough."""
    if file.format == "TIFF":
        file.load()  # turns it, and its size is the turned one before
    sideways = upright and orientation(file) in _SIDEWAYS
    width, height = file.size[::-1] if sideways else file.size
    chosen = box(width, height)
    # As for whole images, the filter gets at least twice the size of the result.
    short = min(chosen[2] - chosen[0], chosen[3] - chosen[1])
    needed = [math.ceil(whole * 2 * side / short) for whole in file.size]
    file.draft(None, (needed[0], needed[1]))
    whole = turned(file) if upright else file
    across, down = whole.width / width, whole.height / height
    left, top, right, bottom = (
        round(edge * scale)
        for edge, scale in zip(chosen, (across, down) * 2, strict=True)
    )
    return whole.crop((left, top, right, bottom))


def turned(image: Image.Image) -> Image.Image:
    """Turns an image upright by its EXIF orientation, if that can be read.

    `exif_transpose` of Pillow also writes the EXIF anew, which fails if it is damaged.

    Args:
      image: the image.

    Returns:
      The image, or a turned copy.
    """
    image.load()  # turns a TIFF
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> Any:
    """Returns the EXIF orientation, or None if there is none or it cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    except Exception:  # Pillow raises almost anything on a damaged EXIF
        return None


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
    try:
        # Pillow reads from a file in small pieces, which takes longer.
        encoded = image if isinstance(image, bytes) else image.read_bytes()
        with Image.open(io.BytesIO(encoded)) as file:
            # Pillow scales the 16 bits of a PGM to 0 .. 65535, in its mode for 32. A
            # copy of an image has no format, but has what the image says of itself.
            if file.format == "PPM" and file.mode == "I":
                file.info[SIXTEEN_BITS] = True
            yield file
    except MemoryError:
        raise
    except Exception as e:  # Pillow raises almost anything on a damaged file
        name = f"{len(image)} bytes" if isinstance(image, bytes) else str(image)
        reason = "no known format" if isinstance(e, UnidentifiedImageError) else e
        raise InputError(f"{name}: cannot be read as an image ({reason})") from e


def fit(
    image: Image.Image, image_size: Size, channels: int, resize: int | None = None
) -> np.ndarray:
    """Resizes an image to cover a size, crops the center and converts the channels.

    Args:
      image: the image.
      image_size: height and width of the result, in pixels.
      channels: 1 for gray, 3 for RGB.
      resize: the short side before the center is cropped; None for `image_size`.

    Returns:
      uint8 `[height, width, channels]`.

    Raises:
      InputError: if the pixels have 32 bits, which have no agreed range.

    Example:
      >>> fit(Image.new("L", (64, 48), 7), image_size=32, channels=3).shape
      (32, 32, 3)
    """
    image = to_mode(image, channels)
    rows, columns = extent(image_size)
    # Bilinear is the custom of the field. Pillow averages when it shrinks an image.
    if resize is not None:
        short = min(image.size)
        width, height = (resize * side // short for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - columns) / 2), round((height - rows) / 2)
        image = image.crop((left, top, left + columns, top + rows))
    elif image.size != (columns, rows):
        image = ImageOps.fit(image, (columns, rows), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(rows, columns, channels)


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
    sixteen = image.mode.startswith("I;16") or SIXTEEN_BITS in image.info
    if image.mode in ("I", "F") and not sixteen:
        raise InputError(
            "its pixels have 32 bits, which have no agreed range: convert them to 8"
        )
    if sixteen:
        # convert() would clip 16 bits at 255, which makes an image white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns
    mode = _MODES[channels]
    return image if image.mode == mode else image.convert(mode)


def rings(image_size: Size, channels: int, resize: int | None = None) -> np.ndarray:
    """Computes an image of rings around the center, with another hue on each side.

    Args:
      image_size: height and width, in pixels.
      channels: number of channels.
      resize: not used, because the image is computed in its size.

    Returns:
      uint8 `[height, width, channels]`.
    """
    del resize
    height, width = extent(image_size)
    y, x = (np.arange(height) / height - 0.5)[:, None], np.arange(width) / width - 0.5
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    turns = 2 * np.pi * np.arange(channels) / 3
    color = 128 + 60 * np.cos(angle[..., None] - turns)
    return (color + 60 * np.cos(18 * radius)[..., None]).astype(np.uint8)


def temple(image_size: Size, channels: int, resize: int | None = None) -> np.ndarray:
    """Returns scikit-learn's sample photograph of a temple in China.

    Args:
      image_size: height and width, in pixels.
      channels: 1 for gray, 3 for RGB.
      resize: the short side before the center is cropped; None for `image_size`.

    Returns:
      uint8 `[height, width, channels]`.

    Raises:
      ImportError: if scikit-learn is not installed.
    """
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image("china.jpg"))
    return fit(image, image_size, channels, resize)


# The images whose logits are stored with each release.
SAMPLES: Mapping[str, Callable[..., np.ndarray]] = {
    "rings": rings,
    "temple": temple,
}
