"""Contact sheets: several images in one, with predicted classes or labels."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from shiftjax.apps.predict import Prediction

TILE = 192  # pixels
MARGIN = 8
LINE = 20
COLUMNS = 5


def draw_contact_sheet(predictions: Sequence[Prediction]) -> Image.Image:
    """Draws images with their predictions side by side, five in a row.

    Args:
      predictions: one prediction for each image; the image is read from its path.

    Returns:
      The contact sheet, in RGB.
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
    """Draws one image at (x, y), with a bar and a name for each class below it."""
    with Image.open(prediction.path) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    # The pixels of a small image stay visible as squares.
    small = max(image.size) < TILE
    resampling = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    sheet.paste(ImageOps.fit(image, (TILE, TILE), resampling), (x, y))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for i, (name, share) in enumerate(prediction.classes):
        top = y + TILE + 4 + i * LINE
        right = x + max(share, 0) * TILE  # a cosine may be negative
        draw.rectangle((x, top, right, top + LINE - 3), fill="#cfe3f5")
        draw.text((x + 3, top), name, fill="black", font=font)
        draw.text(
            (x + TILE - 3, top),
            f"{100 * share:.1f}%",
            fill="black",
            font=font,
            anchor="ra",
        )


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
        draw.text((left, height), label, fill="black", font=font)
    return np.asarray(sheet)
