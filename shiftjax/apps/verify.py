"""Whether released weights are what the manifest says, and do what they did."""

import os
from collections.abc import Callable, Mapping

import jax
import numpy as np

from shiftjax import image_files
from shiftjax.apps.predict import Classifier
from shiftjax.apps.stylize import Stylizer
from shiftjax.errors import InputError
from shiftjax.models.stylizer import StyleNet
from shiftjax.summary import summarize
from shiftjax.weights import Pretrained, open_pretrained

# Of the largest number: what another order of additions in 110 layers may change.
TOLERANCE = 1e-3


def sample_logits(pretrained: Pretrained) -> dict[str, list[float]]:
    """Computes the logits of the sample pictures that are there, by name.

    Of a stylizer these are the colours of sixteen pixels that it gives.
    """
    card, outputs = pretrained.card, _outputs(pretrained)
    found = {}
    with jax.default_matmul_precision("highest"):
        for name, sample in image_files.SAMPLES.items():
            try:
                image = sample(card.image_size, len(card.mean))
            except ImportError:
                continue
            found[name] = [round(float(x), 5) for x in outputs(image)]
    return found


def _outputs(pretrained: Pretrained) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from a picture to the numbers to be compared."""
    if isinstance(pretrained.model, StyleNet):
        stylizer, step = Stylizer(pretrained), pretrained.card.image_size // 4
        grid = slice(step // 2, None, step), slice(step // 2, None, step)
        return lambda image: stylizer.image(image)[grid].ravel()
    classifier = Classifier(pretrained)
    return lambda image: classifier.logits(image[None])[0]


def verify(name: str, directory: str | os.PathLike | None = None) -> tuple[str, ...]:
    """Verifies a release: size, hash, names, shapes, dtypes, counts and logits.

    Args:
      name: "architecture.tag".
      directory: see `shiftjax.load_pretrained`.

    Returns:
      The sample pictures whose logits were compared.

    Raises:
      UnknownNameError: if there is no such release.
      InputError: if something is not as released.
    """
    pretrained = open_pretrained(name, directory)
    release = pretrained.release
    if release is None:
        raise InputError(
            f"{name} is a file of its own: no manifest says what it must be"
        )
    costs = summarize(pretrained.model, pretrained.card.image_size)
    counted = {"parameters": costs.params, "multiply-adds": costs.macs}
    stated = {"parameters": release.params, "multiply-adds": release.macs}
    if counted != stated:
        raise InputError(f"{name} has {counted}, the manifest says {stated}")
    actual = sample_logits(pretrained)
    compare_logits(actual, release.logits, name)
    return tuple(sorted(actual.keys() & release.logits.keys()))


def compare_logits(
    actual: Mapping[str, list[float]], released: Mapping[str, list[float]], name: str
) -> None:
    """Raises InputError where logits of a picture are not those released."""
    for picture in sorted(actual.keys() & released.keys()):
        new, old = np.asarray(actual[picture]), np.asarray(released[picture])
        error = np.abs(new - old).max() / np.abs(old).max()
        if not error <= TOLERANCE:
            raise InputError(
                f"{name}: the logits of the picture {picture!r} differ by {error:.1e} "
                f"of the largest from those released; {TOLERANCE:g} is allowed"
            )
