"""Weights from PyTorch and to it, for the networks of the paper's authors.

`from_torch` takes the authors' checkpoints, and state dicts of any network named as
theirs; see `shiftjax.convert.names` for what is converted, and
`shiftjax.convert.torch_files` for how a file is read without PyTorch.

The authors' code adds the shortcut behind the last ReLU of a shift block, as ours does.
A network that applies ReLU to the sum has the same names and is another function.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from shiftjax.convert import torch_files
from shiftjax.convert.names import entries
from shiftjax.errors import InputError

COUNTER = "num_batches_tracked"  # of training steps, in BatchNorm since PyTorch 0.4.1


def from_torch(
    source: str | os.PathLike[str] | Mapping[str, Any], name: str, **overrides: Any
) -> dict[str, Any]:
    """Converts weights in PyTorch's names and layouts to variables.

    A file is read without PyTorch, and nothing in it is run. The numbers of classes and
    of the images' channels are the file's.

    Args:
      source: a state dict, its values arrays or tensors; or a file of `torch.save` with
        a state dict, a module, or a dict with one of these as its "net", "state_dict"
        or "model", as are the checkpoints of the authors. Names may have the prefix
        "module." of `torch.nn.DataParallel`.
      name: a CIFAR network of `shiftjax.list_models()`.
      **overrides: attributes of the network, as for `shiftjax.create_model`.

    Returns:
      The variables, "params" and "batch_stats" in a dict, as NumPy arrays with the
      names, shapes and dtypes of the network's own.

    Raises:
      MissingFileError: if there is no such file.
      InputError: if it cannot be read, or an entry is missing, not known, of another
        shape or not of floats; all of these are named.
      UnknownNameError: if there is no such network.

    Example:
      >>> name = "shiftresnet20_e3"
      >>> weights = {a.name: np.ones(a.shape, np.float32) for a in entries(name)}
      >>> weights["layer2.0.conv1.weight"].shape  # as that of a network in PyTorch
      (96, 16, 1, 1)
      >>> variables = from_torch(weights, name)
      >>> jax.tree.map(np.shape, variables["params"]["stage2_block01"]["expand"])
      {'conv': {'kernel': (16, 96)}, 'norm': {'bias': (96,), 'scale': (96,)}}
      >>> len(weights), len(to_torch(variables, name))  # which has its counters too
      (107, 128)
    """
    if isinstance(source, Mapping):
        what, saved = "the state dict", source
    else:
        what, saved = os.fspath(source), torch_files.read(source)
    try:
        found = torch_files.named_tensors(saved)
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    found = {
        key: value for key, value in found.items() if key.split(".")[-1] != COUNTER
    }
    sizes = _sizes(
        num_classes=(found.get("linear.bias"), 0),
        channels=(found.get("conv1.weight"), 1),
    )
    arrays = entries(name, **(sizes | overrides))
    _check(found, {array.name: array.shape for array in arrays}, what, name)
    return traverse_util.unflatten_dict(
        {array.path: array.to_ours(np.asarray(found[array.name])) for array in arrays}
    )


def to_torch(
    variables: Mapping[str, Any], name: str, **overrides: Any
) -> dict[str, np.ndarray]:
    """Converts variables to weights in PyTorch's names and layouts.

    Args:
      variables: `{"params": ..., "batch_stats": ...}` of the network.
      name: a CIFAR network of `shiftjax.list_models()`.
      **overrides: attributes of the network, as for `shiftjax.create_model`.

    Returns:
      The state dict of the authors' network, in its order: float32 arrays, and for each
      BatchNorm `num_batches_tracked`, an int64 zero, which PyTorch asks for and uses
      only without a momentum. `from_torch` gives back the same variables.

    Raises:
      InputError: if a variable is missing, not known, of another shape or not of
        floats; all of these are named.
      UnknownNameError: if there is no such network.
    """
    leaves = traverse_util.flatten_dict(dict(variables))
    found = {"/".join(map(str, path)): value for path, value in leaves.items()}
    sizes = _sizes(
        num_classes=(found.get("params/head/bias"), 0),
        channels=(found.get("params/stem/conv/kernel"), 2),
    )
    arrays = entries(name, **(sizes | overrides))
    expected = {"/".join(array.path): array.ours.shape for array in arrays}
    _check(found, expected, "the tree of variables", name)
    weights: dict[str, np.ndarray] = {}
    for array in arrays:
        value = np.asarray(found["/".join(array.path)])
        weights[array.name] = array.to_theirs(value)
        if array.path[-1] == "var":
            weights[array.name.replace("running_var", COUNTER)] = np.zeros((), np.int64)
    return weights


def _sizes(**axes: tuple[Any, int]) -> dict[str, int]:
    """The sizes of arrays in an axis, of those that are there and have it."""
    shapes = {name: getattr(array, "shape", ()) for name, (array, _) in axes.items()}
    return {
        name: shapes[name][axis]
        for name, (_, axis) in axes.items()
        if len(shapes[name]) > axis
    }


def _check(
    found: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
    what: str,
    name: str,
) -> None:
    """Raises an error that names all arrays that do not fit, if there are any."""
    wrong = [
        f"{key} {list(shape)} is missing"
        for key, shape in expected.items()
        if key not in found
    ]
    wrong += [f"{key} is not known" for key in found if key not in expected]
    for key in (key for key in expected if key in found):
        value, shape = found[key], expected[key]
        if not isinstance(value, np.ndarray | jax.Array):
            wrong.append(f"{key} is a {type(value).__name__}, not an array")
        elif not jnp.issubdtype(value.dtype, jnp.floating):
            wrong.append(f"{key} is {value.dtype}, not floats")
        elif value.shape != shape:
            wrong.append(f"{key} is {list(value.shape)}, not {list(shape)}")
    if wrong:
        raise InputError(f"{what} does not fit {name}: {'; '.join(wrong)}")
