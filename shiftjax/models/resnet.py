"""The CIFAR networks of the paper: ResNet, depthwise ResNet and ShiftResNet.

The ResNet is from He et al. 2015 (https://arxiv.org/abs/1512.03385, section 4.2). The
other networks and the reductions of its size are from Wu et al. 2018
(https://arxiv.org/abs/1711.08141, section 4.1, tables 3 and 4). Details that the paper
leaves open are from its authors' code, https://github.com/alvinwan/shiftresnet-cifar.

    stem     3x3, 16 features
    stage1   n blocks, 16 features
    stage2   n blocks, 32 features, the first with stride 2
    stage3   n blocks, 64 features, the first with stride 2
    head     mean over the pixels, dense

with `depth = 6 n + 2`. One difference: the authors initialize BatchNorm's scale at
random, this implementation with 1. Kernels of convolutions are He-normal, and that of
the head LeCun-normal, as is Flax's default.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from shiftjax.errors import InputError
from shiftjax.fast.cpu import Planes
from shiftjax.fast.cpu.chunks import chunk_size
from shiftjax.layers import ConvNorm, ShiftConv, expanded
from shiftjax.models.network import Features, Network
from shiftjax.module import Activations, Unit


def relu(x: Activations) -> Activations:
    """Applies ReLU."""
    return x.map(nn.relu) if isinstance(x, Planes) else nn.relu(x)


def add(x: Activations, y: Activations) -> Activations:
    """Adds activations of equal shape and layout."""
    if isinstance(x, Planes) and isinstance(y, Planes):
        return Planes(x.array + y.array)
    assert not isinstance(x, Planes)
    assert not isinstance(y, Planes)
    return x + y


class ResidualBlock(Unit):
    """The ResNet block: 3x3, BatchNorm, ReLU, 3x3, BatchNorm, plus shortcut, ReLU.

    Attributes:
      features: number of output channels.
      strides: distance between the rows and columns kept, in pixels.
      reduction: r; `int(features / r)` channels lie between the convolutions.
    """

    features: int
    strides: int = 1
    reduction: float = 1.0

    @nn.compact
    def __call__(self, x: Activations, train: bool = False) -> Activations:
        """Applies the block to `[batch, height, width, channels]`, or planes."""
        unit = functools.partial(self.unit, ConvNorm)
        inner = reduced(self.features, self.reduction)
        y = relu(unit(inner, 3, self.strides, name="first")(x, train))
        y = unit(self.features, 3, name="second")(y, train)
        if x.shape != y.shape:
            x = unit(self.features, 1, self.strides, name="shortcut")(x, train)
        return relu(add(y, x))


class DepthwiseBlock(Unit):
    """The depthwise block: 1x1, 3x3 depthwise, 1x1, plus shortcut, ReLU.

    Attributes:
      features: number of output channels.
      strides: distance between the rows and columns kept, in pixels.
      reduction: r; `int(features / r)` channels have a depthwise convolution.
    """

    features: int
    strides: int = 1
    reduction: float = 1.0

    @nn.compact
    def __call__(self, x: Activations, train: bool = False) -> Activations:
        """Applies the block to `[batch, height, width, channels]`, or planes."""
        unit = functools.partial(self.unit, ConvNorm)
        inner = reduced(self.features, self.reduction)
        y = relu(unit(inner, name="expand")(x, train))
        y = unit(inner, 3, depthwise=True, name="depthwise")(y, train)
        y = unit(self.features, 1, self.strides, name="project")(y, train)
        if x.shape != y.shape:
            x = unit(self.features, 1, self.strides, name="shortcut")(x, train)
        return relu(add(y, x))


class CifarResNet(Network):
    """The base class of the CIFAR networks: stem, three stages of blocks, and head.

    Attributes:
      depth: 6 n + 2 for n blocks a stage: 20, 56, 110, ...
      scan: if True, the equal blocks of a stage are one loop: a deep network compiles
        in the time of a few blocks, and runs a little slower.
    """

    depth: int = 20
    scan: bool = False

    image_size: ClassVar[int] = 32

    def widths(self) -> tuple[int, int, int]:
        """Returns the features of the three stages; the stem has those of the first."""
        return 16, 32, 64

    def chunk(self, images: jax.Array | jax.ShapeDtypeStruct) -> int | None:
        """Returns the largest number of images of a chunk; None for one chunk."""
        del images
        return None

    def make_block(self, features: int, strides: int, **options: Any) -> Unit:
        """Returns a block, to be called as `block(x, train)`."""
        raise NotImplementedError(f"{type(self).__name__} is the base of the networks")

    def trunk(self, images: jax.Array, train: bool) -> tuple[Activations, Features]:
        """Computes stem and stages, and their features."""
        features: Features = {}
        x, chosen = self.enter(images, train, self.chunk(images))
        own, widths = {"implementation": chosen}, self.widths()
        x = relu(self.unit(ConvNorm, widths[0], 3, name="stem", **own)(x, train))
        features["stem"] = x
        for stage, width in enumerate(widths, 1):
            first, *others = (
                f"stage{stage}_block{index:02}"
                for index in range(1, self._blocks_per_stage() + 1)
            )
            block = functools.partial(self.make_block, width, **own)
            x = block(1 if stage == 1 else 2, name=first)(x, train)
            if self.scan and self.has_variables():
                x = self._scan_blocks(block(1, parent=None), others, x, train)
            else:
                for name in others:
                    x = block(1, name=name)(x, train)
            features[f"stage{stage}"] = x
        return x, features

    def _scan_blocks(
        self, block: Unit, names: Sequence[str], x: Activations, train: bool
    ) -> Activations:
        """Applies equal blocks one after the other, in a loop over one block."""
        if not names:
            return x

        def step(x: Activations, variables: Any) -> tuple[Activations, Any]:
            return block.apply(variables, x, train, mutable=["batch_stats"])

        each = [
            {kind: self.variables[kind][name] for kind in ("params", "batch_stats")}
            for name in names
        ]
        x, updates = lax.scan(step, x, jax.tree.map(lambda *v: jnp.stack(v), *each))
        if train:
            for i, name in enumerate(names):
                stats = jax.tree.map(lambda v, i=i: v[i], updates["batch_stats"])
                self.put_variable("batch_stats", name, stats)
        return x

    def _blocks_per_stage(self) -> int:
        blocks, rest = divmod(self.depth - 2, 6)
        if blocks < 1 or rest:
            raise InputError(
                f"depth={self.depth}: it must be 6 n + 2, as 20, 56 or 110"
            )
        return blocks


class ResNet(CifarResNet):
    """A CIFAR ResNet, the network that the paper replaces.

    Attributes:
      block_reduction: r; a block has `int(features / r)` channels inside.
      net_reduction: r; every stage has `int(features / sqrt(r))` features.

    Example:
      >>> model = ResNet(depth=20, net_reduction=4)
      >>> model.widths()
      (8, 16, 32)
    """

    block_reduction: float = 1.0
    net_reduction: float = 1.0

    kind: ClassVar[str] = "resnet"

    def widths(self) -> tuple[int, int, int]:
        """Returns the features of the three stages, reduced."""
        if not self.net_reduction > 0:
            raise InputError(f"net_reduction={self.net_reduction}: it must be positive")
        r = math.sqrt(self.net_reduction)
        return reduced(16, r), reduced(32, r), reduced(64, r)

    def make_block(self, features: int, strides: int, **options: Any) -> Unit:
        """Returns a ResNet block."""
        return self.unit(
            self.block(ResidualBlock),
            features,
            strides,
            self.block_reduction,
            **options,
        )


class DepthwiseResNet(CifarResNet):
    """A CIFAR ResNet of depthwise blocks, which the paper compares with.

    Attributes:
      reduction: r; a block has `int(features / r)` channels inside.
    """

    reduction: float = 1.0

    kind: ClassVar[str] = "depthwise_resnet"

    def make_block(self, features: int, strides: int, **options: Any) -> Unit:
        """Returns a depthwise block."""
        return self.unit(
            self.block(DepthwiseBlock), features, strides, self.reduction, **options
        )


class ShiftResNet(CifarResNet):
    """A CIFAR ResNet of shift blocks.

    Attributes:
      expansion: E; a block shifts `int(E * features)` channels.
      kernel_size: side K of the window of displacements.
      dilation: distance between neighboring displacements, in pixels.

    Example:
      >>> model = ShiftResNet(depth=20, expansion=3)
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> variables = jax.jit(model.init)(jax.random.key(0), images)
      >>> logits, features = model.apply(variables, images, capture_features=True)
      >>> logits.shape, features["stage3"].shape
      ((2, 10), (2, 8, 8, 64))
    """

    expansion: float = 1.0
    kernel_size: int = 3
    dilation: int = 1

    kind: ClassVar[str] = "shift_resnet"

    def chunk(self, images: jax.Array | jax.ShapeDtypeStruct) -> int | None:
        """Returns the number of images of a chunk, from the first stage."""
        _, height, width, _ = images.shape
        channels = expanded(self.expansion, self.widths()[0])
        return chunk_size(4 * channels * height * width)

    def make_block(self, features: int, strides: int, **options: Any) -> Unit:
        """Returns a shift block."""
        return self.unit(
            self.block(ShiftConv),
            features,
            self.kernel_size,
            strides,
            self.dilation,
            self.expansion,
            **options,
        )


def reduced(features: int, reduction: float) -> int:
    """Returns `int(features / reduction)`, or raises if it is zero."""
    if not reduction > 0 or features / reduction < 1:
        raise InputError(
            f"a reduction of {reduction:.4g} leaves no channel of {features}; it must "
            f"be positive and at most {features}"
        )
    return int(features / reduction)


DEPTHS = (20, 56, 110)

VARIANTS: Mapping[str, functools.partial[CifarResNet]] = {
    **{f"resnet{d}": functools.partial(ResNet, depth=d) for d in DEPTHS},
    **{
        f"depthwise_resnet{d}": functools.partial(DepthwiseResNet, depth=d)
        for d in DEPTHS
    },
    **{
        f"shiftresnet{d}_e{e}": functools.partial(ShiftResNet, depth=d, expansion=e)
        for d in DEPTHS
        for e in (1, 3, 6, 9)
    },
}
