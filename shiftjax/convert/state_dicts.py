"""Conversion of state dicts from and to PyTorch: the CIFAR networks, and ResNet-50.

`from_torch` takes the authors' checkpoints, and state dicts of other networks with the
same names. `shiftjax.convert.names` lists these names, and
`shiftjax.convert.torch_files` reads the files without PyTorch.

The authors' code adds the shortcut after the last ReLU of a shift block, as ours does.
A network that applies ReLU to the sum has the same names but is another function: it
converts without an error and computes other logits.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from shiftjax.convert import torch_files
from shiftjax.convert.names import entries, head_name
from shiftjax.errors import InputError, listed
from shiftjax.registry import create_model

# How the authors' images are prepared: fields of `shiftjax.weights.Card`.
PREPARATION: Mapping[str, Any] = {
    "image_size": 32,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2023, 0.1994, 0.2010),
}
# How torchvision's are, for its first weights of ResNet-50.
IMAGENET_PREPARATION: Mapping[str, Any] = {
    "image_size": 224,
    "resize": 256,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
COUNTER = "num_batches_tracked"  # a BatchNorm entry since PyTorch 0.4.1

logger = logging.getLogger(__name__)


def from_torch(
    source: str | os.PathLike[str] | Mapping[str, Any], name: str, **overrides: Any
) -> dict[str, Any]:
    """Converts PyTorch weights to variables.

    A file is read without PyTorch, and no code in it is run. The numbers of classes and
    of image channels are taken from the weights. A warning is logged if the
    weights have half precision.

    Args:
      source: a state dict of arrays or tensors, a .safetensors file of one with
        PyTorch's names, or a file of `torch.save`. The latter holds a state dict, a
        module, or a dict with one of these as its "net", "state_dict", "model" or
        "model_state_dict", like the authors' checkpoints. Names may have the prefixes
        "module.", "_orig_mod." and "model." of wrappers.
      name: a CIFAR network of `shiftjax.list_models()`, or "resnet50", for
        torchvision's weights.
      **overrides: attributes of the network, as for `shiftjax.create_model`.

    Returns:
      A dict with "params" and "batch_stats", NumPy arrays with the names, shapes and
      dtypes of the network.

    Raises:
      MissingFileError: if the file does not exist.
      InputError: if it cannot be read, or an entry is missing, unknown, of another
        shape or not of floats. The message lists the first such entries.
      UnknownNameError: if there is no such network.

    Example:
      >>> name = "shiftresnet20_e3"
      >>> weights = {a.name: np.ones(a.shape, np.float32) for a in entries(name)}
      >>> weights["layer2.0.conv1.weight"].shape  # PyTorch: [out, in, height, width]
      (96, 16, 1, 1)
      >>> variables = from_torch(weights, name)
      >>> jax.tree.map(np.shape, variables["params"]["stage2_block01"]["expand"])
      {'conv': {'kernel': (16, 96)}, 'norm': {'bias': (96,), 'scale': (96,)}}
      >>> len(weights), len(to_torch(variables, name))  # the latter with counters
      (107, 128)
    """
    if isinstance(source, Mapping):
        what, saved = "the state dict", source
    else:
        what = os.fspath(source)
        if what.endswith(".safetensors"):
            saved = torch_files.read_safetensors(source)
        else:
            saved = torch_files.read_torch_file(source)
    try:
        found = torch_files.named_tensors(saved)
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    found = {
        key: value for key, value in found.items() if key.split(".")[-1] != COUNTER
    }
    given = sizes(
        num_classes=(
            found.get(f"{head_name(create_model(name, **overrides))}.bias"),
            0,
        ),
        channels=(found.get("conv1.weight"), 1),
    )
    arrays = entries(name, **(given | overrides))
    check_arrays(found, {array.name: array.shape for array in arrays}, what, name)
    if short := sorted({f"{x.dtype}" for x in found.values() if x.dtype.itemsize < 4}):
        kinds = " and ".join(short)
        logger.warning("%s has weights in %s, less exact than float32", what, kinds)
    return traverse_util.unflatten_dict(
        {array.path: array.to_ours(np.asarray(found[array.name])) for array in arrays}
    )


def to_torch(
    variables: Mapping[str, Any], name: str, **overrides: Any
) -> dict[str, np.ndarray]:
    """Converts variables to a PyTorch state dict.

    Args:
      variables: `{"params": ..., "batch_stats": ...}` of the network.
      name: a CIFAR network of `shiftjax.list_models()`, or "resnet50", for
        torchvision's weights.
      **overrides: attributes of the network, as for `shiftjax.create_model`.

    Returns:
      The state dict of the authors' network in its order: float32 arrays, and an int64
      zero `num_batches_tracked` for each BatchNorm. PyTorch requires that entry but
      uses it only without a momentum. `from_torch` returns the same variables again.

    Raises:
      InputError: if a variable is missing, unknown, of another shape or not of floats.
        The message lists the first such variables.
      UnknownNameError: if there is no such network.
    """
    leaves = traverse_util.flatten_dict(dict(variables))
    found = {"/".join(map(str, path)): value for path, value in leaves.items()}
    given = sizes(
        num_classes=(found.get("params/head/bias"), 0),
        channels=(found.get("params/stem/conv/kernel"), 2),
    )
    arrays = entries(name, **(given | overrides))
    expected = {"/".join(array.path): array.ours.shape for array in arrays}
    check_arrays(found, expected, "the tree of variables", name)
    weights: dict[str, np.ndarray] = {}
    for array in arrays:
        value = np.asarray(found["/".join(array.path)])
        weights[array.name] = array.to_theirs(value)
        if array.path[-1] == "var":
            weights[array.name.replace("running_var", COUNTER)] = np.zeros((), np.int64)
    return weights


def preparation(name: str) -> dict[str, Any]:
    """Returns how the images of a network are prepared: fields of a card.

    Args:
      name: a network that `from_torch` converts.

    Example:
      >>> preparation("resnet50")["resize"]
      256
    """
    return dict(IMAGENET_PREPARATION if name == "resnet50" else PREPARATION)


def sizes(**axes: tuple[Any, int]) -> dict[str, int]:
    """Returns the size of each array along its axis, where both exist."""
    shapes = {name: getattr(array, "shape", ()) for name, (array, _) in axes.items()}
    return {
        name: shapes[name][axis]
        for name, (_, axis) in axes.items()
        if len(shapes[name]) > axis
    }


def check_arrays(
    found: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
    what: str,
    name: str,
) -> None:
    """Compares arrays with the expected names and shapes.

    Args:
      found: arrays by name.
      expected: shapes by name.
      what: description of the source, for the error.
      name: name of the network, for the error.

    Raises:
      InputError: if an array does not fit. The message lists the first such arrays.
    """
    wrong = [
        f"{key} {list(shape)} is missing"
        for key, shape in expected.items()
        if key not in found
    ]
    wrong += [f"{key} is unknown" for key in found if key not in expected]
    for key in (key for key in expected if key in found):
        value, shape = found[key], expected[key]
        if not isinstance(value, np.ndarray | jax.Array):
            wrong.append(f"{key} is a {type(value).__name__}, not an array")
        elif not jnp.issubdtype(value.dtype, jnp.floating):
            wrong.append(f"{key} is {value.dtype}, not floats")
        elif value.shape != shape:
            wrong.append(f"{key} is {list(value.shape)}, not {list(shape)}")
        elif not np.isfinite(np.asarray(value, np.float32)).all():
            wrong.append(f"{key} has values that are NaN or infinite")
    if wrong:
        raise InputError(f"{what} does not fit {name}: {listed(wrong)}")
