"""Pictures in another style, whatever their size."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from shiftjax import image_files
from shiftjax.apps import contact_sheet, frames
from shiftjax.apps.bands import apply_in_bands
from shiftjax.apps.frames import Picture
from shiftjax.apps.predict import normalize
from shiftjax.errors import InputError, MissingFileError
from shiftjax.models.stylizer import StyleNet
from shiftjax.weights import Pretrained

PIXELS = 2**20  # of a picture computed in one piece, in 1.5 GiB


class Stylizer:
    """A stylizer with its weights, ready to paint.

    Args:
      pretrained: of `shiftjax.weights.open_pretrained`.
      pixels: a larger picture is computed in bands (see `shiftjax.apps.bands`), which
        gives the same, to rounding, in less memory.

    Raises:
      InputError: if it is another network.
    """

    def __init__(self, pretrained: Pretrained, pixels: int = PIXELS) -> None:
        if not isinstance(pretrained.model, StyleNet):
            raise InputError(
                f"a {pretrained.card.architecture} gives no pictures: take weights of "
                "`shiftjax list '*stylizer.*' --pretrained`"
            )
        self.card, self.variables = pretrained.card, pretrained.variables
        self.model: StyleNet = pretrained.model
        self.pixels = pixels
        self._apply: Any = jax.jit(pretrained.model.apply)

    def image(self, picture: np.ndarray) -> np.ndarray:
        """Computes what the network gives, brought to 0 .. 1 but not clipped.

        Args:
          picture: uint8 `[height, width, 3]`, RGB.

        Returns:
          float32 of the same shape.

        Raises:
          InputError: if it is no such picture.
        """
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise InputError(
                f"a picture is {picture.dtype} {list(picture.shape)}; a stylizer takes "
                "uint8 [height, width, 3]"
            )
        x = normalize(picture[None], self.card)
        if picture.shape[0] * picture.shape[1] <= self.pixels:
            y = np.array(self._apply(self.variables, x)[0])
        else:
            y = apply_in_bands(self.model, self.variables, x[0])
        y *= np.asarray(self.card.std, np.float32)
        y += np.asarray(self.card.mean, np.float32)
        return y

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """Paints a picture.

        Args:
          picture: uint8 `[height, width, 3]`, RGB.

        Returns:
          uint8 of the same shape.

        Raises:
          InputError: if it is no such picture.
        """
        y = self.image(picture)
        return np.rint(np.clip(y, 0, 1, out=y) * 255).astype(np.uint8)

    def paint(
        self, source: Path, target: Path, *, labels: Sequence[str] = ()
    ) -> Picture:
        """Paints a file, each frame of an animation by itself.

        Args:
          source: a picture of any size and format.
          target: where to write the result, in the format that its name ends in; its
            folder is made.
          labels: two, to write the picture beside the result, with these below them.

        Returns:
          What was written.

        Raises:
          InputError: if one cannot be read, or the other not be written.
        """
        picture = frames.read(source)
        painted = []
        for frame in picture.frames:
            new = self(frame)
            painted.append(
                contact_sheet.beside([frame, new], labels) if labels else new
            )
        result = Picture(tuple(painted), picture.durations, picture.loop)
        frames.write(target, result)
        return result


def targets(paths: Iterable[str | Path], output: str | Path) -> list[tuple[Path, Path]]:
    """Says where the result of each picture goes.

    Args:
      paths: pictures, and folders of them.
      output: the file, for a single picture; else a folder, in which each keeps its
        name and, below a given folder, its place.

    Returns:
      Files to read, each with the one to write.

    Raises:
      MissingFileError: if a path is not there.
      InputError: if a folder has no pictures, two results would have one name, or one
        that of its picture.
    """
    given, output = [Path(path) for path in paths], Path(output)
    if output.suffix.lower() in image_files.EXTENSIONS:
        if len(given) != 1 or given[0].is_dir():
            raise InputError(f"{output} is one picture: name a folder for several")
        pairs = [(given[0], output)]
    else:
        pairs = []
        for path in given:
            found = image_files.find(path) if path.is_dir() else [path]
            top = path if path.is_dir() else path.parent
            pairs += [(file, output / file.relative_to(top)) for file in found]
    taken: set[Path] = set()
    for source, target in pairs:
        if not source.is_file():
            raise MissingFileError(f"there is no picture {source}")
        if target.resolve() == source.resolve():
            raise InputError(f"{source} would be overwritten: name another folder")
        if target in taken:
            raise InputError(f"two pictures would become {target}: do them apart")
        taken.add(target)
    return pairs
