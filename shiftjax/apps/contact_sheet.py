"""Contact sheets: several images in one, with predicted classes or labels."""

import functools
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from shiftjax import image_files
from shiftjax.apps.predict import Prediction

TILE = 192  # pixels
MARGIN = 8
LINE = 20
COLUMNS = 5
FONT_SIZE = 14
GAP = 3  # between a text and the border of its tile
BAR = "#cfe3f5"
ELLIPSIS = "…"
UNKNOWN = "?"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_contact_sheet(predictions: Sequence[Prediction]) -> Image.Image:
    """Draws images with their names and predictions side by side, five in a row.

    Args:
      predictions: one prediction for each image; the image is read from its path.

    Returns:
      The contact sheet, in RGB.

    Raises:
      InputError: if a file is not an image.
    """
    lines = 1 + max((len(p.classes) for p in predictions), default=0)
    width, height = TILE + MARGIN, TILE + LINE * lines + 2 * MARGIN
    columns = max(1, min(COLUMNS, len(predictions)))
    rows = -(-len(predictions) // columns)
    size = (columns * width + MARGIN, rows * height + MARGIN)
    sheet, font = Image.new("RGB", size, "white"), ImageFont.load_default(FONT_SIZE)
    for i, prediction in enumerate(predictions):
        row, column = divmod(i, columns)
        corner = MARGIN + column * width, MARGIN + row * height
        _tile(sheet, font, prediction, *corner)
    return sheet


def _tile(
    sheet: Image.Image, font: Font, prediction: Prediction, x: int, y: int
) -> None:
    """Draws one image at (x, y), with its name and a bar for each class below it."""
    # The pixels are converted as for the network, so that the sheet shows what it sees.
    with image_files.opened(Path(prediction.path)) as file:
        image = image_files.to_mode(image_files.turned(file), 3)
        # The pixels of a small image stay visible as squares.
        small = max(image.size) < TILE
        resampling = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
        sheet.paste(ImageOps.fit(image, (TILE, TILE), resampling), (x, y))
    draw, top = ImageDraw.Draw(sheet), y + TILE + 4
    file_name = fitted(Path(prediction.path).name, font, TILE - 2 * GAP)
    draw.text((x + GAP, top), file_name, fill="black", font=font)
    for name, share in prediction.classes:
        top += LINE
        right = x + max(share, 0) * TILE  # a cosine may be negative
        draw.rectangle((x, top, right, top + LINE - 3), fill=BAR)
        percent = f"{100 * share:.1f}%"
        edge = x + TILE - GAP
        draw.text((edge, top), percent, fill="black", font=font, anchor="ra")
        room = TILE - 4 * GAP - font.getlength(percent)
        draw.text((x + GAP, top), fitted(name, font, room), fill="black", font=font)


def beside(images: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Puts images of one size side by side, each with a label below it.

    Args:
      images: uint8 `[height, width, 3]` each, RGB.
      labels: one label for each image.

    Returns:
      uint8 `[h, w, 3]`, RGB.
    """
    height, width, _ = images[0].shape
    line = max(LINE, height // 24)  # a label stays legible below a large image
    size = (len(images) * (width + MARGIN) - MARGIN, height + line)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(line * 0.7)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        left = i * (width + MARGIN)
        sheet.paste(Image.fromarray(image), (left, 0))
        text = fitted(label, font, width)
        draw.text((left, height), text, fill="black", font=font)
    return np.asarray(sheet)


def fitted(text: str, font: Font, width: float) -> str:
    """Fits a text to a width, and its characters to a font.

    Args:
      text: the text, of any characters.
      font: the font.
      width: the width, in pixels.

    Returns:
      The text, without accents that the font lacks and with a question mark for any
      other character that it lacks; if it is too wide, with an ellipsis in the middle.

    Example:
      >>> fitted("café 日.png", ImageFont.load_default(14), 200)
      'cafe ?.png'
    """
    text = "".join(_drawable(character, font) for character in text)
    kept, short = len(text), text
    while kept and font.getlength(short) > width:
        kept -= 1
        short = text[: -(-kept // 2)] + ELLIPSIS + text[len(text) - kept // 2 :]
    return short


def _drawable(character: str, font: Font) -> str:
    """Returns a character, or the nearest that a font has."""
    letters = unicodedata.normalize("NFKD", character)
    plain = "".join(x for x in letters if not unicodedata.combining(x))
    for some in (character, plain):
        if all(x.isprintable() and _has(font, x) for x in some):
            return some
    return UNKNOWN


@functools.lru_cache(maxsize=4096)
def _has(font: Font, character: str) -> bool:
    """Returns True if a font draws a character other than one that it lacks."""
    drawn: list[Any] = [font.getmask(text) for text in (character, "\uffff")]
    glyph, lacking = ((mask.size, bytes(mask)) for mask in drawn)
    return glyph != lacking
