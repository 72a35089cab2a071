"""The losses of style transfer: content and style.

They follow Johnson et al. 2016 (https://arxiv.org/abs/1603.08155, section 3.2) in the
scale of the shift paper's authors: a Gram matrix is divided by height, width and
channels, and an error is a mean over its elements.

The features of two networks differ in scale by orders of magnitude, and the losses by
its square and its fourth power. The paper's weights are therefore those of VGG-16 only,
and `make_loss` chooses weights for any other network.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from shiftjax.errors import InputError
from train.style.features import VGG_WEIGHTS, FeatureNet, Features

Grams = dict[str, jax.Array]

# The weights of relative losses, content and style; see `make_loss`. Measured with
# SqueezeNet on two paintings and two photographs of 128x128: an unchanged photograph
# has a weighted style loss of 3.1 to 6.8. After 60 steps of Adam (at 0.02) on its
# pixels, style is 0.07 to 0.11 and content 0.14 to 0.34, of the same order.
RELATIVE_WEIGHTS = (1.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Perceptual:
    """The loss of an image that has the content of one image and the style of another.

    Attributes:
      net: the network whose features are compared.
      content_weight: the weight of the content loss.
      style_weight: the weight of the style loss.
    """

    net: FeatureNet
    content_weight: float = VGG_WEIGHTS[0]
    style_weight: float = VGG_WEIGHTS[1]

    def grams(self, params: Any, painting: jax.Array) -> Grams:
        """Computes the Gram matrices of the painting, once for all steps.

        Args:
          params: the parameters of the net.
          painting: `[1, height, width, 3]`, RGB in 0 .. 1.

        Returns:
          Gram matrices `[1, channels, channels]` by layer.
        """
        features = self.net(params, painting)
        return {name: gram(features[name]) for name in self.net.style_layers}

    def __call__(
        self, params: Any, grams: Grams, pictures: jax.Array, contents: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes the loss.

        Args:
          params: the parameters of the net.
          grams: the Gram matrices of the painting.
          pictures: the restyled images, `[batch, height, width, 3]`, RGB in 0 .. 1.
          contents: the images with the wanted content, of the same shape.

        Returns:
          The loss, a mean over the batch, and its weighted parts, "content" and
          "style".
        """
        features, wanted = self.net(params, pictures), self.net(params, contents)
        layer = self.net.content_layer
        parts = {
            "content": self.content_weight
            * mean_square(features[layer], wanted[layer]),
            "style": self.style_weight * style_loss(features, grams),
        }
        return parts["content"] + parts["style"], parts


def make_loss(
    net: FeatureNet,
    painting: jax.Array,
    content_weight: float | None = None,
    style_weight: float | None = None,
) -> Perceptual:
    """Builds the loss for a painting, with weights that fit the network.

    A weight that is not given is the network's own (VGG-16). For a network that has
    none, it makes the loss a relative one: the content loss is divided by the mean
    square of the painting's features in the content layer, and the style loss by the
    mean squares of its Gram matrices, summed over the layers. `RELATIVE_WEIGHTS`
    balances the two.

    Args:
      net: the network whose features are compared.
      painting: `[1, height, width, 3]`, RGB in 0 .. 1.
      content_weight: the weight of the content loss.
      style_weight: the weight of the style loss.

    Returns:
      The loss; chosen weights have three digits, to be equal on all devices.

    Raises:
      InputError: if the features of the painting have no scale, e.g. are all zero.
    """
    if content_weight is None or style_weight is None:
        content, style = net.weights or _relative_weights(net, painting)
        content_weight = content if content_weight is None else content_weight
        style_weight = style if style_weight is None else style_weight
    return Perceptual(net, content_weight, style_weight)


def _relative_weights(net: FeatureNet, painting: jax.Array) -> tuple[float, float]:
    """Returns the weights of content and style that divide by the painting's scale."""
    features = jax.jit(net.__call__)(net.params, painting)
    content = mean_square(features[net.content_layer], jnp.zeros(()))
    nothing = {name: jnp.zeros(()) for name in net.style_layers}
    scales = float(content), float(style_loss(features, nothing))
    if not all(0 < scale < float("inf") for scale in scales):
        raise InputError(
            "--style.image: its features are zero or not finite: choose another "
            "painting, or give --style.content-weight and --style.style-weight"
        )
    content, style = (w / s for w, s in zip(RELATIVE_WEIGHTS, scales, strict=True))
    return float(f"{content:.3g}"), float(f"{style:.3g}")


def gram(features: jax.Array) -> jax.Array:
    """Computes the Gram matrix of the channels, over all pixels.

    Args:
      features: `[batch, height, width, channels]`.

    Returns:
      Float32 `[batch, channels, channels]`, products of two channels summed over the
      pixels, divided by height * width * channels.

    Example:
      >>> gram(jnp.array([[[[1.0, 2.0]], [[3.0, 4.0]]]]))[0].tolist()
      [[2.5, 3.5], [3.5, 5.0]]
    """
    x = features.reshape(features.shape[0], -1, features.shape[-1])
    total = jnp.einsum(
        "npi,npj->nij",
        x,
        x,
        precision="highest",  # the loss compares small differences of these
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
    return total / (x.shape[1] * x.shape[2])


def style_loss(features: Features, grams: Mapping[str, jax.Array]) -> jax.Array:
    """Sums the mean squared differences of Gram matrices over the layers.

    Args:
      features: `[batch, height, width, channels]` by layer.
      grams: `[1 or batch, channels, channels]` by layer, of the layers to compare.

    Returns:
      A scalar.
    """
    errors = [mean_square(gram(features[name]), grams[name]) for name in grams]
    return jnp.sum(jnp.stack(errors))


def mean_square(x: jax.Array, y: jax.Array) -> jax.Array:
    """Computes the mean squared difference, at least in float32."""
    dtype = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
    return ((x.astype(dtype) - y.astype(dtype)) ** 2).mean()
