"""Verification of released weights against the manifest, including sample logits."""

import os
from collections.abc import Callable, Mapping

import jax
import numpy as np

from shiftjax import image_files
from shiftjax.apps.predict import Classifier, normalize_images
from shiftjax.apps.stylize import Stylizer
from shiftjax.errors import InputError
from shiftjax.models.facenet import FaceNet
from shiftjax.models.stylizer import StyleNet
from shiftjax.summary import summarize
from shiftjax.weights import Pretrained, open_pretrained

# Relative to the largest logit. Another order of additions in 110 layers may change
# them by this much.
TOLERANCE = 1e-3


def sample_logits(pretrained: Pretrained) -> dict[str, list[float]]:
    """Computes the logits of the sample images that are available.

    Args:
      pretrained: the network and its weights.

    Returns:
      The logits by the name of the image; of a stylizer, the colors of sixteen pixels
      of its output; of a face network, the embedding.
    """
    card, outputs = pretrained.card, _outputs(pretrained)
    found = {}
    with jax.default_matmul_precision("highest"):
        for name, sample in image_files.SAMPLES.items():
            try:
                image = sample(card.image_size, len(card.mean), card.resize)
            except ImportError:
                continue
            found[name] = [round(float(x), 5) for x in outputs(image)]
    return found


def _outputs(pretrained: Pretrained) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from a uint8 image to the numbers to be compared."""
    if isinstance(pretrained.model, StyleNet):
        stylizer, sides = Stylizer(pretrained), pretrained.card.image_shape()[:2]
        grid = tuple(slice(side // 4 // 2, None, side // 4) for side in sides)
        return lambda image: stylizer.image(image)[grid].ravel()
    if isinstance(pretrained.model, FaceNet):
        card, embed = pretrained.card, jax.jit(pretrained.model.apply)
        return lambda image: np.asarray(
            embed(pretrained.variables, normalize_images(image[None], card))
        )[0]
    classifier = Classifier(pretrained)
    return lambda image: classifier.logits(image[None])[0]


def verify(name: str, directory: str | os.PathLike | None = None) -> tuple[str, ...]:
    """Verifies a release: size, hash, names, shapes, dtypes, counts and logits.

    Args:
      name: "architecture.tag".
      directory: see `shiftjax.load_pretrained`.

    Returns:
      The names of the sample images whose logits were compared, sorted.

    Raises:
      UnknownNameError: if there is no such release.
      MissingFileError: if its file does not exist.
      InputError: if something differs from the release.
    """
    pretrained = open_pretrained(name, directory)
    release = pretrained.release
    if release is None:
        raise InputError(
            f"{name} is a file without a manifest, so there is nothing to compare it "
            "with: give the name of a release"
        )
    card = pretrained.card
    costs = summarize(pretrained.model, card.image_size, channels=len(card.mean))
    counted = {"parameters": costs.params, "multiply-adds": costs.macs}
    stated = {"parameters": release.params, "multiply-adds": release.macs}
    if counted != stated:
        raise InputError(f"{name} has {counted}, but the manifest has {stated}")
    actual = sample_logits(pretrained)
    compare_logits(actual, release.logits, name)
    return tuple(sorted(actual.keys() & release.logits.keys()))


def compare_logits(
    actual: Mapping[str, list[float]], released: Mapping[str, list[float]], name: str
) -> None:
    """Compares the logits of sample images with the released ones.

    Args:
      actual: computed logits by the name of the image.
      released: logits of the manifest by the name of the image.
      name: name of the release, for the error.

    Raises:
      InputError: if they differ by more than `TOLERANCE` of the largest, or in number.
    """
    for image in sorted(actual.keys() & released.keys()):
        new, old = np.asarray(actual[image]), np.asarray(released[image])
        if new.shape != old.shape:
            raise InputError(
                f"{name}: the manifest has {old.size} logits of the image {image!r}, "
                f"and the network {new.size}"
            )
        error = np.abs(new - old).max() / np.abs(old).max()
        if not error <= TOLERANCE:
            raise InputError(
                f"{name}: the logits of the image {image!r} differ by {error:.1e} of "
                f"the largest from the released ones; {TOLERANCE:g} is allowed"
            )
