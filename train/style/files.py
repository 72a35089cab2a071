"""Weights of convolutions from other programs' files, with checked shapes."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shiftjax.convert import torch_files
from shiftjax.errors import InputError, MissingFileError

Shape = tuple[int, int, int, int]
Params = dict[str, dict[str, jax.Array]]

CODES = ".codes"


def read_npz(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the arrays of a NumPy archive by name.

    Raises:
      MissingFileError: if there is no such file.
      InputError: if the file is not a NumPy archive.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"no file {path}")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not a NumPy archive")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a NumPy archive: {error}") from error


def read_torch(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads named tensors from a file of `torch.save`, without running its code.

    Raises:
      MissingFileError: if there is no such file.
      InputError: if it cannot be read.
    """
    saved = torch_files.read_torch_file(path)
    try:
        return torch_files.named_tensors(saved)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def decode_codebooks(arrays: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Looks up quantized weights in their codebooks, as Deep Compression stores them.

    Args:
      arrays: named arrays. "NAME.codes", integers of any shape, are positions in the
        floats "NAME.codebook" `[entries]`.
      where: the source of the arrays, for error messages.

    Returns:
      The arrays, with "NAME.weight" in place of each pair.

    Raises:
      InputError: if codes have no codebook, or point beyond it.

    Example:
      >>> codes, codebook = np.array([[1, 0]]), np.array([0.5, 2.0])
      >>> decode_codebooks({"0.codes": codes, "0.codebook": codebook}, "the arrays")
      {'0.weight': array([[2. , 0.5]])}
    """
    decoded = dict(arrays)
    for name in [name for name in arrays if name.endswith(CODES)]:
        layer = name.removesuffix(CODES)
        codes, codebook = decoded.pop(name), decoded.pop(f"{layer}.codebook", None)
        if codebook is None or np.ndim(codebook) != 1:
            raise InputError(f"{where}: {layer}.codebook is missing or not a vector")
        size = len(codebook)
        if not np.issubdtype(codes.dtype, np.integer) or (
            codes.size and not 0 <= codes.min() <= codes.max() < size
        ):
            raise InputError(
                f"{where}: {name} must be integers from 0 to {size - 1}, positions in "
                f"{layer}.codebook"
            )
        decoded[f"{layer}.weight"] = codebook[codes]
    return decoded


def convolutions(
    arrays: Mapping[str, Any], layers: Mapping[str, tuple[str, Shape]], where: str
) -> Params:
    """Selects convolutions from named arrays, and ignores the other arrays.

    Args:
      arrays: "NAME.weight" `[out, in, height, width]` and "NAME.bias" `[out]`.
      layers: NAME and shape of the weight, by the name in the result.
      where: the source of the arrays, for error messages.

    Returns:
      "kernel" `[height, width, in, out]` and "bias" of each layer, float32.

    Raises:
      InputError: if arrays are missing, have another shape or are not floats; all of
        them are named.

    Example:
      >>> arrays = {"0.weight": np.ones((8, 3, 5, 5), "f"), "0.bias": np.ones(8, "f")}
      >>> params = convolutions(arrays, {"stem": ("0", (8, 3, 5, 5))}, "the arrays")
      >>> jax.tree.map(jnp.shape, params)
      {'stem': {'bias': (8,), 'kernel': (5, 5, 3, 8)}}
    """
    wrong: list[str] = []
    params: Params = {}
    for ours, (name, shape) in layers.items():
        weight = _floats(arrays, f"{name}.weight", shape, wrong)
        bias = _floats(arrays, f"{name}.bias", shape[:1], wrong)
        params[ours] = {"kernel": weight.transpose(2, 3, 1, 0), "bias": bias}
    if wrong:
        raise InputError(f"{where} does not fit: {'; '.join(wrong)}")
    return params


def _floats(
    arrays: Mapping[str, Any], name: str, shape: tuple[int, ...], wrong: list[str]
) -> jax.Array:
    """Returns an array; zeros, and a line in `wrong`, if it does not fit."""
    value = arrays.get(name)
    if value is None:
        wrong.append(f"{name} {list(shape)} is missing")
    elif not isinstance(value, np.ndarray) or not jnp.issubdtype(
        value.dtype, jnp.floating
    ):
        wrong.append(f"{name} is not an array of floats")
    elif value.shape != shape:
        wrong.append(f"{name} is {list(value.shape)}, not {list(shape)}")
    else:
        return jnp.asarray(value, jnp.float32)
    return jnp.zeros(shape)
