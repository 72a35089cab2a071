"""Reading and writing of image files at their own size, with all frames."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from shiftjax import image_files
from shiftjax.errors import InputError

# Formats of animations. Pillow calls a TIFF with several pages animated, too.
ANIMATED = ("GIF", "PNG", "WEBP")
DURATION = 100  # milliseconds of a frame whose file gives none
QUALITY = 95  # of JPEG and WebP


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """The content of an image file: a still image or an animation.

    Attributes:
      frames: uint8 `[height, width, 3]` each, RGB; a still image has one.
      durations: duration of each frame in milliseconds; empty for a still image.
      loop: number of repetitions of an animation, 0 for endless; None for none.
    """

    frames: tuple[np.ndarray, ...]
    durations: tuple[int, ...] = ()
    loop: int | None = None


def read_image_file(path: Path) -> ImageFile:
    """Reads an image file; a still image is turned upright by its EXIF orientation.

    Args:
      path: the file.

    Returns:
      Its frames.

    Raises:
      InputError: if the file is not an image, or is damaged.
    """
    with image_files.opened(path) as file:
        if file.format not in ANIMATED or not getattr(file, "is_animated", False):
            return ImageFile((_pixels(image_files.turned(file)),))
        frames, durations = [], []
        for frame in ImageSequence.Iterator(file):
            # A WebP frame has its duration only once its pixels are loaded.
            frames.append(_pixels(frame))
            durations.append(round(frame.info.get("duration") or DURATION))
        return ImageFile(tuple(frames), tuple(durations), file.info.get("loop"))


def write_image_file(path: Path, image: ImageFile) -> None:
    """Writes an image file atomically.

    Args:
      path: the file; its ending decides the format. Missing folders are created.
      image: the frames.

    Raises:
      InputError: if the ending is unknown, the format cannot hold an animation, or the
        file cannot be written.
    """
    kind = file_format(path, animated=bool(image.durations))
    options: dict[str, Any] = {"quality": QUALITY} if kind in ("JPEG", "WEBP") else {}
    first, *others = (Image.fromarray(frame) for frame in image.frames)
    if image.durations:
        options |= {"save_all": True, "append_images": others}
        options |= {"duration": list(image.durations)}
        if image.loop is not None:
            options["loop"] = image.loop
        elif kind != "GIF":  # there Pillow's default is endless
            options["loop"] = 1
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        first.save(partial, kind, **options)
        partial.replace(path)
    except (KeyError, OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise InputError(f"{path}: cannot be written: {error}") from error


def file_format(path: Path, *, animated: bool) -> str:
    """Returns the name that Pillow has for the format of a file to write.

    Args:
      path: the file; its ending decides.
      animated: True for an animation.

    Raises:
      InputError: if the ending is unknown, or the format cannot hold an animation.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise InputError(
            f"{path}: an image cannot be written as {path.suffix!r}; use .png, .jpg, "
            ".webp or another ending of an image"
        )
    if animated and kind not in ANIMATED:
        raise InputError(
            f"{path}: {kind} cannot hold an animation; use .gif, .png or .webp"
        )
    return kind


def _pixels(image: Image.Image) -> np.ndarray:
    """Returns the pixels of a frame, uint8 `[height, width, 3]`."""
    return np.asarray(image_files.to_mode(image, 3))
