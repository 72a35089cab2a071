"""What the shifts of a trained network do (section 4.4 of the paper, and beyond).

A shift block reads each pixel's neighbours by displacements, one a group of channels.
How much a displacement matters is measured by what its channels add to the next
product, and by how many predictions change without it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from shiftjax.apps.predict import Classifier, normalize
from shiftjax.errors import InputError
from shiftjax.fast.batchnorm import affine
from shiftjax.layers import Shift
from shiftjax.shift import displacements
from shiftjax.weights import Pretrained

Move = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class BlockAnalysis:
    """One shift block.

    Attributes:
      name: of the block, e.g. "stage1_block01".
      contributions: of each displacement `(dy, dx)`, as shares of 1: the root mean
        square of what its channels, without their means, add to the next product.
      within: mean absolute correlation of two channels of the same displacement.
      across: the same of two channels of different displacements.
    """

    name: str
    contributions: Mapping[Move, float]
    within: float
    across: float


def analyze(pretrained: Pretrained, images: np.ndarray) -> list[BlockAnalysis]:
    """Analyses the shift blocks of a network on pictures.

    Args:
      pretrained: a network of shift blocks.
      images: uint8 `[pictures, height, width, channels]`.

    Returns:
      One analysis a block, in order.

    Raises:
      InputError: if the network has no shift blocks.
    """
    model = pretrained.model.clone(form="plain")
    kernel_size, dilation = _window(pretrained)
    _, captured = model.apply(
        pretrained.variables,
        normalize(images, pretrained.card),
        capture_intermediates=lambda module, _: isinstance(module, Shift),
        mutable=["intermediates"],
    )
    found = []
    for name, inner in sorted(captured["intermediates"].items()):
        (y,) = inner["shift"]["__call__"]
        variables = {kind: tree[name] for kind, tree in pretrained.variables.items()}
        moves = displacements(y.shape[-1], kernel_size, dilation=dilation)
        found.append(_analyze(name, np.asarray(y), variables, moves, model.epsilon))
    return found


def _analyze(
    name: str,
    y: np.ndarray,
    variables: Mapping[str, Any],
    moves: np.ndarray,
    epsilon: float,
) -> BlockAnalysis:
    """Analyses one block, from what its shift gives."""
    project = variables["params"]["project"]
    gain, _ = affine(
        project["norm"], variables["batch_stats"]["project"]["norm"], epsilon
    )
    kernel = np.asarray(project["conv"]["kernel"] * gain, np.float64)
    pixels = y.reshape(-1, y.shape[-1]).astype(np.float64)
    power = pixels.var(0) * (kernel**2).sum(1)
    groups = [tuple(move) for move in moves.tolist()]
    added = dict.fromkeys(dict.fromkeys(groups), 0.0)
    for move, value in zip(groups, power, strict=True):
        added[move] += value
    total = sum(np.sqrt(value) for value in added.values()) or 1.0
    shares = {move: float(np.sqrt(value) / total) for move, value in added.items()}
    within, across = _correlations(pixels, moves)
    return BlockAnalysis(name, shares, within, across)


def _correlations(pixels: np.ndarray, moves: np.ndarray) -> tuple[float, float]:
    """Mean absolute correlations of pairs of channels that move alike, and not."""
    varying = pixels.std(0) > 0
    pixels, moves = pixels[:, varying], moves[varying]
    if len(moves) < 2:
        return 0.0, 0.0
    size = np.abs(np.corrcoef(pixels.T))
    alike = (moves[:, None] == moves[None]).all(-1)
    other = ~np.eye(len(moves), dtype=bool)
    pairs = (size[alike & other], size[~alike])
    within, across = (float(pair.mean()) if pair.size else 0.0 for pair in pairs)
    return within, across


def silenced(pretrained: Pretrained, move: Move) -> Pretrained:
    """Returns the network without the channels of a displacement, in every block.

    Args:
      pretrained: a network of shift blocks.
      move: `(dy, dx)`.

    Raises:
      InputError: if no channel moves so, or the network has no shift blocks.
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
    """Silences each displacement, and tells how many predictions stay.

    Args:
      pretrained: a network of shift blocks.
      images: uint8 `[pictures, height, width, channels]`.

    Returns:
      For each displacement, the share of pictures whose likeliest class is the same
      without it.
    """
    before = Classifier(pretrained).logits(images).argmax(-1)
    kernel_size, dilation = _window(pretrained)
    channels = kernel_size**2  # each displacement once
    shares = {}
    for move in map(tuple, displacements(channels, kernel_size, dilation=dilation)):
        move = (int(move[0]), int(move[1]))
        after = Classifier(silenced(pretrained, move)).logits(images).argmax(-1)
        shares[move] = float((before == after).mean())
    return shares


def intensity(
    kind: str, side: int, channels: int, features: int, kernel_size: int = 3
) -> float:
    """Multiply-adds for each number read or written, of one image.

    Source: the paper, section 2.

    Args:
      kind: "dense", "depthwise" or "shift" (and the 1x1 convolution after it).
      side: height and width of the image.
      channels: of the input.
      features: of the output; of a depthwise convolution those of the input.
      kernel_size: side K of the window.

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
    """Returns kernel size and dilation of a network of shift blocks."""
    model = pretrained.model
    if not hasattr(model, "expansion"):
        raise InputError(
            f"{pretrained.card.architecture} has no shift blocks to analyse"
        )
    return model.kernel_size, model.dilation
