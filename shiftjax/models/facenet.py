"""ShiftFaceNet and a plain ResNet of its cost: networks from faces to embeddings.

Wu et al. 2018 (https://arxiv.org/abs/1711.08141, section 4) verify faces with the
trunk of ShiftNet-C, trained as FaceNet is. The head is the same in all networks::

    shift_facenet       ShiftNet-C up to its last ReLU: stem of 16 features, stages of
                        1, 4, 4 and 3 modules with 32, 64, 128 and 256 features
    facenet_resnet26_wW stem 7x7, stride 2, W / 2 features, BatchNorm, ReLU; stages of
                        1, 4, 4 and 3 blocks with W, 2 W, 4 W and 8 W features, each
                        stage with stride 2
    head                mean over the pixels, dense to 128 features, L2 norm

The paper's 0.78 million parameters of ShiftFaceNet are those of ShiftNet-C, 781,240
with its classifier of 1000 classes. The embedding in its place needs fewer: 557,136
(781,240 again with `embedding_size=1000`). The plain ResNet has the same strides and
numbers of blocks and layers. Its width W = 11 comes closest to the parameters of
shift_facenet (568,022), and W = 13 to its multiply-adds at 112 x 112 (31,255,504, and
31,116,288 of shift_facenet).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from shiftjax.errors import InputError
from shiftjax.layers import ConvNorm
from shiftjax.models import shiftnet
from shiftjax.models.network import Features, Network
from shiftjax.models.resnet import ResidualBlock
from shiftjax.models.shiftnet import ShiftNet
from shiftjax.module import Activations
from shiftjax.shift import positive


class FaceNet(Network, kw_only=True):
    """The base class of networks that map images to embeddings `[batch, features]`.

    Embeddings are float32 of length 1: the cosine of two images is the product of their
    embeddings. There are no classes: a classifier that training needs is not part of
    the network.

    Attributes:
      embedding_size: number of features of an embedding.
    """

    embedding_size: int = 128
    num_classes: int = dataclasses.field(default=0, init=False)

    image_size: ClassVar[int] = 112  # as of the aligned faces of ArcFace and others
    outputs: ClassVar[str] = "embeddings"

    def apply_head(self, x: jax.Array) -> jax.Array:
        """Computes embeddings from the mean over the pixels, `[batch, channels]`."""
        return l2_normalize(
            self.dense(positive("embedding_size", self.embedding_size), x)
        )


class ShiftFaceNet(FaceNet, ShiftNet):
    """A FaceNet with the trunk of a ShiftNet.

    Example:
      >>> from shiftjax import create_model
      >>> model = create_model("shift_facenet")
      >>> images = jax.ShapeDtypeStruct((2, 112, 112, 3), "float32")
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, variables, images).shape
      (2, 128)
    """


class FaceResNet(FaceNet):
    """A FaceNet with a trunk of 3x3 convolutions, to compare with.

    Attributes:
      blocks: number of blocks in each stage; the first of each has stride 2.
      width: number of features of the first stage. Each later one has twice as many,
        and the stem half.
    """

    blocks: tuple[int, ...] = (1, 4, 4, 3)
    width: int = 11

    def trunk(self, images: jax.Array, train: bool) -> tuple[Activations, Features]:
        """Computes stem and stages.

        Args:
          images: `[batch, height, width, channels]`, normalized.
          train: if True, BatchNorm uses the statistics of the batch, and updates the
            running ones.

        Returns:
          The output of the last stage, and the features of stem and stages by name.

        Raises:
          InputError: if the width is not an integer above 1, or a number of blocks is
            not a positive integer.
        """
        features: Features = {}
        x, chosen = self.enter(images, train)
        unit = functools.partial(self.unit, implementation=chosen)
        if positive("width", self.width) < 2:
            raise InputError(f"width={self.width}: it must be an integer of at least 2")
        x = nn.relu(unit(ConvNorm, self.width // 2, 7, 2, name="stem")(x, train))
        features["stem"] = x
        for stage, count in enumerate(self.blocks, 1):
            for index in range(positive(f"blocks[{stage - 1}]", count)):
                x = unit(
                    self.block(ResidualBlock),
                    self.width * 2 ** (stage - 1),
                    1 if index else 2,
                    name=f"stage{stage}_block{index + 1:02}",
                )(x, train)
            features[f"stage{stage}"] = x
        return x, features


def l2_normalize(x: jax.Array, epsilon: float = 1e-12) -> jax.Array:
    """Divides vectors by their lengths.

    Args:
      x: `[..., features]`.
      epsilon: smallest square of a length that is divided by. Shorter vectors become
        shorter than 1, and zero stays zero, with a finite gradient.

    Returns:
      The vectors of length 1, of the same shape.
    """
    square = jnp.square(x).sum(-1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(square, epsilon))


VARIANTS: Mapping[str, functools.partial[FaceNet]] = {
    "shift_facenet": functools.partial(
        ShiftFaceNet, **shiftnet.VARIANTS["shiftnet_c"].keywords
    ),
    "facenet_resnet26_w11": functools.partial(FaceResNet, width=11),
    "facenet_resnet26_w13": functools.partial(FaceResNet, width=13),
}
