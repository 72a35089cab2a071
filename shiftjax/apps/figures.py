"""Figures of the commands: matplotlib if it is installed, and errors in one line."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from shiftjax.errors import InputError, MissingFileError, needs_extra
from shiftjax.files import user_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_class() -> "type[Figure]":
    """Returns the class of a figure.

    Raises:
      InputError: if matplotlib is not installed.
    """
    with needs_extra("--plot", "train"):
        from matplotlib.figure import Figure
    return Figure


def check_plot(
    path: str, images: Iterable[str | Path] = (), *, sheet: bool = False
) -> None:
    """Checks the file that `--plot` names, before a long computation.

    Args:
      path: the file.
      images: the images, and folders of them, of which only the images are compared.
      sheet: True for a contact sheet, which Pillow writes.

    Raises:
      MissingFileError: if there is no such folder.
      InputError: if the file is one of the images, or its ending is not an image's.
    """
    file = user_path(path)
    if not file.parent.is_dir():
        raise MissingFileError(f"--plot {path}: there is no folder {file.parent}")
    if sheet and file.suffix.lower() not in Image.registered_extensions():
        raise InputError(
            f"--plot {path}: it must end in .png, .jpg or another ending of an image"
        )
    if any(file.resolve() == user_path(image).resolve() for image in images):
        raise InputError(
            f"--plot {path}: it is one of the images, which would be overwritten"
        )


def save_plot(save: Callable[[str], object], path: str) -> None:
    """Writes the file that `--plot` names.

    Args:
      save: writes the file, for example a method of a figure or of an image.
      path: the file; its ending decides the format.

    Raises:
      InputError: if the file cannot be written.
    """
    try:
        save(str(user_path(path)))
    except (OSError, ValueError) as error:
        raise InputError(f"--plot {path}: {error}") from error
