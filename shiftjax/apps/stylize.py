"""Style transfer for images of any size, and for animations."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageOps

from shiftjax import image_files
from shiftjax.apps import contact_sheet, frames
from shiftjax.apps.bands import apply_in_bands
from shiftjax.apps.frames import ImageFile
from shiftjax.apps.predict import normalize_images
from shiftjax.apps.thumbnails import decode_thumbnail
from shiftjax.errors import InputError, MissingFileError, unknown_name
from shiftjax.files import user_path
from shiftjax.models.stylizer import VARIANTS, StyleNet
from shiftjax.releases import manifest
from shiftjax.weights import SUFFIX, Pretrained

PIXELS = 2**20  # the largest image computed in one pass, which takes 1.5 GiB


class Stylizer:
    """A stylizer with its weights, ready to paint.

    Args:
      pretrained: result of `shiftjax.weights.open_pretrained`.
      pixels: number of pixels of the largest image to compute in one pass. A larger one
        is computed in bands (see `shiftjax.apps.bands`), in less memory and with the
        same result up to rounding.

    Raises:
      InputError: if the network is not a stylizer.
    """

    def __init__(self, pretrained: Pretrained, pixels: int = PIXELS) -> None:
        if not isinstance(pretrained.model, StyleNet):
            raise InputError(
                f"a {pretrained.card.architecture} is not a stylizer: use weights of "
                "`shiftjax list '*stylizer.*' --pretrained`"
            )
        self.card, self.variables = pretrained.card, pretrained.variables
        self.model: StyleNet = pretrained.model
        self.pixels = pixels
        self._apply: Any = jax.jit(pretrained.model.apply)

    def image(self, image: np.ndarray) -> np.ndarray:
        """Computes the stylized image in floats, without clipping.

        Args:
          image: uint8 `[height, width, 3]`, RGB.

        Returns:
          float32 of the same shape, RGB; 0 .. 1 is the range of a valid image.

        Raises:
          InputError: if the dtype or the shape does not fit.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(
                f"the image is {image.dtype} {list(image.shape)}; a stylizer takes "
                "uint8 [height, width, 3]"
            )
        x = normalize_images(image[None], self.card)
        if image.shape[0] * image.shape[1] <= self.pixels:
            y = np.array(self._apply(self.variables, x)[0])
        else:
            y = apply_in_bands(self.model, self.variables, x[0])
        y *= np.asarray(self.card.std, np.float32)
        y += np.asarray(self.card.mean, np.float32)
        return y

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Stylizes an image.

        Args:
          image: uint8 `[height, width, 3]`, RGB.

        Returns:
          uint8 of the same shape, RGB.

        Raises:
          InputError: if the dtype or the shape does not fit.
        """
        y = self.image(image)
        return np.rint(np.clip(y, 0, 1, out=y) * 255).astype(np.uint8)

    def paint(self, source: Path, target: Path) -> ImageFile:
        """Stylizes a file; see `paint_file`."""
        return paint_file(self, source, target)


def paint_file(
    paint: Callable[[np.ndarray], np.ndarray], source: Path, target: Path
) -> ImageFile:
    """Repaints a file, each frame of an animation by itself.

    Args:
      paint: function of an image, uint8 `[height, width, 3]`, such as a `Stylizer`.
      source: an image file of any size and format.
      target: file of the result; its ending decides the format. Missing folders are
        created.

    Returns:
      The written frames.

    Raises:
      InputError: if the source cannot be read, or the target cannot be written.
    """
    original = frames.read_image_file(source)
    frames.file_format(target, animated=bool(original.durations))  # raises before
    painted = tuple(paint(frame) for frame in original.frames)
    result = ImageFile(painted, original.durations, original.loop)
    frames.write_image_file(target, result)
    return result


def strip(
    stylizers: Mapping[str, Stylizer], label: str, image: np.ndarray
) -> np.ndarray:
    """Draws an image, the painting and the stylized versions of the image in one row.

    The painting is that of the first card that has one.

    Args:
      stylizers: the stylizers by the label of their image.
      label: the label of the image.
      image: uint8 `[height, width, 3]`, RGB.

    Returns:
      uint8 `[h, w, 3]`, RGB, with labels below the images.

    Raises:
      InputError: if the painting on a card is damaged.
    """
    panels = [(label, image)]
    cards = [stylizer.card for stylizer in stylizers.values()]
    for card in [card for card in cards if card.painting][:1]:
        painting = Image.fromarray(decode_thumbnail(card.painting))
        height, width, _ = image.shape
        fitted = ImageOps.pad(painting, (width, height), color="white")
        panels.append((card.painting_source or "painting", np.asarray(fitted)))
    panels += [(name, stylizer(image)) for name, stylizer in stylizers.items()]
    labels, images = zip(*panels, strict=True)
    return contact_sheet.beside(images, labels)


def find_styles(name: str, directory: str | None = None) -> list[str]:
    """Lists the stylizers of one style.

    Args:
      name: the tag of a release, e.g. "starry_night", or "architecture.tag"; or a
        .safetensors file, which is the only one of its style.
      directory: the folder of the releases; see `shiftjax.load_pretrained`.

    Returns:
      Names for `open_pretrained`: the releases of the tag, the plain stylizer first.

    Raises:
      MissingFileError: if the folder has no manifest.
      UnknownNameError: if no stylizer has the tag; the message suggests the nearest.
    """
    if name.endswith(SUFFIX):
        return [name]
    releases = manifest.read(directory)
    tag = name.partition(".")[2] or name
    found = [release for release in _of_tag(tag) if release in releases]
    if "." in name:
        return found if name in found else [name]
    if not found:
        tags = {release.partition(".")[2] for release in releases}
        known = [tag for tag in tags if releases.keys() & _of_tag(tag)]
        raise unknown_name("style", name, known)
    return found


def find_style(name: str, directory: str | None = None) -> str:
    """Returns the one stylizer that a name stands for.

    Args:
      name: see `find_styles`.
      directory: see `find_styles`.

    Raises:
      MissingFileError: if the folder has no manifest.
      UnknownNameError: if no stylizer has the tag; the message suggests the nearest.
      InputError: if several stylizers have the tag.
    """
    if "." in name:
        return name
    found = find_styles(name, directory)
    if len(found) > 1:
        raise InputError(f"--style {name} is ambiguous: give {' or '.join(found)}")
    return found[0]


def _of_tag(tag: str) -> list[str]:
    """Returns the names that releases of stylizers with a tag have."""
    return [f"{architecture}.{tag}" for architecture in VARIANTS]


def targets(paths: Iterable[str | Path], output: str | Path) -> list[tuple[Path, Path]]:
    """Chooses the file of each result.

    Args:
      paths: image files, and folders of them.
      output: the file, for a single image; else a folder. In a folder each result has
        the name of its image, and the same subfolder as below a given folder.

    Returns:
      Pairs of the file to read and the file to write.

    Raises:
      MissingFileError: if a path does not exist.
      InputError: if a folder has no images, two results would have the same file, or a
        result would overwrite one of the images.
    """
    given, output = [user_path(path) for path in paths], user_path(output)
    if output.suffix.lower() in image_files.EXTENSIONS:
        if len(given) != 1 or given[0].is_dir():
            raise InputError(
                f"{output} is one image file: give a folder for several images"
            )
        pairs = [(given[0], output)]
    else:
        pairs = []
        for path in given:
            found = image_files.find_images(path) if path.is_dir() else [path]
            top = path if path.is_dir() else path.parent
            pairs += [(file, output / file.relative_to(top)) for file in found]
    for source, _ in pairs:
        if not source.is_file():
            raise MissingFileError(f"there is no image {source}")
    sources, taken = {source.resolve() for source, _ in pairs}, set[Path]()
    for _, target in pairs:
        file = target.resolve()
        if file in sources:
            raise InputError(f"{target} would be overwritten: give another folder")
        if file in taken:
            raise InputError(
                f"two images would be written to {target}: stylize them separately"
            )
        taken.add(file)
    return pairs
