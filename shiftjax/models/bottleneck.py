"""ResNet-50 and ShiftResNet-50, networks of bottleneck blocks.

ResNet-50 is He et al. 2015 (https://arxiv.org/abs/1512.03385, table 1), with the stride
in the 3x3 convolution, as is usual since. ShiftResNet-50 is Wu et al. 2018
(https://arxiv.org/abs/1711.08141, section 4). It replaces each 3x3 convolution by a 1x1
convolution to three times the channels, a shift and a 1x1 convolution back, and divides
every width by the square root of a reduction.

    stem     7x7, stride 2, BatchNorm, ReLU, 3x3 max pooling, stride 2
    stage1   3 blocks, 4 * 64 features
    stage2   4 blocks, 4 * 128 features, the first with stride 2
    stage3   6 blocks, 4 * 256 features, the first with stride 2
    stage4   3 blocks, 4 * 512 features, the first with stride 2
    head     mean over the pixels, dense
"""

import functools
import math
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax

from shiftjax.errors import InputError
from shiftjax.layers import ConvNorm, Shift, expanded
from shiftjax.models.network import Features, Network
from shiftjax.module import Activations, Unit
from shiftjax.shift import positive

GROWTH = 4  # ratio of the output channels of a block to those inside it


class BottleneckBlock(Unit):
    """A bottleneck block: 1x1, 3x3 or a shift in its place, 1x1, shortcut, ReLU.

    Attributes:
      features: number of channels inside; the output has four times as many.
      strides: distance between the rows and columns kept, in pixels.
      expansion: E, of the shift of `int(E * features)` channels that replaces the 3x3
        convolution; 0 for the convolution.
      kernel_size: side K of the window of displacements.
      dilation: distance between neighboring displacements, in pixels.
    """

    features: int
    strides: int = 1
    expansion: float = 0.0
    kernel_size: int = 3
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the block.

        Args:
          x: `[batch, height, width, channels]`.
          train: if True, BatchNorm uses the statistics of the batch, and updates the
            running ones.

        Returns:
          `[batch, h, w, 4 * features]`, `h = ceil(height / strides)`, w alike.

        Raises:
          InputError: if the expansion leaves no channel to shift.
        """
        unit = functools.partial(self.unit, ConvNorm)
        y = nn.relu(unit(self.features, name="reduce")(x, train))
        if self.expansion:
            wide = expanded(self.expansion, self.features)
            y = nn.relu(unit(wide, name="expand")(y, train))
            y = Shift(self.kernel_size, self.strides, self.dilation, name="shift")(y)
            y = nn.relu(unit(self.features, name="project")(y, train))
        else:
            y = unit(self.features, 3, self.strides, name="conv3x3")(y, train)
            y = nn.relu(y)
        y = unit(GROWTH * self.features, name="grow")(y, train)
        if x.shape != y.shape:
            x = unit(y.shape[-1], 1, self.strides, name="shortcut")(x, train)
        return nn.relu(y + x.astype(y.dtype))


class BottleneckResNet(Network):
    """A ResNet of bottleneck blocks, with 3x3 convolutions or with shifts.

    Attributes:
      blocks: number of blocks in each stage.
      num_classes: number of logits.
      net_reduction: r; every width is divided by sqrt(r).
      expansion: E of the shifts; 0 for 3x3 convolutions.
      kernel_size: side K of the window of displacements.
      dilation: distance between neighboring displacements, in pixels.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    num_classes: int = 1000
    net_reduction: float = 1.0
    expansion: float = 0.0
    kernel_size: int = 3
    dilation: int = 1

    image_size: ClassVar[int] = 224

    def trunk(self, images: jax.Array, train: bool) -> tuple[Activations, Features]:
        """Computes stem and stages.

        Args:
          images: `[batch, height, width, channels]`, normalized.
          train: see `BottleneckBlock`.

        Returns:
          The output of the last stage, and the features of stem and stages by name.

        Raises:
          InputError: if the net reduction is out of its range, or a number of blocks is
            not a positive integer.
        """
        if not 0 < self.net_reduction <= 64**2:
            raise InputError(
                f"net_reduction={self.net_reduction}: it must be above 0 and at most "
                f"{64**2}"
            )
        features: Features = {}
        x, chosen = self.enter(images, train)
        unit = functools.partial(self.unit, implementation=chosen)
        width = int(64 / math.sqrt(self.net_reduction))
        x = nn.relu(unit(ConvNorm, width, 7, 2, name="stem")(x, train))
        x = nn.max_pool(
            x,
            (3, 3),
            (2, 2),
            [(1, 1), (1, 1)],  # pyright: ignore[reportArgumentType]
        )
        features["stem"] = x
        for stage, count in enumerate(self.blocks, 1):
            inner = int(64 * 2 ** (stage - 1) / math.sqrt(self.net_reduction))
            for index in range(positive(f"blocks[{stage - 1}]", count)):
                x = unit(
                    self.block(BottleneckBlock),
                    inner,
                    2 if stage > 1 and index == 0 else 1,
                    self.expansion,
                    self.kernel_size,
                    self.dilation,
                    name=f"stage{stage}_block{index + 1:02}",
                )(x, train)
            features[f"stage{stage}"] = x
        return x, features


VARIANTS: Mapping[str, functools.partial[BottleneckResNet]] = {
    "resnet50": functools.partial(BottleneckResNet),
    "shiftresnet50": functools.partial(BottleneckResNet, expansion=3),
}
