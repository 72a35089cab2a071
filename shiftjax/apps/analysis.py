"""Analysis of the shifts of a trained network (section 4.4 of the paper, and beyond).

A shift block reads the neighbors of each pixel, one displacement for each group of
channels. Two measures show how much a displacement matters: the contribution of its
channels to the next product, and the share of predictions that change without it.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shiftjax.apps.predict import Classifier, normalize_images
from shiftjax.errors import InputError
from shiftjax.fast.batchnorm import affine
from shiftjax.layers import Shift
from shiftjax.shift import displacements
from shiftjax.weights import Pretrained

Move = tuple[int, int]
BATCH = 64  # images that are computed at a time


@dataclasses.dataclass(frozen=True)
class BlockAnalysis:
    """The analysis of one shift block.

    Attributes:
      name: name of the block, e.g. "stage1_block01".
      contributions: share of each displacement `(dy, dx)`; the shares sum to 1. A share
        is proportional to the root mean square of the contribution of its channels,
        less their means, to the next product.
      within: mean absolute correlation of two channels of the same displacement.
      across: mean absolute correlation of two channels of different displacements.
    """

    name: str
    contributions: Mapping[Move, float]
    within: float
    across: float


def analyze(pretrained: Pretrained, images: np.ndarray) -> list[BlockAnalysis]:
    """Analyzes the shift blocks of a network on images.

    Args:
      pretrained: a network of shift blocks.
      images: uint8 `[images, height, width, channels]`, of which a few at a time are
        computed.

    Returns:
      One analysis for each block, in the order of the network.

    Raises:
      InputError: if the network is not a ShiftResNet.
    """
    model = pretrained.model.clone(implementation="reference")
    kernel_size, dilation = _window(pretrained)
    capture = functools.partial(
        model.apply,
        capture_intermediates=lambda module, _: isinstance(module, Shift),
        mutable=["intermediates"],
    )
    capture = jax.jit(capture)
    moments: dict[str, _Moments] = {}
    for start in range(0, len(images), BATCH):
        some = normalize_images(images[start : start + BATCH], pretrained.card)
        padded = jnp.pad(some, [(0, BATCH - len(some))] + [(0, 0)] * 3)
        _, captured = capture(pretrained.variables, padded)
        for name, inner in captured["intermediates"].items():
            (y,) = inner["shift"]["__call__"]
            more = _Moments.of(np.asarray(y[: len(some)]))
            moments[name] = moments[name] + more if name in moments else more
    found = []
    for name in sorted(moments):
        variables = {kind: tree[name] for kind, tree in pretrained.variables.items()}
        channels = len(moments[name].sums)
        moves = displacements(channels, kernel_size, dilation=dilation)
        found.append(_analyze(name, moments[name], variables, moves, model.epsilon))
    return found


@dataclasses.dataclass(frozen=True)
class _Moments:
    """Sums over the pixels of a tensor, in float64.

    Attributes:
      count: number of pixels.
      sums: sums of the channels, `[channels]`.
      products: sums of the products of two channels, `[channels, channels]`.
    """

    count: int
    sums: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, y: np.ndarray) -> "_Moments":
        """Sums up `[batch, height, width, channels]`."""
        pixels = y.reshape(-1, y.shape[-1]).astype(np.float64)
        return cls(len(pixels), pixels.sum(0), pixels.T @ pixels)

    def __add__(self, other: "_Moments") -> "_Moments":
        return _Moments(
            self.count + other.count,
            self.sums + other.sums,
            self.products + other.products,
        )

    def covariance(self) -> np.ndarray:
        """Returns the covariance of the channels, `[channels, channels]`."""
        means, squares = self.sums / self.count, self.products / self.count
        found = squares - np.outer(means, means)
        # Rounding leaves a little of the variance of a constant channel.
        constant = found.diagonal() <= 1e-12 * squares.diagonal()
        found[constant] = found[:, constant] = 0
        return found


def _analyze(
    name: str,
    moments: _Moments,
    variables: Mapping[str, Any],
    moves: np.ndarray,
    epsilon: float,
) -> BlockAnalysis:
    """Analyzes one block.

    Args:
      name: name of the block.
      moments: of the output of its shift.
      variables: its "params" and "batch_stats".
      moves: displacements `[channels, 2]` of its channels.
      epsilon: constant that BatchNorm adds to the variances.
    """
    project = variables["params"]["project"]
    gain, _ = affine(
        project["norm"], variables["batch_stats"]["project"]["norm"], epsilon
    )
    kernel = np.asarray(project["conv"]["kernel"] * gain, np.float64)
    covariance = moments.covariance()
    power = covariance.diagonal() * (kernel**2).sum(1)
    groups = [tuple(move) for move in moves.tolist()]
    added = dict.fromkeys(dict.fromkeys(groups), 0.0)
    for move, value in zip(groups, power, strict=True):
        added[move] += value
    total = sum(np.sqrt(value) for value in added.values()) or 1.0
    shares = {move: float(np.sqrt(value) / total) for move, value in added.items()}
    within, across = _correlations(covariance, moves)
    return BlockAnalysis(name, shares, within, across)


def _correlations(covariance: np.ndarray, moves: np.ndarray) -> tuple[float, float]:
    """Computes the mean absolute correlations of pairs of channels.

    Args:
      covariance: `[channels, channels]`; 0 for constant channels, which are left out.
      moves: displacements `[channels, 2]`.

    Returns:
      The mean over pairs of equal displacements, and over pairs of different ones; 0
      where there are none.
    """
    varying = covariance.diagonal() > 0
    covariance, moves = covariance[varying][:, varying], moves[varying]
    if len(moves) < 2:
        return 0.0, 0.0
    deviations = np.sqrt(covariance.diagonal())
    size = np.abs(covariance / np.outer(deviations, deviations))
    alike = (moves[:, None] == moves[None]).all(-1)
    other = ~np.eye(len(moves), dtype=bool)
    pairs = (size[alike & other], size[~alike])
    within, across = (float(pair.mean()) if pair.size else 0.0 for pair in pairs)
    return within, across


def silenced(pretrained: Pretrained, move: Move) -> Pretrained:
    """Silences the channels of one displacement, in every block.

    Args:
      pretrained: a network of shift blocks.
      move: the displacement `(dy, dx)`, in pixels.

    Returns:
      The network, with zeros for the weights that read these channels.

    Raises:
      InputError: if no channel has this displacement, or the network is not a
        ShiftResNet.
    """
    kernel_size, dilation = _window(pretrained)
    params, found = dict(pretrained.variables["params"]), False
    for name, block in params.items():
        if "expand" not in block:
            continue
        kernel = block["project"]["conv"]["kernel"]
        moves = displacements(len(kernel), kernel_size, dilation=dilation)
        mine = (moves == move).all(1)
        found |= bool(mine.any())
        conv = {"kernel": jnp.where(mine[:, None], 0, kernel)}
        project = dict(block["project"]) | {"conv": conv}
        params[name] = dict(block) | {"project": project}
    if not found:
        raise InputError(f"no channel of the network moves by {tuple(move)}")
    variables = dict(pretrained.variables) | {"params": params}
    return dataclasses.replace(pretrained, variables=variables)


def agreement(pretrained: Pretrained, images: np.ndarray) -> dict[Move, float]:
    """Measures the share of predictions that stay the same without each displacement.

    Args:
      pretrained: a network of shift blocks.
      images: uint8 `[batch, height, width, channels]`.

    Returns:
      For each displacement, the share of images whose likeliest class is the same when
      its channels are silenced.

    Raises:
      InputError: if the network is not a ShiftResNet, or the images do not fit it.
    """
    classifier = Classifier(pretrained)  # which compiles the network once
    before = classifier.logits(images).argmax(-1)
    kernel_size, dilation = _window(pretrained)
    channels = kernel_size**2  # each displacement once
    shares = {}
    for move in map(tuple, displacements(channels, kernel_size, dilation=dilation)):
        move = (int(move[0]), int(move[1]))
        classifier.variables = silenced(pretrained, move).variables
        after = classifier.logits(images).argmax(-1)
        shares[move] = float((before == after).mean())
    return shares


def intensity(
    kind: str, side: int, channels: int, features: int, kernel_size: int = 3
) -> float:
    """Computes the multiply-adds of an operation for each number read or written.

    The numbers are those of one image and of the weights. Source: the paper, section 2.

    Args:
      kind: "dense", "depthwise" or "shift" (and the 1x1 convolution after it).
      side: height and width of the image.
      channels: number of input channels.
      features: number of output channels; a depthwise convolution ignores it.
      kernel_size: side K of the window.

    Returns:
      The arithmetic intensity, in multiply-adds per number.

    Raises:
      InputError: if the kind is not one of the three.

    Example:
      >>> kinds = ("dense", "depthwise", "shift")
      >>> [round(intensity(kind, 28, 128, 128), 1) for kind in kinds]
      [332.0, 4.5, 59.2]
    """
    pixels, taps = side**2, kernel_size**2
    if kind == "dense":
        weights = taps * channels * features
        return pixels * weights / (pixels * (channels + features) + weights)
    if kind == "depthwise":
        weights = taps * channels
        return pixels * weights / (2 * pixels * channels + weights)
    if kind == "shift":
        weights = channels * features
        return pixels * weights / (pixels * (channels + features) + weights)
    raise InputError(f"kind={kind!r}: it must be dense, depthwise or shift")


def _window(pretrained: Pretrained) -> tuple[int, int]:
    """Returns kernel size and dilation of a network of shift blocks.

    Raises:
      InputError: if the network is not a ShiftResNet.
    """
    model = pretrained.model
    if not getattr(model, "expansion", 0):  # 0 in a ResNet-50, whose blocks have none
        raise InputError(
            f"{pretrained.card.architecture} cannot be analyzed: it is not a "
            "shiftresnet*, whose shifts all have one window"
        )
    return model.kernel_size, model.dilation
