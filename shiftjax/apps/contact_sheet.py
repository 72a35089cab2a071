"""A picture of pictures: with the classes that a network sees in them, or labels."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from shiftjax.apps.predict import Prediction

TILE = 192  # pixels
MARGIN = 8
LINE = 20
COLUMNS = 5


def draw(predictions: Sequence[Prediction]) -> Image.Image:
    """Draws predictions side by side, five in a row.

    Args:
      predictions: of pictures whose files are still there.

    Returns:
      The picture, in RGB.
    """
    lines = max((len(p.classes) for p in predictions), default=0)
    width, height = TILE + MARGIN, TILE + LINE * lines + 2 * MARGIN
    columns = max(1, min(COLUMNS, len(predictions)))
    rows = -(-len(predictions) // columns)
    size = (columns * width + MARGIN, rows * height + MARGIN)
    sheet = Image.new("RGB", size, "white")
    for i, prediction in enumerate(predictions):
        row, column = divmod(i, columns)
        _tile(sheet, prediction, MARGIN + column * width, MARGIN + row * height)
    return sheet


def _tile(sheet: Image.Image, prediction: Prediction, x: int, y: int) -> None:
    """Draws one picture, with a bar and a name for each class below it."""
    with Image.open(prediction.path) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    small = max(image.size) < TILE  # a small picture's pixels are shown as they are
    way = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    sheet.paste(ImageOps.fit(image, (TILE, TILE), way), (x, y))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for i, (name, share) in enumerate(prediction.classes):
        top = y + TILE + 4 + i * LINE
        draw.rectangle((x, top, x + share * TILE, top + LINE - 3), fill="#cfe3f5")
        draw.text((x + 3, top), name, fill="black", font=font)
        draw.text(
            (x + TILE - 3, top),
            f"{100 * share:.1f}%",
            fill="black",
            font=font,
            anchor="ra",
        )


def beside(pictures: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Puts pictures of one size side by side, each with a label below it.

    Args:
      pictures: uint8 `[height, width, 3]`.
      labels: one for each.

    Returns:
      uint8 `[h, w, 3]`.
    """
    height, width, _ = pictures[0].shape
    line = max(LINE, height // 24)  # pixels: to be read on large pictures too
    size = (len(pictures) * (width + MARGIN) - MARGIN, height + line)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(line * 0.7)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left = i * (width + MARGIN)
        sheet.paste(Image.fromarray(picture), (left, 0))
        draw.text((left, height), label, fill="black", font=font)
    return np.asarray(sheet)
