"""The losses of style transfer: content and style.

They follow Johnson et al. 2016 (https://arxiv.org/abs/1603.08155, section 3.2) in the
scale of the shift paper's authors: a Gram matrix is divided by height, width and
channels, and an error is a mean over its elements.

The features of two networks, or of two layers, differ in scale by orders of magnitude,
and the losses by its square and its fourth power. The paper's weights are therefore
those of VGG-16 only, and `make_loss` makes the losses of any other network relative.
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from shiftjax.errors import InputError
from train.style.features import VGG_WEIGHTS, FeatureNet, Features

Grams = dict[str, jax.Array]

# The weights of relative losses, content and style, and of the variation. They were
# chosen by looking at photographs in the style of one painting, with SqueezeNet.
RELATIVE_WEIGHTS = (1.0, 2.0, 0.2)


@dataclasses.dataclass(frozen=True)
class Perceptual:
    """The loss of an image that has the content of one image and the style of another.

    Attributes:
      net: the network whose features are compared.
      content_weight: the weight of the content loss.
      style_weight: the weight of the style loss.
      variation_weight: the weight of the variation.
      content_scale: what the content loss is divided by.
      style_scales: what the style loss of a layer is divided by; 1 if it is not named.
    """

    net: FeatureNet
    content_weight: float = VGG_WEIGHTS[0]
    style_weight: float = VGG_WEIGHTS[1]
    variation_weight: float = 0.0
    content_scale: float = 1.0
    style_scales: Mapping[str, float] = dataclasses.field(default_factory=dict)

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
          The loss, a mean over the batch, and its weighted parts, "content", "style"
          and "variation".
        """
        features, wanted = self.net(params, pictures), self.net(params, contents)
        layer = self.net.content_layer
        content = mean_square(features[layer], wanted[layer]) / self.content_scale
        style = style_loss(features, grams, self.style_scales)
        parts = {
            "content": self.content_weight * content,
            "style": self.style_weight * style,
            "variation": self.variation_weight * variation(pictures),
        }
        return parts["content"] + parts["style"] + parts["variation"], parts


def make_loss(
    net: FeatureNet,
    painting: jax.Array,
    content_weight: float | None = None,
    style_weight: float | None = None,
    variation_weight: float | None = None,
) -> Perceptual:
    """Builds the loss for a painting.

    The losses of a network without weights of its own are relative: the content loss is
    divided by the mean square of the painting's features in the content layer. The
    style loss of each layer is divided by the mean square of the painting's Gram
    matrix, and by the number of layers. So every layer counts, and an image without
    any features has a content loss and a style loss of about 1, before their weights.

    Args:
      net: the network whose features are compared.
      painting: `[1, height, width, 3]`, RGB in 0 .. 1.
      content_weight: the weight of the content loss.
      style_weight: the weight of the style loss.
      variation_weight: the weight of the variation. By default weights are the
        network's own, and `RELATIVE_WEIGHTS` if it has none.

    Returns:
      The loss; its scales have three digits, to be equal on all devices.

    Raises:
      InputError: if the features of the painting have no scale, e.g. are all zero.
    """
    given = content_weight, style_weight, variation_weight
    usual = RELATIVE_WEIGHTS if net.weights is None else (*net.weights, 0.0)
    content, style, varied = (
        u if g is None else g for g, u in zip(given, usual, strict=True)
    )
    loss = Perceptual(net, content, style, varied)
    if net.weights is not None:
        return loss
    scale, scales = _scales(net, painting)
    return dataclasses.replace(loss, content_scale=scale, style_scales=scales)


def _scales(net: FeatureNet, painting: jax.Array) -> tuple[float, dict[str, float]]:
    """Returns what relative losses are divided by, see `Perceptual`."""
    features = jax.jit(net.__call__)(net.params, painting)
    zero, layers = jnp.zeros(()), net.style_layers
    content = mean_square(features[net.content_layer], zero)
    style = [len(layers) * mean_square(gram(features[name]), zero) for name in layers]
    scales = [float(f"{float(scale):.3g}") for scale in (content, *style)]
    if not all(0 < scale < float("inf") for scale in scales):
        raise InputError(
            "--style.image: its features are zero or not finite: choose another "
            "painting or other layers"
        )
    return scales[0], dict(zip(layers, scales[1:], strict=True))


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


def style_loss(
    features: Features,
    grams: Mapping[str, jax.Array],
    scales: Mapping[str, float] = types.MappingProxyType({}),
) -> jax.Array:
    """Sums the mean squared differences of Gram matrices over the layers.

    Args:
      features: `[batch, height, width, channels]` by layer.
      grams: `[1 or batch, channels, channels]` by layer, of the layers to compare.
      scales: what the sum's term of a layer is divided by; 1 if it is not named.

    Returns:
      A scalar.
    """
    errors = [
        mean_square(gram(features[name]), grams[name]) / scales.get(name, 1.0)
        for name in grams
    ]
    return jnp.sum(jnp.stack(errors))


def variation(images: jax.Array) -> jax.Array:
    """Computes the mean squared difference of neighboring pixels, down and across.

    It is the total variation of Johnson et al. 2016, as a mean.

    Args:
      images: `[batch, height, width, channels]`, at least 2x2.

    Returns:
      A scalar.

    Example:
      >>> print(variation(jnp.array([[[[0.0], [1.0]], [[0.0], [3.0]]]])))
      7.0
    """
    down = mean_square(images[:, 1:], images[:, :-1])
    return down + mean_square(images[:, :, 1:], images[:, :, :-1])


def mean_square(x: jax.Array, y: jax.Array) -> jax.Array:
    """Computes the mean squared difference, at least in float32."""
    dtype = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
    return ((x.astype(dtype) - y.astype(dtype)) ** 2).mean()
