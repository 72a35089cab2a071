"""Names and layouts of PyTorch weights, with ours.

The networks of the paper's authors (https://github.com/alvinwan/shiftresnet-cifar) are
those of `shiftjax.models.resnet`:

    theirs                             ours
    conv1, bn1                         stem/conv, stem/norm
    layer2.0.conv1, .bn1               stage2_block01/expand/conv, /norm
    layer2.0.shortcut.0, .1            stage2_block01/shortcut/conv, /norm
    linear                             head
    weight [out, in, h, w]             kernel [h, w, in, out], of 1x1 [in, out]
    weight, bias of BatchNorm          scale, bias
    running_mean, running_var          mean, var

torchvision's ResNet-50 has the names "downsample" for the shortcut and "fc" for the
head, and counts its stages alike.

The shift of the paper's authors is *interleaved*: of C channels and K x K
displacements, channel c moves by displacement c mod K^2, and the last C mod K^2
channels do not move. Our shift moves contiguous groups of channels, as the paper
describes it. Both are the same network with these channels in another order. The order
concerns the outputs of the convolution before the shift with their BatchNorm, and the
inputs of the convolution after it.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from shiftjax.errors import InputError
from shiftjax.models.bottleneck import BottleneckResNet
from shiftjax.models.network import Network
from shiftjax.models.resnet import DepthwiseResNet, ResNet, ShiftResNet
from shiftjax.registry import create_model

# The units of a block by our name, with PyTorch's convolution and BatchNorm.
SHORTCUT = {"shortcut": ("shortcut.0", "shortcut.1")}
UNITS: dict[type[Network], dict[str, tuple[str, str]]] = {
    ResNet: {"first": ("conv1", "bn1"), "second": ("conv2", "bn2"), **SHORTCUT},
    DepthwiseResNet: {
        "expand": ("conv1", "bn1"),
        "depthwise": ("depth", "bn2"),
        "project": ("conv3", "bn3"),
        **SHORTCUT,
    },
    ShiftResNet: {
        "expand": ("conv1", "bn1"),
        "project": ("conv2", "bn2"),
        **SHORTCUT,
    },
    BottleneckResNet: {
        "reduce": ("conv1", "bn1"),
        "conv3x3": ("conv2", "bn2"),
        "grow": ("conv3", "bn3"),
        "shortcut": ("downsample.0", "downsample.1"),
    },
}
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class ConvertedArray:
    """One array of a network, in the authors' layout and in ours.

    Attributes:
      name: the authors' name.
      path: our collection and names.
      shape: the authors' shape.
      ours: our shape and dtype.
      order: index of the authors' channel for each of our channels; None where the
        orders agree.
      axis: axis of these channels in our array.
    """

    name: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    ours: jax.ShapeDtypeStruct
    order: np.ndarray | None = None
    axis: int = -1

    def to_ours(self, value: np.ndarray) -> np.ndarray:
        """Converts the authors' array to ours."""
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        value = value.reshape(self.ours.shape)
        if self.order is not None:
            value = value.take(self.order, self.axis)
        return value.astype(self.ours.dtype, order="C")

    def to_theirs(self, value: np.ndarray) -> np.ndarray:
        """Converts our array to the authors'."""
        if self.order is not None:
            value = value.take(np.argsort(self.order), self.axis)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        return value.reshape(self.shape).astype(np.float32, order="C")


def interleaved(channels: int, kernel_size: int) -> np.ndarray:
    """Returns the authors' channel for each channel of our shift.

    Args:
      channels: number of shifted channels, C.
      kernel_size: side K of the window of displacements.

    Returns:
      int64 `[channels]`: for each of our channels, the index of an authors' channel
      with the same displacement. The last C mod K^2 channels keep their index.

    Example:
      >>> interleaved(20, 3)
      array([ 0,  9,  1, 10,  2, 11,  3, 12,  4, 13,  5, 14,  6, 15,  7, 16,  8,
             17, 18, 19])
    """
    order = np.arange(channels)
    moved = channels // kernel_size**2 * kernel_size**2
    order[:moved] = order[:moved].reshape(-1, kernel_size**2).T.ravel()
    return order


def entries(name: str, channels: int = 3, **options: Any) -> list[ConvertedArray]:
    """Lists the arrays of a network.

    Args:
      name: a CIFAR network of `shiftjax.list_models()`, or "resnet50".
      channels: number of channels of its images.
      **options: attributes of the network, as for `shiftjax.create_model`.

    Returns:
      One for each array of its params and batch_stats, in the order of the
      authors' state dict.

    Raises:
      InputError: if it is none of these networks.
      UnknownNameError: if there is no such network or option.

    Example:
      >>> first = entries("resnet20")[0]
      >>> first.name, first.shape
      ('conv1.weight', (16, 3, 3, 3))
      >>> "/".join(first.path), first.ours.shape
      ('params/stem/conv/kernel', (3, 3, 3, 16))
    """
    model = create_model(name, **options)
    units = [units for kind, units in UNITS.items() if isinstance(model, kind)]
    if not units or (isinstance(model, BottleneckResNet) and model.expansion):
        raise InputError(
            f"{name} cannot be converted: it is not a CIFAR network of the paper's "
            "authors, resnet*, depthwise_resnet* or shiftresnet*, nor resnet50"
        )
    image = 1, 32, 32, channels
    leaves: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(image)))
    )
    found = [
        _converted_array(f"{theirs}.{their_leaf}", path, leaves[path], model)
        for theirs, ours in _modules(units[0], head_name(model), leaves)
        for leaf, their_leaf in LEAVES.items()
        for collection in ("params", "batch_stats")
        if (path := (collection, *ours, leaf)) in leaves
    ]
    assert len(found) == len(leaves)  # a new array of a network needs a name here
    return found


def head_name(model: Any) -> str:
    """Returns PyTorch's name of the layer that maps features to logits."""
    return "fc" if isinstance(model, BottleneckResNet) else "linear"


def _modules(
    units: Mapping[str, tuple[str, str]],
    head: str,
    leaves: Mapping[tuple[str, ...], Any],
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields PyTorch's name and our path of each module with arrays."""
    yield "conv1", ("stem", "conv")
    yield "bn1", ("stem", "norm")
    parts = {path[1:3] for path in leaves}
    for block in sorted({block for block, _ in parts if block.startswith("stage")}):
        stage, _, index = block.removeprefix("stage").partition("_block")
        for unit, names in units.items():
            if (block, unit) in parts:
                for theirs, ours in zip(names, ("conv", "norm"), strict=True):
                    yield f"layer{stage}.{int(index) - 1}.{theirs}", (block, unit, ours)
    yield head, ("head",)


def _converted_array(
    name: str,
    path: tuple[str, ...],
    ours: jax.ShapeDtypeStruct,
    model: Any,
) -> ConvertedArray:
    """Describes an array, with the order of its channels next to a shift."""
    shape = ours.shape
    if len(shape) == 4:
        shape = shape[3], shape[2], *shape[:2]
    elif len(shape) == 2:
        shape = *shape[::-1], *((1, 1) if path[-2] == "conv" else ())
    if not isinstance(model, ShiftResNet) or path[2] not in ("expand", "project"):
        return ConvertedArray(name, path, shape, ours)
    if path[2] == "expand":  # the shift moves its outputs
        order = interleaved(ours.shape[-1], model.kernel_size)
        return ConvertedArray(name, path, shape, ours, order, axis=-1)
    if path[-1] == "kernel":  # the shift moved its inputs
        order = interleaved(ours.shape[0], model.kernel_size)
        return ConvertedArray(name, path, shape, ours, order, axis=0)
    return ConvertedArray(name, path, shape, ours)
