"""The registry of networks: lists them and creates them by name."""

import dataclasses
import fnmatch
from collections.abc import Callable
from typing import Any

from shiftjax.errors import InputError, unknown_name
from shiftjax.models import (
    active_resnet,
    bottleneck,
    facenet,
    resnet,
    shiftnet,
    stylizer,
)
from shiftjax.module import Unit
from shiftjax.releases import manifest

VARIANTS: dict[str, Callable[..., Unit]] = {
    **resnet.VARIANTS,
    **shiftnet.VARIANTS,
    **bottleneck.VARIANTS,
    **active_resnet.VARIANTS,
    **facenet.VARIANTS,
    **stylizer.VARIANTS,
}

# Families that require one more option: `create_model("shiftresnet20", expansion=4)`.
FAMILIES = {f"shiftresnet{depth}": "expansion" for depth in resnet.DEPTHS}


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Lists the names of the networks, or of the released weights.

    Args:
      pattern: pattern with shell wildcards, as of `fnmatch`.
      pretrained: if True, lists released weights, as "architecture.tag", instead.

    Returns:
      The matching names, sorted; empty if nothing matches.

    Example:
      >>> list_models("shiftresnet20*")[:2]
      ['shiftresnet20_e1', 'shiftresnet20_e3']
    """
    names = manifest.release_names() if pretrained else VARIANTS
    return sorted(fnmatch.filter(names, pattern))


def create_model(name: str, **overrides: Any) -> Unit:
    """Creates a network by name.

    Args:
      name: an architecture of `list_models()`; or "shiftresnet20", "shiftresnet56",
        "shiftresnet110" with `expansion`.
      **overrides: attributes of the network to set: `num_classes`, `dtype`,
        `param_dtype`, `expansion`, `block_reduction`, `remat`, ...

    Returns:
      A `flax.linen.Module` that maps images to logits; a face network maps them to
      embeddings, and a stylizer to images.

    Raises:
      UnknownNameError: if the network or an option is unknown; the message suggests
        the nearest names.
      InputError: if a family is given without its option.

    Example:
      >>> create_model("shiftresnet20", expansion=4, num_classes=100).expansion
      4
    """
    if name in FAMILIES:
        option = FAMILIES[name]
        if option not in overrides:
            variants = ", ".join(list_models(f"{name}_*"))
            raise InputError(f"model {name!r} needs {option}=...; or use {variants}")
        builder = VARIANTS[list_models(f"{name}_*")[0]]
    elif name in VARIANTS:
        builder = VARIANTS[name]
    else:
        raise unknown_name("model", name, [*VARIANTS, *FAMILIES])
    options = _options(builder)
    for option in overrides:
        if option not in options:
            raise unknown_name(f"option of {name}", option, options)
    return builder(**overrides)


def _options(builder: Callable[..., Unit]) -> list[str]:
    """Lists the attributes of a network that can be set."""
    names = [field.name for field in dataclasses.fields(builder()) if field.init]
    return [name for name in names if name not in ("name", "parent")]
