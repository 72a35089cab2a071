"""The registry of networks: lists them and creates them by name."""

import dataclasses
import fnmatch
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype, Initializer

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

# Options of how a network is computed and initialized, and not of what it computes.
EXECUTION = (
    "axis_name",
    "dtype",
    "implementation",
    "kernel_init",
    "param_dtype",
    "remat",
    "scan",
)


def _is_flag(value: Any) -> bool:
    """Returns True for a bool, and for 0 and 1, which command lines have for it."""
    return isinstance(value, bool | np.bool_) or (_is_whole(value) and value in (0, 1))


def _is_whole(value: Any) -> bool:
    """Returns True for an integer, but not for a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Returns True for a number, but not for a bool."""
    real = isinstance(value, numbers.Real) or getattr(value, "ndim", None) == 0
    return real and not isinstance(value, bool)


def _is_dtype(value: Any) -> bool:
    """Returns True for a dtype of floats, or its name."""
    try:
        return value is not None and jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except (TypeError, ValueError, SyntaxError):
        return False


class OptionKind(NamedTuple):
    """The values that an attribute of a network takes.

    Attributes:
      accepts: returns True for a value that it takes.
      convert: returns the value that the network gets, which can be hashed and written
        as JSON.
      text: what to call these values.
    """

    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any]
    text: str


def _number(value: Any) -> int | float:
    """Returns a number as one of Python's."""
    return value if isinstance(value, int | float) else float(value)


def _wholes(values: Any) -> tuple[int, ...]:
    """Returns integers as a tuple of Python's."""
    return tuple(int(value) for value in values)


FLOATS = "a dtype of floats, such as float32, bfloat16 or float16"

# By the annotation of an attribute. Those of other types are checked by the networks.
KINDS: Mapping[Any, OptionKind] = {
    bool: OptionKind(_is_flag, bool, "True or False"),
    int: OptionKind(_is_whole, int, "an integer"),
    float: OptionKind(_is_number, _number, "a number"),
    str: OptionKind(lambda x: isinstance(x, str), str, "a string"),
    str | None: OptionKind(
        lambda x: x is None or isinstance(x, str), lambda x: x, "a string or None"
    ),
    tuple[int, ...]: OptionKind(
        lambda x: isinstance(x, tuple | list) and all(map(_is_whole, x)),
        _wholes,
        "a tuple of integers",
    ),
    Dtype: OptionKind(_is_dtype, lambda x: x, FLOATS),
    Dtype | None: OptionKind(
        lambda x: x is None or _is_dtype(x),
        lambda x: x,
        f"None or {FLOATS}",
    ),
    Initializer: OptionKind(callable, lambda x: x, "an initializer, a function"),
}


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
      InputError: if a family is given without its option, or an option has a value of
        another type.

    Example:
      >>> create_model("shiftresnet20", expansion=4, num_classes=100).expansion
      4
    """
    return build_model(name, overrides)


def build_model(name: str, overrides: Mapping[str, Any]) -> Unit:
    """Creates a network as `create_model` does, with options of any names.

    Args:
      name: see `create_model`.
      overrides: attributes of the network to set, by name.

    Returns:
      The network.

    Raises:
      UnknownNameError: if the network or an option is unknown.
      InputError: see `create_model`.
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
    options, converted = _options(builder()), dict(overrides)
    for option, value in overrides.items():
        if option not in options:
            raise unknown_name(f"option of {name}", option, options)
        kind = KINDS.get(options[option])
        if kind is None:
            continue
        if not kind.accepts(value):
            raise InputError(f"{option}={value!r}: it must be {kind.text}")
        converted[option] = kind.convert(value)
    return builder(**converted)


def defining_options(model: Unit) -> dict[str, Any]:
    """Returns the options that define what a network computes, defaults included.

    Args:
      model: a result of `create_model`.

    Returns:
      The values by name. With them `create_model` makes the same network in a version
      that has other defaults. Options like `dtype` and `remat` are left out.

    Example:
      >>> options = defining_options(create_model("resnet20"))
      >>> options["depth"], options["block_reduction"], "remat" in options
      (20, 1.0, False)
    """
    names = [name for name in _options(model) if name not in EXECUTION]
    return {name: getattr(model, name) for name in names}


def json_options(model: Unit, given: Iterable[str]) -> dict[str, Any]:
    """Returns the options that a file of weights has, as values of JSON.

    Args:
      model: a result of `create_model`.
      given: names of the options that it was made with.

    Returns:
      Those that define the network, and those given, by name.

    Example:
      >>> model = create_model("resnet20", dtype=jnp.bfloat16)
      >>> json_options(model, ["dtype"])["dtype"]
      'bfloat16'
    """
    values = {name: getattr(model, name) for name in given} | defining_options(model)
    return {name: _as_json(value) for name, value in values.items()}


def _as_json(value: Any) -> Any:
    """Returns the value of an option as JSON has it."""
    if isinstance(value, shiftnet.Stage):
        return dataclasses.asdict(value)
    if isinstance(value, tuple | list):
        return [_as_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return jnp.dtype(value).name


def _options(model: Unit) -> dict[str, Any]:
    """Returns the attributes of a network that can be set, with their annotations."""
    return {
        field.name: field.type
        for field in dataclasses.fields(model)
        if field.init and field.name not in ("name", "parent")
    }
