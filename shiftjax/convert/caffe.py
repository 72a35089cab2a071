"""Conversion of weights from Caffe, for the networks of Active Shift.

The authors' networks (https://github.com/jyh2986/Active-Shift) are those of
`shiftjax.models.active_resnet`; K is the stage and I the block, both 0 in the stem:

    theirs                             ours
    conv0                              stem
    bnK_I, scaleK_I                    stageK_blockI/expand_norm
    convK_I/1                          stageK_blockI/expand
    bnK_I/1, scaleK_I/1                stageK_blockI/shift_norm
    shiftK_I/2, x and y                stageK_blockI/shift, offsets (dy, dx)
    convK_I/3                          stageK_blockI/project
    conv/shortcutK                     stageK_block01/shortcut
    bn/bnlast, scale/bnlast            norm
    fc/linear                          head
    weight [out, in, h, w]             kernel [h, w, in, out], of 1x1 [in, out]

Their scale and bias contain the BatchNorm before them, whose statistics are in the file
too. `from_caffe` takes them apart again, so that the network can be trained further.
Their images are BGR, in which the first kernel is turned around, and normalized by
`PREPARATION`.
"""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from shiftjax.convert.caffe_files import read_caffe_file
from shiftjax.convert.state_dicts import check_arrays, sizes
from shiftjax.errors import InputError
from shiftjax.models.active_resnet import ActiveResNet
from shiftjax.registry import create_model

HEAD = "fc/linear.1"  # its bias
SCALE = 0.017352  # of pixels in 0 .. 255, after the mean
# How images are prepared, and what the weights are: fields of `shiftjax.weights.Card`.
PREPARATION: Mapping[str, Any] = {
    "image_size": 224,
    "resize": 256,
    "mean": tuple(value / 255 for value in (123.68, 116.78, 103.94)),
    "std": (1 / (255 * SCALE),) * 3,
    "dataset": "imagenet2012",
    "license": "BSD-2-Clause",
}

Names = tuple[str, ...]


def from_caffe(
    source: str | os.PathLike[str] | Mapping[str, Any], name: str, **overrides: Any
) -> dict[str, Any]:
    """Converts the authors' Caffe weights of an AS-ResNet to variables.

    Args:
      source: a `.caffemodel`, an `.npz` of its blobs, or a dict of them by names such
        as "conv0.0"; see `shiftjax.convert.caffe_files`.
      name: a network "as_resnet_*" of `shiftjax.list_models()`.
      **overrides: attributes of the network, as for `shiftjax.create_model`.

    Returns:
      A dict with "params" and "batch_stats", NumPy arrays with the names, shapes and
      dtypes of the network. It takes RGB images.

    Raises:
      MissingFileError: if the file does not exist.
      InputError: if it cannot be read, or a blob is missing, unknown, of another shape
        or not of floats. The message lists the first such blobs.
      UnknownNameError: if there is no such network.
    """
    if not isinstance(create_model(name, **overrides), ActiveResNet):
        raise InputError(
            f"{name} cannot be converted from Caffe: it is not a network of Active "
            "Shift, as_resnet_*"
        )
    if isinstance(source, Mapping):
        what, found = "the dict of blobs", source
    else:
        what, found = os.fspath(source), read_caffe_file(source)
    given = sizes(num_classes=(found.get(HEAD), 0))
    model = create_model(name, **(given | overrides))
    images = jnp.zeros((1, 32, 32, model.channels))
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    leaves: dict[Names, Any] = traverse_util.flatten_dict(tree["params"])
    modules: dict[Names, dict[str, Any]] = {}
    for (*module, leaf), shape in leaves.items():
        modules.setdefault(tuple(module), {})[leaf] = shape
    expected = {
        blob: shape
        for module, arrays in modules.items()
        for blob, shape in zip(_blobs(module), _shapes(arrays), strict=True)
    }
    check_arrays(found, expected, what, name)
    converted: dict[Names, np.ndarray] = {}
    for module in modules:
        blobs = [np.asarray(found[blob], np.float64) for blob in _blobs(module)]
        for (collection, leaf), value in _to_ours(blobs, model.epsilon).items():
            converted[collection, *module, leaf] = value.astype(model.param_dtype)
    kernel = "params", "stem", "kernel"
    converted[kernel] = converted[kernel][:, :, ::-1]  # of BGR images
    return traverse_util.unflatten_dict(converted)


def imagenet_classes() -> tuple[str, ...]:
    """Returns torchvision's names of the 1000 classes of ImageNet, in order.

    Returns:
      The names; none if torchvision is not installed.
    """
    if importlib.util.find_spec("torchvision") is None:
        return ()
    from torchvision.models import ResNet50_Weights  # pyright: ignore

    return tuple(ResNet50_Weights.DEFAULT.meta["categories"])


def _blobs(module: Names) -> tuple[str, ...]:
    """Returns the names of the authors' blobs of a module of ours."""
    if module == ("stem",):
        return ("conv0.0",)
    if module == ("head",):
        return "fc/linear.0", HEAD
    if module == ("norm",):
        return _norm("/bnlast")
    block, part = module
    stage, _, index = block.removeprefix("stage").partition("_block")
    at = "0_0" if block == "stem_block" else f"{stage}_{int(index)}"
    return {
        "expand_norm": _norm(at),
        "expand": (f"conv{at}/1.0",),
        "shift_norm": _norm(f"{at}/1"),
        "shift": (f"shift{at}/2.0", f"shift{at}/2.1"),
        "project": (f"conv{at}/3.0",),
        "shortcut": (f"conv/shortcut{stage}.0",),
    }[part]


def _norm(at: str) -> tuple[str, ...]:
    """Returns scale and bias, and the sums of mean and variance with their weight."""
    return f"scale{at}.0", f"scale{at}.1", f"bn{at}.0", f"bn{at}.1", f"bn{at}.2"


def _shapes(arrays: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Returns the shapes of the blobs of a module, from its params."""
    if "offsets" in arrays:
        return [(len(arrays["offsets"]), 1, 1, 1)] * 2
    if "scale" in arrays:
        return [arrays["scale"].shape] * 4 + [(1,)]
    *window, inputs, outputs = arrays["kernel"].shape
    if "bias" in arrays:
        return [(outputs, inputs), (outputs,)]
    return [(outputs, inputs, *(window or (1, 1)))]


def _to_ours(
    blobs: list[np.ndarray], epsilon: float
) -> dict[tuple[str, str], np.ndarray]:
    """Converts the blobs of a module to its arrays, by collection and name."""
    params = "params"
    if len(blobs) == 5:  # BatchNorm
        scale, bias, mean, var, weight = blobs
        mean, var = (v / weight if weight else 0 * v for v in (mean, var))
        stats = {("batch_stats", "mean"): mean, ("batch_stats", "var"): var}
        bias = bias + mean * scale
        scale = scale * np.sqrt(var + epsilon)
        return stats | {(params, "scale"): scale, (params, "bias"): bias}
    if blobs[-1].ndim == 1:  # the dense layer
        return {(params, "kernel"): blobs[0].T, (params, "bias"): blobs[1]}
    if len(blobs) == 2:  # the displacements
        x, y = (blob.ravel() for blob in blobs)
        return {(params, "offsets"): np.stack([y, x], -1)}
    kernel = blobs[0].transpose(2, 3, 1, 0)
    return {(params, "kernel"): kernel[0, 0] if kernel.shape[0] == 1 else kernel}
