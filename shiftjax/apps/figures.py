"""Figures of the commands: matplotlib if it is installed, and errors in one line."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from shiftjax.errors import InputError, needs_extra
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


def keep_images(path: str, images: Iterable[str | Path]) -> None:
    """Checks that the file that `--plot` names is none of the images.

    Args:
      path: the file.
      images: the images, and folders of them, of which only the images are compared.

    Raises:
      InputError: if it is one of them.
    """
    file = user_path(path).resolve()
    if any(file == user_path(image).resolve() for image in images):
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
