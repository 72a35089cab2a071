"""Export of networks to other programs: StableHLO by `jax.export`, and ONNX.

An exported program takes batches of any size. StableHLO runs wherever JAX runs, without
this package. JAX reads programs of its earlier versions for some months only: the
format serves deployment, not storage. ONNX is written by jax2onnx.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from shiftjax.errors import InputError, MissingFileError
from shiftjax.files import user_path, write_atomically
from shiftjax.lowerings import by_depthwise
from shiftjax.shift import displace_p
from shiftjax.weights import Pretrained

PLATFORMS = ("cpu", "cuda", "tpu")
STABLEHLO, ONNX = ".stablehlo", ".onnx"
FREE = "batch"  # name of the symbolic batch size


def inference_function(
    pretrained: Pretrained, *, uint8: bool = False
) -> Callable[..., Any]:
    """Returns the network as a function of images alone.

    Args:
      pretrained: the network and its weights, which become part of the function.
      uint8: if True, the function takes uint8 images and normalizes them; otherwise it
        takes normalized float32 images.

    Returns:
      A function from `[batch, height, width, channels]` to logits `[batch, classes]`
      or embeddings `[batch, features]`; of a stylizer, to normalized images.
    """
    card = pretrained.card
    # The reference takes a batch of any size.
    model = pretrained.model.clone(implementation="reference")

    def normalized(images: jax.Array) -> Any:
        return model.apply(pretrained.variables, images)

    def from_uint8(images: jax.Array) -> Any:
        mean, std = jnp.asarray(card.mean), jnp.asarray(card.std)
        return normalized((images.astype(jnp.float32) / 255 - mean) / std)

    return from_uint8 if uint8 else normalized


def to_stablehlo(
    pretrained: Pretrained,
    *,
    uint8: bool = False,
    platforms: Sequence[str] = PLATFORMS,
) -> bytes:
    """Exports a network to StableHLO for several platforms, with a free batch size.

    Args:
      pretrained: the network and its weights.
      uint8: see `inference_function`.
      platforms: any of "cpu", "cuda", "rocm", "tpu".

    Returns:
      The serialized program, as `jax.export.deserialize` reads it.

    Raises:
      InputError: if flatbuffers is not installed.
    """
    _needed("flatbuffers")
    shape = jax.export.symbolic_shape(
        f"{FREE}, {', '.join(map(str, pretrained.card.image_shape()))}"
    )
    dtype = jnp.uint8 if uint8 else jnp.float32
    program = jax.jit(inference_function(pretrained, uint8=uint8))
    export = jax.export.export(program, platforms=tuple(platforms))
    return bytes(export(jax.ShapeDtypeStruct(shape, dtype)).serialize())


def load_stablehlo(data: bytes) -> Callable[..., Any]:
    """Returns the function of an exported program.

    Args:
      data: the bytes that `to_stablehlo` returned.

    Returns:
      The function, for images in the dtype that the program was exported for.

    Raises:
      InputError: if the bytes are not an exported program, or flatbuffers is not
        installed.
    """
    _needed("flatbuffers")
    try:
        return jax.export.deserialize(bytearray(data)).call
    except Exception as error:  # the kind depends on the bytes
        raise InputError(f"the bytes are not an exported program: {error}") from error


def to_onnx(pretrained: Pretrained, *, uint8: bool = False) -> bytes:
    """Exports a network to ONNX, with a free batch size.

    Args:
      pretrained: the network and its weights.
      uint8: see `inference_function`.

    Returns:
      The serialized model, as the ONNX runtimes read it.

    Raises:
      InputError: if jax2onnx is not installed.
    """
    _needed("jax2onnx")
    from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports]

    dtype = jnp.uint8 if uint8 else jnp.float32
    shape = ("B", *pretrained.card.image_shape())
    function = in_common_primitives(inference_function(pretrained, uint8=uint8))
    model: Any = to_onnx(function, [jax.ShapeDtypeStruct(shape, dtype)])
    # Those of jax2onnx 0.17 are wrong after a transposition; runtimes infer their own.
    del model.graph.value_info[:]
    return model.SerializeToString()


def in_common_primitives(function: Callable[..., Any]) -> Callable[..., Any]:
    """Rewrites a function so that its shifts are depthwise convolutions.

    Converters that read JAX programs do not know the primitive of this package.

    Args:
      function: a function of arrays with one result.

    Returns:
      A function with the same result, without the primitive.
    """

    def rewritten(*args: jax.Array) -> Any:
        closed = jax.make_jaxpr(function)(*args)
        (out,) = _evaluate(closed.jaxpr, closed.consts, args)
        return out

    return rewritten


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluates a program equation by equation, including those inside calls."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(x: Any) -> Any:
        return x.val if isinstance(x, Literal) else values[x]

    for equation in jaxpr.eqns:
        given, params = [read(x) for x in equation.invars], equation.params
        inner = params.get("jaxpr") or params.get("call_jaxpr")
        if equation.primitive is displace_p:
            options = (params[name] for name in ("table", "stride", "size"))
            outs = [by_depthwise(given[0], *options)]
        elif equation.primitive.name == "scan":  # which is not one call, but a loop
            params = params | {"jaxpr": _rewritten(inner)}
            outs = equation.primitive.bind(*given, **params)
        elif inner is not None:  # that of `jax.checkpoint` is without constants
            consts = getattr(inner, "consts", ())
            outs = _evaluate(getattr(inner, "jaxpr", inner), consts, given)
        else:
            outs = equation.primitive.bind(*given, **params)
            outs = outs if equation.primitive.multiple_results else [outs]
        values.update(zip(equation.outvars, outs, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _rewritten(closed: Any) -> Any:
    """Returns the program of a loop without the primitive of this package."""

    def body(*args: jax.Array) -> list[Any]:
        return _evaluate(closed.jaxpr, closed.consts, args)

    return jax.make_jaxpr(body)(*closed.in_avals)


def export(pretrained: Pretrained, path: str | Path, *, uint8: bool = False) -> int:
    """Writes a network to a file, in the format of its ending.

    Args:
      pretrained: the network and its weights.
      path: the file, which ends in ".stablehlo" or ".onnx", in an existing folder.
      uint8: see `inference_function`.

    Returns:
      The size of the file in bytes.

    Raises:
      InputError: if the file has another ending or cannot be written, or a package is
        missing.
      MissingFileError: if the folder does not exist.
    """
    path = user_path(path)
    writers = {STABLEHLO: to_stablehlo, ONNX: to_onnx}
    if path.suffix not in writers:
        raise InputError(f"{path}: the name must end in {STABLEHLO} or {ONNX}")
    if not path.parent.is_dir():
        raise MissingFileError(f"{path}: there is no folder {path.parent}")
    data = writers[path.suffix](pretrained, uint8=uint8)
    write_atomically(path, data)
    return len(data)


def _needed(package: str) -> None:
    """Raises InputError if a package is missing."""
    if importlib.util.find_spec(package) is None:
        extras = {
            "flatbuffers": "pip install 'shiftjax[export]'",
            "jax2onnx": "pip install 'shiftjax[onnx]' in an environment of its own, as "
            "it needs an older Orbax than shiftjax[train]",
        }
        raise InputError(f"{package} is not installed: {extras[package]}")
