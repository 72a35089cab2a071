"""Heights and widths of images, and their checks."""

from collections.abc import Sequence

from shiftjax.errors import InputError

Size = int | tuple[int, int]  # height and width in pixels, or one number for both


def extent(image_size: Size) -> tuple[int, int]:
    """Returns the height and the width of a size.

    Raises:
      InputError: if it is a sequence of one number, or of more than two.

    Example:
      >>> extent(32), extent((256, 128))
      ((32, 32), (256, 128))
    """
    if isinstance(image_size, Sequence):  # a list too, as in JSON
        if len(image_size) != 2:
            raise InputError(
                f"image_size={image_size}: it must be a number, or two numbers, "
                "(height, width)"
            )
        height, width = image_size
        return height, width
    return image_size, image_size


def size_text(image_size: Size) -> str:
    """Returns a size as text.

    Example:
      >>> size_text(32), size_text((256, 128))
      ('32', '256x128')
    """
    return "x".join(map(str, dict.fromkeys(extent(image_size))))


def check_shape(image_size: Size, channels: int, resize: int | None = None) -> None:
    """Checks that images can have a size and a number of channels.

    Args:
      image_size: height and width in pixels.
      channels: 1 (gray) or 3 (RGB).
      resize: the short side before the center is cropped; None for `image_size`.

    Raises:
      InputError: if the size is below 1 or above `resize`, or the number of channels is
        another, or `resize` is given and the image is not square.
    """
    height, width = extent(image_size)
    if min(height, width) < 1:
        raise InputError(f"image_size={image_size}: it must be at least 1 pixel")
    if channels not in (1, 3):
        raise InputError(f"channels={channels}: it must be 1 (gray) or 3 (RGB)")
    if resize is not None and height != width:
        raise InputError(
            f"resize={resize}: it is for square images, not image_size={image_size}"
        )
    if resize is not None and resize < height:
        raise InputError(
            f"resize={resize}: it must be at least image_size={image_size}, which is "
            "cropped from it"
        )
