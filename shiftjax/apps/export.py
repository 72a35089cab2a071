"""Networks for other programs: StableHLO by `jax.export`, and ONNX.

An exported program takes any number of pictures. StableHLO runs wherever JAX does, also
without this package; JAX reads what an older version of it wrote for some months, so it
is a format to deploy, not to keep. ONNX is written by jax2onnx.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from shiftjax.errors import InputError, MissingFileError
from shiftjax.shift import by_depthwise, displace_p
from shiftjax.weights import Pretrained

PLATFORMS = ("cpu", "cuda", "tpu")
STABLEHLO, ONNX = ".stablehlo", ".onnx"
FREE = "batch"


def forward(pretrained: Pretrained, *, pictures: bool = False) -> Callable[..., Any]:
    """Returns the network as a function of images alone.

    Args:
      pretrained: the network and its weights, which become part of the function.
      pictures: whether it takes uint8 pictures, and normalises them, instead of
        normalised float32 images.

    Returns:
      A function from `[batch, height, width, channels]` to logits `[batch, classes]`.
    """
    card = pretrained.card
    model = pretrained.model.clone(form="plain")  # which has no size of its own

    def normalised(images: jax.Array) -> Any:
        return model.apply(pretrained.variables, images)

    def from_pictures(images: jax.Array) -> Any:
        mean, std = jnp.asarray(card.mean), jnp.asarray(card.std)
        return normalised((images.astype(jnp.float32) / 255 - mean) / std)

    return from_pictures if pictures else normalised


def to_stablehlo(
    pretrained: Pretrained,
    *,
    pictures: bool = False,
    platforms: Sequence[str] = PLATFORMS,
) -> bytes:
    """Exports a network, with a free batch, for several platforms at once.

    Args:
      pretrained: the network and its weights.
      pictures: see `forward`.
      platforms: "cpu", "cuda", "rocm", "tpu".

    Returns:
      What `jax.export.deserialize` reads.

    Raises:
      InputError: if flatbuffers is not installed.
    """
    _needed("flatbuffers")
    shape = jax.export.symbolic_shape(
        f"{FREE}, {', '.join(map(str, pretrained.card.image_shape()))}"
    )
    dtype = jnp.uint8 if pictures else jnp.float32
    program = jax.jit(forward(pretrained, pictures=pictures))
    export = jax.export.export(program, platforms=tuple(platforms))
    return bytes(export(jax.ShapeDtypeStruct(shape, dtype)).serialize())


def load_stablehlo(data: bytes) -> Callable[..., Any]:
    """Returns the function of an exported program.

    Raises:
      InputError: if it is none, or flatbuffers is not installed.
    """
    _needed("flatbuffers")
    try:
        return jax.export.deserialize(bytearray(data)).call
    except Exception as error:  # of whatever kind, for bytes of another format
        raise InputError(f"this is no exported program: {error}") from error


def to_onnx(pretrained: Pretrained, *, pictures: bool = False) -> bytes:
    """Exports a network to ONNX, with a free batch.

    Args:
      pretrained: the network and its weights.
      pictures: see `forward`.

    Returns:
      What ONNX's runtimes read.

    Raises:
      InputError: if jax2onnx is not installed.
    """
    _needed("jax2onnx")
    from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports]

    dtype = jnp.uint8 if pictures else jnp.float32
    shape = ("B", *pretrained.card.image_shape())
    function = in_common_primitives(forward(pretrained, pictures=pictures))
    model: Any = to_onnx(function, [jax.ShapeDtypeStruct(shape, dtype)])
    return model.SerializeToString()


def in_common_primitives(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of one result in which shifts are convolutions.

    Other programs that read JAX's own do not know this package's primitive.
    """

    def rewritten(*args: jax.Array) -> Any:
        closed = jax.make_jaxpr(function)(*args)
        (out,) = _evaluate(closed.jaxpr, closed.consts, args)
        return out

    return rewritten


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluates a program equation by equation, those within calls too."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(x: Any) -> Any:
        return x.val if isinstance(x, Literal) else values[x]

    for equation in jaxpr.eqns:
        given, params = [read(x) for x in equation.invars], equation.params
        inner = params.get("jaxpr") or params.get("call_jaxpr")
        if equation.primitive is displace_p:
            options = (params[name] for name in ("table", "stride", "size"))
            outs = [by_depthwise(given[0], *options)]
        elif inner is not None:
            outs = _evaluate(inner.jaxpr, inner.consts, given)
        else:
            outs = equation.primitive.bind(*given, **params)
            outs = outs if equation.primitive.multiple_results else [outs]
        values.update(zip(equation.outvars, outs, strict=True))
    return [read(x) for x in jaxpr.outvars]


def export(pretrained: Pretrained, path: str | Path, *, pictures: bool = False) -> int:
    """Writes a network in the format that the file's name ends in.

    Args:
      pretrained: the network and its weights.
      path: a file that ends in ".stablehlo" or ".onnx", in a folder that is there.
      pictures: see `forward`.

    Returns:
      The size in bytes.

    Raises:
      InputError: if the name has another ending, or a package is missing.
      MissingFileError: if the folder is not there.
    """
    path = Path(path)
    writers = {STABLEHLO: to_stablehlo, ONNX: to_onnx}
    if path.suffix not in writers:
        raise InputError(f"{path}: the name must end in {STABLEHLO} or {ONNX}")
    if not path.parent.is_dir():
        raise MissingFileError(f"{path}: there is no folder {path.parent}")
    data = writers[path.suffix](pretrained, pictures=pictures)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)
    return len(data)


def _needed(package: str) -> None:
    """Raises InputError if a package is missing."""
    if importlib.util.find_spec(package) is None:
        extra = {"flatbuffers": "export", "jax2onnx": "onnx"}[package]
        raise InputError(f"{package} is not installed: pip install 'shiftjax[{extra}]'")
