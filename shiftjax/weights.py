"""Weights: one safetensors file a network, and loading it whole or not at all.

A file holds the variables by path ("params/head/kernel", float32) and, as its metadata,
a `Card`: what the network is and how its pictures are prepared. What is loaded has
exactly the names, shapes and dtypes of the network; anything else is an error, and
nothing is loaded in part.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shiftjax.errors import InputError, MissingFileError
from shiftjax.registry import create_model
from shiftjax.releases import manifest
from shiftjax.releases.manifest import Release

SUFFIX = ".safetensors"
CARD = "card"
SHOWN = 8  # differences in one message
HEAD = "head"  # the layer that maps features to logits

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Card:
    """What a file of weights says of itself.

    Attributes:
      architecture: a name of `shiftjax.list_models()`.
      options: what `create_model` is given beside the name.
      class_names: one name for each logit; none of a network that gives pictures.
      image_size: height and width of the pictures.
      mean: of each channel, of values in 0 .. 1, to subtract.
      std: of each channel, to divide by.
      dataset: what it was trained on.
      recipe: how.
      seed: of the run.
      commit: of the project that trained it.
      license: of the weights.
    """

    architecture: str
    options: Mapping[str, Any]
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset: str = ""
    recipe: str = ""
    seed: int = 0
    commit: str = ""
    license: str = "Apache-2.0"

    def model(self) -> Any:
        """Makes the network."""
        return create_model(self.architecture, **self.options)

    def image_shape(self) -> tuple[int, int, int]:
        """Returns `(height, width, channels)` of a picture."""
        return self.image_size, self.image_size, len(self.mean)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network with its weights.

    Attributes:
      model: maps images to logits, a stylizer to images.
      variables: its "params" and, of a classifier, "batch_stats".
      card: what it is.
      release: its entry in the manifest; None for a file that is in none.
    """

    model: Any
    variables: dict[str, Any]
    card: Card
    release: Release | None = None


def load_pretrained(
    name: str,
    *,
    num_classes: int | None = None,
    directory: str | os.PathLike | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a network with released weights.

    Args:
      name: "architecture.tag", of `list_models(pretrained=True)`; or the path of a
        safetensors file, which is compared with the network but has no hash to verify.
      num_classes: if it differs from the release's, the head is replaced by a new one
        of so many classes (drawn from seed 0), and a log message says so.
      directory: folder of the releases, or "hf:owner/name"; by default the one named by
        the environment's SHIFTJAX_CHECKPOINTS, else the package's own.

    Returns:
      The network and its variables, as `model.init` gives them.

    Raises:
      UnknownNameError: if there is no such release; the nearest are named.
      MissingFileError: if its file is not there.
      InputError: if the file is damaged, or not of this network.

    Example:
      >>> model, variables = load_pretrained("shiftresnet20_e3.digits")
      >>> model.apply(variables, jnp.zeros((1, 32, 32, 3))).shape
      (1, 10)
    """
    pretrained = open_pretrained(name, directory)
    model, variables = pretrained.model, pretrained.variables
    if num_classes is not None and not pretrained.card.class_names:
        raise InputError(f"{name} gives pictures: it has no num_classes to set")
    if num_classes is not None and num_classes != model.num_classes:
        logger.warning(
            "%s has %d classes: its head is replaced by a new one of %d",
            name,
            model.num_classes,
            num_classes,
        )
        model = model.clone(num_classes=num_classes)
        images = jnp.zeros((1, *pretrained.card.image_shape()))
        new = jax.jit(model.init)(jax.random.key(0), images)
        params = variables["params"] | {HEAD: new["params"][HEAD]}
        variables = variables | {"params": params}
    return model, variables


def open_pretrained(
    name: str, directory: str | os.PathLike | None = None
) -> Pretrained:
    """Loads a network with all that is known of it; see `load_pretrained`."""
    if name.endswith(SUFFIX):
        path = Path(name).expanduser()
        if not path.is_file():
            raise MissingFileError(f"there is no file {path}")
        return _parse(path.read_bytes(), str(path))
    release = manifest.find(name, directory)
    pretrained = _parse(manifest.verified(release, directory), release.file)
    if pretrained.card.architecture != release.architecture:
        raise InputError(
            f"{release.file} holds a {pretrained.card.architecture}, not the "
            f"{release.architecture} of the manifest"
        )
    return dataclasses.replace(pretrained, release=release)


def save(path: str | os.PathLike, variables: Mapping[str, Any], card: Card) -> bytes:
    """Writes a file of weights, whole or not at all; the same values, the same bytes.

    Args:
      path: the file, whose name ends in ".safetensors".
      variables: those of the network of the card, "params" and maybe "batch_stats".
      card: what it is.

    Returns:
      What was written.

    Raises:
      InputError: if the variables are not those of the network.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise InputError(f"{path}: the name of a file of weights ends in {SUFFIX}")
    arrays = {
        name: np.ascontiguousarray(value)
        for name, value in flatten_dict(dict(variables), sep="/").items()
    }
    compare(arrays, card, str(path))
    import safetensors.numpy

    text = json.dumps(dataclasses.asdict(card), sort_keys=True)
    data = safetensors.numpy.save(arrays, {CARD: text})
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)
    return data


def digest(data: bytes) -> tuple[int, str]:
    """Returns size and sha256, as the manifest keeps them."""
    return len(data), hashlib.sha256(data).hexdigest()


def compare(arrays: Mapping[str, np.ndarray], card: Card, where: str) -> None:
    """Raises InputError unless names, shapes and dtypes are those of the network."""
    classes = getattr(card.model(), "num_classes", 0)
    if len(card.class_names) != classes:
        raise InputError(
            f"{where}: {len(card.class_names)} class names for {classes} classes"
        )
    images = jax.ShapeDtypeStruct((1, *card.image_shape()), jnp.float32)
    tree = jax.eval_shape(card.model().init, jax.random.key(0), images)
    expected: dict[str, Any] = flatten_dict(dict(tree), sep="/")
    wrong = [f"{name} is missing" for name in sorted(expected.keys() - arrays.keys())]
    wrong += [f"{name} is unknown" for name in sorted(arrays.keys() - expected.keys())]
    for name in sorted(arrays.keys() & expected.keys()):
        kinds = [f"{a.dtype} {list(a.shape)}" for a in (arrays[name], expected[name])]
        if kinds[0] != kinds[1]:
            wrong.append(f"{name} is {kinds[0]}, not {kinds[1]}")
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise InputError(
            f"{where} does not hold the variables of {card.architecture}: "
            f"{'; '.join(wrong[:SHOWN])}{more}"
        )


def _parse(data: bytes, where: str) -> Pretrained:
    """Reads a file of weights."""
    import safetensors.numpy

    try:
        arrays = safetensors.numpy.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        fields = json.loads(header["__metadata__"][CARD])
        card = Card(**{name: _tuple(value) for name, value in fields.items()})
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where} is no file of weights: {error}") from error
    compare(arrays, card, where)
    variables = unflatten_dict(
        {tuple(name.split("/")): jnp.array(value) for name, value in arrays.items()}
    )
    return Pretrained(card.model(), variables, card)


def _tuple(value: Any) -> Any:
    """JSON has lists where the card has tuples."""
    return tuple(value) if isinstance(value, list) else value
