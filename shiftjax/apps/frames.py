"""Pictures as files hold them, at their own size; animations with all their frames."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from shiftjax import image_files
from shiftjax.errors import InputError

ANIMATED = ("GIF", "PNG", "WEBP")  # formats; an "animated" TIFF has pages
DURATION = 100  # milliseconds, where a frame has none
QUALITY = 95


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture, or an animation.

    Attributes:
      frames: uint8 `[height, width, 3]`, RGB; one of a picture that stands still.
      durations: of the frames of an animation, in milliseconds.
      loop: how often it is repeated, 0 for ever; None if it is not.
    """

    frames: tuple[np.ndarray, ...]
    durations: tuple[int, ...] = ()
    loop: int | None = None


def read(path: Path) -> Picture:
    """Reads a picture, upright as its EXIF orientation says.

    Raises:
      InputError: if it is no picture, or a damaged one.
    """
    with image_files.opened(path) as file:
        if file.format not in ANIMATED or not getattr(file, "is_animated", False):
            return Picture((_pixels(ImageOps.exif_transpose(file)),))
        frames, durations = [], []
        for frame in ImageSequence.Iterator(file):
            frames.append(_pixels(frame))  # which loads it: WebP then has its duration
            durations.append(round(frame.info.get("duration") or DURATION))
        return Picture(tuple(frames), tuple(durations), file.info.get("loop"))


def write(path: Path, picture: Picture) -> None:
    """Writes a picture in the format that the file's name ends in, whole or not at all.

    The folder is made if it is not there.

    Raises:
      InputError: if there is no such format, it cannot hold an animation, or the file
        cannot be written.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    options: dict[str, Any] = {"quality": QUALITY} if kind in ("JPEG", "WEBP") else {}
    if kind is None:
        raise InputError(f"{path}: its name must end as a picture's does, as .png")
    first, *others = (Image.fromarray(frame) for frame in picture.frames)
    if picture.durations:
        if kind not in ANIMATED:
            raise InputError(
                f"{path}: {kind} holds no animation; take .gif, .png or .webp"
            )
        options |= {"save_all": True, "append_images": others}
        options |= {"duration": list(picture.durations)}
        if picture.loop is not None:
            options["loop"] = picture.loop
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        first.save(partial, kind, **options)
        partial.replace(path)
    except (KeyError, OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise InputError(f"{path}: cannot be written: {error}") from error


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image_files.to_mode(image, 3))
