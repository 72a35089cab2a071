"""AS-ResNet, the ImageNet network of Active Shift, in which displacements are learned.

Y. Jeon and J. Kim 2018 (https://arxiv.org/abs/1806.07370), after the authors' Caffe
networks (https://github.com/jyh2986/Active-Shift, models/ASL_Model/ImageNet)::

    stem     3x3, stride 2, w features; no BatchNorm, no ReLU: a block begins with both;
             then one block of w features
    stage1   3 blocks, w features, the first with stride 2
    stage2   4 blocks, 2 w features, the first with stride 2
    stage3   6 blocks, 4 w features, the first with stride 2
    stage4   3 blocks, 8 w features, the first with stride 2
    head     BatchNorm, ReLU, mean over the pixels, dense

The width w is 32, 50 or 68, with 64.1%, 69.9% and 72.2% top-1 published. The authors'
files have BatchNorm merged into a scale and a bias, which is the same function. They
train the displacements with a hundredth of the learning rate of the other params and
without weight decay, and divide the gradient of a displacement by its length.
"""

import functools
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax

from shiftjax.family import ActiveShift
from shiftjax.models.network import Features, Network
from shiftjax.module import Activations, Unit
from shiftjax.shift import positive


class ActiveBlock(Unit):
    """A pre-activation block with an active shift in place of a 3x3 convolution.

    The block is BatchNorm, ReLU, a 1x1 convolution, BatchNorm, ReLU, the active shift
    and a 1x1 convolution; then the input is added. If the number of features changes or
    there is a stride, the shortcut is a 1x1 convolution of the input after the first
    ReLU.

    Attributes:
      features: number of output channels.
      strides: distance between the rows and columns kept, in pixels.

    Example:
      >>> x = jax.ShapeDtypeStruct((1, 8, 8, 16), "float32")
      >>> block = ActiveBlock(32, strides=2)
      >>> variables = jax.eval_shape(block.init, jax.random.key(0), x)
      >>> variables["params"]["shift"]["offsets"].shape
      (32, 2)
    """

    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the block.

        Args:
          x: `[batch, height, width, channels]`.
          train: if True, BatchNorm uses, and averages, the statistics of the batch.

        Returns:
          `[batch, ceil(height / strides), ceil(width / strides), features]`.
        """
        self.choose(x, train)  # raises for an unknown name
        features, strides = positive("features", self.features), self.strides
        active = nn.relu(self.norm("expand_norm", train)(x))
        y = self.pointwise(features, "expand")(active)
        y = nn.relu(self.norm("shift_norm", train)(y))
        y = ActiveShift(param_dtype=self.param_dtype, strides=strides, name="shift")(y)
        y = self.pointwise(features, "project")(y)
        if strides > 1 or x.shape[-1] != features:
            kept = active[..., ::strides, ::strides, :]
            x = self.pointwise(features, "shortcut")(kept)
        return y + x.astype(y.dtype)


class ActiveResNet(Network):
    """A network of blocks with active shifts.

    Attributes:
      width: w, the number of features of the stem and the first stage; each later stage
        has twice as many.
      blocks: number of blocks in each stage; the first of each has stride 2.
      num_classes: number of logits.

    Example:
      >>> from shiftjax import create_model
      >>> model = create_model("as_resnet_w32", num_classes=10)
      >>> images = jax.ShapeDtypeStruct((2, 64, 64, 3), "float32")
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, variables, images).shape
      (2, 10)
    """

    width: int = 32
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    num_classes: int = 1000

    image_size: ClassVar[int] = 224

    def trunk(self, images: jax.Array, train: bool) -> tuple[Activations, Features]:
        """Computes stem, stages, BatchNorm and ReLU.

        Args:
          images: `[batch, height, width, channels]`, normalized.
          train: if True, BatchNorm uses the statistics of the batch, and updates the
            running ones.

        Returns:
          The output, and the features of stem and stages by name.

        Raises:
          InputError: if the width or a number of blocks is not a positive integer.
        """
        features: Features = {}
        width = positive("width", self.width)
        x, chosen = self.enter(images, train)
        block = functools.partial(
            self.unit, self.block(ActiveBlock), implementation=chosen
        )
        x = self.conv(width, 3, 2, name="stem")(x)
        x = features["stem"] = block(width, name="stem_block")(x, train)
        for stage, count in enumerate(self.blocks, 1):
            for index in range(positive(f"blocks[{stage - 1}]", count)):
                x = block(
                    width * 2 ** (stage - 1),
                    1 if index else 2,
                    name=f"stage{stage}_block{index + 1:02}",
                )(x, train)
            features[f"stage{stage}"] = x
        return nn.relu(self.norm("norm", train)(x)), features


VARIANTS: Mapping[str, functools.partial[ActiveResNet]] = {
    f"as_resnet_w{width}": functools.partial(ActiveResNet, width=width)
    for width in (32, 50, 68)
}
