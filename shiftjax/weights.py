"""Saving and loading of weights, one safetensors file for each network.

A file holds the variables by path ("params/head/kernel", float32). Its metadata is a
`Card`, which describes the network and the preparation of its images. Loaded variables
have exactly the names, shapes and dtypes of the network. Any difference is an error,
and nothing is loaded in part.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shiftjax import json_fields
from shiftjax.adaptation import with_channels, with_new_head
from shiftjax.convert.torch_files import parse_safetensors
from shiftjax.errors import InputError, MissingFileError, listed
from shiftjax.files import user_path, write_atomically
from shiftjax.image_sizes import Size, check_shape, extent
from shiftjax.registry import create_model, json_options
from shiftjax.releases import manifest
from shiftjax.releases.manifest import Release
from shiftjax.shift import positive

SUFFIX = ".safetensors"
CARD = "card"
MAX_SIZE = 2**15  # of an image, in pixels
# Fields that older versions lack.
ADDED = ("resize", "threshold", "threshold_source")
ADDED += ("painting", "painting_source", "feature_network")
LOADERS = "shiftjax.loaders"  # entry points that load the folder of a run

_TEXTS = json_fields.sequence("a list of texts", json_fields.is_text)
REQUIRED = {
    "architecture": json_fields.NAME,
    "options": json_fields.table("an object of options", lambda _: True),
    "class_names": _TEXTS,
    "image_size": json_fields.either(
        json_fields.whole_number(1, MAX_SIZE),
        json_fields.pair(json_fields.whole_number(1, MAX_SIZE)),
    ),
    "mean": json_fields.sequence("a list of numbers", json_fields.is_finite),
    "std": json_fields.sequence(
        "a list of numbers above 0", lambda x: json_fields.is_finite(x) and x > 0
    ),
}
OPTIONAL = {
    "dataset": json_fields.TEXT,
    "recipe": json_fields.TEXT,
    "seed": json_fields.whole_number(0),
    "commit": json_fields.TEXT,
    "license": json_fields.TEXT,
    "resize": json_fields.or_null(json_fields.whole_number(1, MAX_SIZE)),
    "threshold": json_fields.or_null(  # 1 + 2**-52, the next float, accepts no pair
        json_fields.number("a number of -1 to 1", lambda x: -1 <= x <= 1 + 2**-52)
    ),
    **dict.fromkeys(
        ("threshold_source", "painting", "painting_source", "feature_network"),
        json_fields.TEXT,
    ),
}
"""The kinds of the fields of a card in a file."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Card:
    """The metadata of a file of weights.

    Attributes:
      architecture: a name of `shiftjax.list_models()`.
      options: options of `shiftjax.create_model` for this network.
      class_names: one name for each logit; empty if the network returns none.
      image_size: height and width of the images, in pixels; one number for both.
      mean: mean of each channel, to subtract from values in 0 .. 1.
      std: standard deviation of each channel, to divide by.
      dataset: training set.
      recipe: name of the training recipe.
      seed: seed of the training run.
      commit: commit of the project at the time of the run.
      license: license of the weights.
      resize: short side that images are resized to before their center is cropped; None
        for `image_size`.
      threshold: of a face network, the least cosine similarity at which two images are
        taken for one person; None if none has been chosen.
      threshold_source: the pairs of images that the threshold was chosen on.
      painting: of a stylizer, a small copy of the painting, a JPEG in base64.
      painting_source: the source of the painting, e.g. its artist, title and year.
      feature_network: of a stylizer, the network whose features the losses compared.
    """

    architecture: str
    options: Mapping[str, Any]
    class_names: tuple[str, ...]
    image_size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset: str = ""
    recipe: str = ""
    seed: int = 0
    commit: str = ""
    license: str = "Apache-2.0"
    resize: int | None = None
    threshold: float | None = None
    threshold_source: str = ""
    painting: str = ""
    painting_source: str = ""
    feature_network: str = ""

    def model(self) -> Any:
        """Creates the network, a `flax.linen.Module`."""
        return create_model(self.architecture, **self.options)

    def image_shape(self) -> tuple[int, int, int]:
        """Returns the shape `(height, width, channels)` of an image."""
        return *extent(self.image_size), len(self.mean)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network with its weights.

    Attributes:
      model: the network, a result of `shiftjax.create_model`.
      variables: its "params" and, except for a stylizer, "batch_stats".
      card: metadata of the weights.
      release: entry of the manifest; None for a file that is not a release.
    """

    model: Any
    variables: dict[str, Any]
    card: Card
    release: Release | None = None


def load_pretrained(
    name: str | os.PathLike,
    *,
    num_classes: int | None = None,
    channels: int | None = None,
    directory: str | os.PathLike | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a network with released weights.

    Args:
      name: "architecture.tag", from `list_models(pretrained=True)`; or the path of a
        safetensors file, which is compared with the network but not with a digest; or
        the folder of a run of the trainer, whose newest checkpoint is loaded.
      num_classes: number of classes. If it differs from the release's, a new head with
        this number of logits (initialized with seed 0) replaces the head, and a warning
        is logged.
      channels: number of channels of the images. If it differs from the release's, the
        kernel of the first layer is adapted as in timm: summed for one channel, else
        repeated along its channels and multiplied by the ratio of their numbers.
      directory: folder of the releases, or "hf:owner/name"; by default the folder of
        the environment variable SHIFTJAX_CHECKPOINTS, else the one of the package.

    Returns:
      The network and its variables, in the structure of `model.init`.

    Raises:
      UnknownNameError: if there is no such release; the message suggests the nearest.
      MissingFileError: if the file does not exist.
      InputError: if the file is damaged or belongs to another network, or `num_classes`
        is given for a network without classes, or `channels` for a stylizer.

    Example:
      >>> model, variables = load_pretrained("shiftresnet20_e3.digits")
      >>> model.apply(variables, jnp.zeros((1, 32, 32, 3))).shape
      (1, 10)
    """
    if num_classes is not None:
        positive("num_classes", num_classes)
    if channels is not None:
        positive("channels", channels)
    pretrained = open_pretrained(name, directory)
    model, variables = pretrained.model, pretrained.variables
    if num_classes is not None and not pretrained.card.class_names:
        raise InputError(
            f"num_classes={num_classes}: {name} returns {model.outputs} and has no "
            "classes"
        )
    if num_classes is not None and num_classes != model.num_classes:
        logger.warning(
            "%s has %d classes: a new head with %d classes replaces its head",
            name,
            model.num_classes,
            num_classes,
        )
        model = model.clone(num_classes=num_classes)
        shape = pretrained.card.image_shape()
        variables = with_new_head(model, variables, shape)
    if channels is not None and channels != len(pretrained.card.mean):
        if model.outputs == "images":
            raise InputError(
                f"channels={channels}: {name} returns images of "
                f"{len(pretrained.card.mean)} channels, and takes no others"
            )
        shape = *pretrained.card.image_shape()[:2], channels
        variables = with_channels(model, variables, shape)
    return model, variables


def open_pretrained(
    name: str | os.PathLike, directory: str | os.PathLike | None = None
) -> Pretrained:
    """Loads a network with its weights and their metadata.

    Args:
      name: see `load_pretrained`.
      directory: see `load_pretrained`.

    Returns:
      The network, its variables, its card and its release.

    Raises:
      UnknownNameError: if there is no such release; the message suggests the nearest.
      MissingFileError: if the file does not exist.
      InputError: if the file is damaged or belongs to another network.
    """
    name = os.fspath(name)
    path = user_path(name)
    if path.is_dir() and name not in manifest.release_names(directory):
        return _load_run(str(path))
    if name.endswith(SUFFIX):
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


def _load_run(workdir: str) -> Pretrained:
    """Loads the folder of a run by the function that the trainer registers for it.

    Raises:
      InputError: if no trainer is installed, or the folder has no run.
    """
    for entry in metadata.entry_points(group=LOADERS):
        return entry.load()(workdir)
    raise InputError(
        f"{workdir} is a folder: the runs of the trainer need shiftjax[train]"
    )


def save(path: str | os.PathLike, variables: Mapping[str, Any], card: Card) -> bytes:
    """Writes a file of weights atomically; equal weights give equal bytes.

    Args:
      path: the file, which ends in ".safetensors".
      variables: variables of the card's network: "params" and, except for a stylizer,
        "batch_stats".
      card: metadata of the weights. The file gets all options of its network, so that
        another default in a later version does not change it.

    Returns:
      The bytes of the file.

    Raises:
      InputError: if the file has another ending or cannot be written, the variables do
        not fit the network, or a field of the card is invalid.
    """
    path = user_path(path)
    if path.suffix != SUFFIX:
        raise InputError(f"{path}: a file of weights must end in {SUFFIX}")
    arrays = {
        name: np.ascontiguousarray(value)
        for name, value in flatten_dict(dict(variables), sep="/").items()
    }
    fields = dataclasses.asdict(card)
    # Raises for what no file may have, before an image of this size and these channels.
    _card(json.loads(json.dumps(fields | {"options": {}})))
    _check_variables(arrays, card, str(path))
    import safetensors.numpy

    fields["options"] = json_options(card.model(), card.options)
    for name in ADDED:  # so that versions without this field read the file
        if fields[name] in (None, ""):
            del fields[name]
    text = json.dumps(fields, sort_keys=True)
    data = safetensors.numpy.save(arrays, {CARD: text})
    write_atomically(path, data)
    return data


def digest(data: bytes) -> tuple[int, str]:
    """Returns the size of a file in bytes and its sha256, as the manifest has them."""
    return len(data), hashlib.sha256(data).hexdigest()


def _check_variables(arrays: Mapping[str, np.ndarray], card: Card, where: str) -> None:
    """Compares arrays with the variables of a network.

    Args:
      arrays: arrays by path, e.g. "params/head/bias".
      card: the card of the network.
      where: name of the file, for the error.

    Raises:
      InputError: if a name, shape or dtype differs, or the number of class names, or a
        value is not finite. The message lists the differences.
    """
    tree = _shapes(card, where)
    classes = getattr(card.model(), "num_classes", 0)
    if len(card.class_names) != classes:
        raise InputError(
            f"{where} has {len(card.class_names)} class names for {classes} classes"
        )
    expected: dict[str, Any] = flatten_dict(dict(tree), sep="/")
    wrong = [f"{name} is missing" for name in sorted(expected.keys() - arrays.keys())]
    wrong += [f"{name} is unknown" for name in sorted(arrays.keys() - expected.keys())]
    for name in sorted(arrays.keys() & expected.keys()):
        kinds = [f"{a.dtype} {list(a.shape)}" for a in (arrays[name], expected[name])]
        if kinds[0] != kinds[1]:
            wrong.append(f"{name} is {kinds[0]}, not {kinds[1]}")
        elif not np.isfinite(arrays[name]).all():
            wrong.append(f"{name} has values that are NaN or infinite")
    if wrong:
        raise InputError(
            f"{where} does not hold the variables of {card.architecture}: "
            f"{listed(wrong)}"
        )


def _shapes(card: Card, where: str) -> Any:
    """Returns the shapes and dtypes of the variables of a card's network.

    Raises:
      InputError: if the options of the card make no network.
    """
    images = jax.ShapeDtypeStruct((1, *card.image_shape()), jnp.float32)
    try:
        return jax.eval_shape(card.model().init, jax.random.key(0), images)
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{where}: the options {json_fields.shown(dict(card.options))} make no "
            f"{card.architecture}: {reason}"
        ) from error


def _parse(data: bytes, where: str) -> Pretrained:
    """Parses the content of a file of weights; `where` names it in errors."""
    try:
        arrays = parse_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        if CARD not in (metadata := header.get("__metadata__", {})):
            raise InputError("it has no card; `shiftjax convert` reads PyTorch's files")
        card = _card(json.loads(metadata[CARD]))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where} is not a file of weights: {error}") from error
    _check_variables(arrays, card, where)
    variables = unflatten_dict(
        {tuple(name.split("/")): jnp.array(value) for name, value in arrays.items()}
    )
    return Pretrained(card.model(), variables, card)


def _card(values: Any) -> Card:
    """Builds a card from the JSON of a file.

    Raises:
      InputError: if a field is missing, unknown or of another kind, or two do not fit.
    """
    fields = json_fields.checked_fields(values, REQUIRED, OPTIONAL)
    card = Card(**{name: _tuple(value) for name, value in fields.items()})
    if len(card.mean) != len(card.std) or len(card.mean) not in (1, 3):
        raise InputError(
            f"mean has {len(card.mean)} channels and std {len(card.std)}: both must "
            "have 1 (gray) or 3 (RGB)"
        )
    check_shape(card.image_size, len(card.mean), card.resize)
    return card


def _tuple(value: Any) -> Any:
    """Converts lists to tuples: JSON has lists where the card has tuples."""
    return tuple(value) if isinstance(value, list) else value
