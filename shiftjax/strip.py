"""A picture of pictures: each with the classes that a network sees in it."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from shiftjax.predict import Prediction

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
