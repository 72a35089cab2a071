"""Thumbnails: small JPEG images as text, for the cards of releases."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from shiftjax import image_files
from shiftjax.errors import InputError

SIDE = 128  # of the short side, in pixels
QUALITY = 85


def encode_thumbnail(path: Path) -> str:
    """Reads an image and returns a small copy as text.

    Args:
      path: an image file of any size and format.

    Returns:
      A JPEG in base64, upright, whose short side has at most 128 pixels.

    Raises:
      InputError: if the file cannot be read as an image.
    """
    with image_files.opened(path) as file:
        image = image_files.to_mode(image_files.turned(file), 3)
        scale = min(1, SIDE / min(image.size))
        width, height = (round(side * scale) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=QUALITY)
    return base64.b64encode(encoded.getvalue()).decode()


def decode_thumbnail(text: str) -> np.ndarray:
    """Decodes the result of `encode_thumbnail`.

    Returns:
      uint8 `[height, width, 3]`, RGB.

    Raises:
      InputError: if the text is not an image in base64.
    """
    try:
        encoded = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InputError(f"the thumbnail is not in base64: {error}") from error
    with image_files.opened(encoded) as file:
        return np.asarray(image_files.to_mode(file, 3))
