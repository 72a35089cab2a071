"""Frozen networks whose features measure the similarity of two images.

VGG-16, which the paper uses, and SqueezeNet 1.0 need a file of weights from the user;
our released networks bring their own. The weights are an argument of `FeatureNet`'s
call, so that they do not become constants of the compiled program.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from shiftjax.errors import InputError, unknown_name
from shiftjax.models.network import Network
from shiftjax.weights import open_pretrained
from train.style.files import (
    Params,
    Shape,
    convolutions,
    decode_codebooks,
    read_npz,
    read_torch,
)

Features = dict[str, jax.Array]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_MEAN, CAFFE_STD = (123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3

# The paper's weights of the content loss and the style loss, for VGG-16.
VGG_WEIGHTS = (1e5, 1e10)
# Number and width of the convolutions in the stages of VGG-16 up to relu4_3.
VGG_STAGES = ((2, 64), (2, 128), (3, 256), (3, 512))
# Width of the squeeze layer and of each expand layer, for SqueezeNet 1.0's modules.
FIRES = {
    2: (16, 64),
    3: (16, 64),
    4: (32, 128),
    5: (32, 128),
    6: (48, 192),
    7: (48, 192),
    8: (64, 256),
}
POOLED = (2, 5)  # the modules that follow a pooling
PARTS = ("squeeze", "expand1x1", "expand3x3")
DEEP_COMPRESSION = (
    "conv1x1_1",
    "conv1x1_2",
    "conv3x3_2",
)  # the names of PARTS in its files


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNet:
    """A frozen network whose features the losses compare.

    Attributes:
      apply: maps params and normalized images `[batch, height, width, 3]` to features
        `[batch, h, w, channels]` by layer.
      params: the parameters for `apply`.
      content_layer: the layer of the content loss.
      style_layers: the layers whose Gram matrices make the style loss.
      mean: the mean of red, green and blue in 0 .. 1, to subtract.
      std: the standard deviation of red, green and blue, to divide by.
      weights: the known weights of the content loss and the style loss; None to choose
        them by the scale of the features, see `train.style.losses.make_loss`.
    """

    apply: Callable[[Any, jax.Array], Features]
    params: Any
    content_layer: str
    style_layers: tuple[str, ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    weights: tuple[float, float] | None = None

    def __call__(self, params: Any, pictures: jax.Array) -> Features:
        """Computes features of `[batch, height, width, 3]`, RGB in 0 .. 1."""
        images = (pictures - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        return self.apply(params, images)

    def with_layers(self, content: str | None, style: Sequence[str]) -> "FeatureNet":
        """Returns this network with other layers for the losses.

        Args:
          content: the layer of the content loss; None to keep it.
          style: the layers of the style loss; empty to keep them.

        Raises:
          UnknownNameError: if the network has no such layer.
        """
        if content is None and not style:
            return self
        images = jnp.zeros((1, 64, 64, 3))
        known = jax.eval_shape(self.apply, self.params, images)
        given = [("--style.content-layer", content or self.content_layer)]
        given += [("--style.style-layers", name) for name in style]
        for option, name in given:
            if name not in known:
                raise unknown_name(option, name, known)
        return dataclasses.replace(
            self,
            content_layer=content or self.content_layer,
            style_layers=tuple(style) or self.style_layers,
        )


def load_feature_net(
    name: str, path: str | os.PathLike[str] | None = None
) -> FeatureNet:
    """Loads a network for perceptual losses.

    Args:
      name: "vgg16" or "squeezenet"; or a released network, "architecture.tag" or a
        .safetensors file.
      path: the file of weights, for "vgg16" and "squeezenet" only.

    Returns:
      The network with its parameters.

    Raises:
      MissingFileError: if there is no such file.
      InputError: if the weights do not fit, or the network has no named features.
      UnknownNameError: if there is no such release.
    """
    builders = {"vgg16": vgg16, "squeezenet": squeezenet}
    if name not in builders:
        if path is not None:
            raise InputError(f"{name} is released: it takes no other weights, {path}")
        return released(name)
    if path is None:
        raise InputError(f"{name} needs its file of weights")
    return builders[name](path)


def vgg16(path: str | os.PathLike[str]) -> FeatureNet:
    """Loads VGG-16 up to relu4_3, with the paper's layers.

    Args:
      path: a state dict of torchvision's `vgg16`, written by `torch.save`.

    Raises:
      MissingFileError: if there is no such file.
      InputError: if it cannot be read, or lacks layers, all of which are named.
    """
    layers: dict[str, tuple[str, Shape]] = {}
    index, channels = 0, 3  # torchvision counts convolutions, ReLUs and poolings
    for stage, (count, width) in enumerate(VGG_STAGES, 1):
        for number in range(1, count + 1):
            shape = (width, channels, 3, 3)
            layers[f"conv{stage}_{number}"] = (f"features.{index}", shape)
            index, channels = index + 2, width
        index += 1
    params = convolutions(read_torch(path), layers, str(path))
    style = tuple(f"relu{stage}_{n}" for stage, (n, _) in enumerate(VGG_STAGES, 1))
    return FeatureNet(apply_vgg16, params, "relu2_2", style, weights=VGG_WEIGHTS)


def apply_vgg16(params: Params, images: jax.Array) -> Features:
    """Computes "relu1_2", "relu2_2", "relu3_3" and "relu4_3"."""
    x, features = images, {}
    for stage, (count, _) in enumerate(VGG_STAGES, 1):
        if stage > 1:
            x = nn.max_pool(x, (2, 2), (2, 2))
        for number in range(1, count + 1):
            x = nn.relu(_conv(params[f"conv{stage}_{number}"], x, padding=1))
        features[f"relu{stage}_{count}"] = x
    return features


def squeezenet(path: str | os.PathLike[str]) -> FeatureNet:
    """Loads SqueezeNet 1.0 up to its module fire8.

    Source: Iandola et al. 2016, https://arxiv.org/abs/1602.07360.

    Args:
      path: a state dict of torchvision's `squeezenet1_0`, written by `torch.save`, or
        an .npz with the names of Deep Compression's Caffe model ("conv1.weight",
        "fire2/conv1x1_1.bias", ...), also with codes and a codebook in place of each
        weight. That model takes BGR in 0 .. 255 minus (104, 117, 123); its first
        kernel is turned to RGB.

    Raises:
      MissingFileError: if there is no such file.
      InputError: if it cannot be read, or lacks layers, all of which are named.
    """
    caffe = os.fspath(path).endswith(".npz")
    layers: dict[str, tuple[str, Shape]] = {}
    layers["conv1"] = "conv1" if caffe else "features.0", (96, 3, 7, 7)
    channels = 96
    for fire, (narrow, half) in FIRES.items():
        index = fire + 1 + sum(fire >= number for number in POOLED[1:])
        names = DEEP_COMPRESSION if caffe else PARTS
        prefix = f"fire{fire}/" if caffe else f"features.{index}."
        shapes = ((narrow, channels, 1, 1), (half, narrow, 1, 1), (half, narrow, 3, 3))
        for part, name, shape in zip(PARTS, names, shapes, strict=True):
            layers[f"fire{fire}/{part}"] = f"{prefix}{name}", shape
        channels = 2 * half
    where = str(path)
    arrays = decode_codebooks(read_npz(path), where) if caffe else read_torch(path)
    params = convolutions(arrays, layers, where)
    net = FeatureNet(
        apply_squeezenet, params, "fire2", ("conv1", "fire3", "fire5", "fire8")
    )
    if not caffe:
        return net
    first = {**params["conv1"], "kernel": params["conv1"]["kernel"][:, :, ::-1]}
    params = params | {"conv1": first}
    return dataclasses.replace(net, params=params, mean=CAFFE_MEAN, std=CAFFE_STD)


def apply_squeezenet(params: Params, images: jax.Array) -> Features:
    """Computes "conv1" and "fire2" to "fire8", all after their ReLU."""
    features = {"conv1": nn.relu(_conv(params["conv1"], images, strides=2))}
    x = features["conv1"]
    for fire in FIRES:
        if fire in POOLED:
            # The last window may extend past the edge, as in Caffe.
            over: Any = [(0, (size - 3) % 2) for size in x.shape[1:3]]
            x = nn.max_pool(x, (3, 3), (2, 2), over)
        squeeze, one, three = (params[f"fire{fire}/{part}"] for part in PARTS)
        x = nn.relu(_conv(squeeze, x))
        x = nn.relu(jnp.concatenate([_conv(one, x), _conv(three, x, padding=1)], -1))
        features[f"fire{fire}"] = x
    return features


def released(name: str, directory: str | None = None) -> FeatureNet:
    """Loads one of our released networks, with its stem and stages.

    Args:
      name: "architecture.tag", or a .safetensors file.
      directory: the folder of the releases; see `shiftjax.load_pretrained`.

    Raises:
      UnknownNameError: if there is no such release.
      InputError: if it has no named features, e.g. a stylizer.
    """
    pretrained = open_pretrained(name, directory)
    model, card = pretrained.model, pretrained.card
    if not isinstance(model, Network):
        raise InputError(f"{name} has no named features: take a classifier")

    def apply(variables: Any, images: jax.Array) -> Features:
        features: Any = model.apply(variables, images, capture_features=True)
        return {k: v for k, v in features[1].items() if k != "pre_logits"}

    images = jnp.zeros((1, *card.image_shape()))
    layers = jax.eval_shape(apply, pretrained.variables, images)
    return FeatureNet(
        apply, pretrained.variables, "stage2", tuple(layers), card.mean, card.std
    )


def _conv(
    params: dict[str, jax.Array], x: jax.Array, strides: int = 1, padding: int = 0
) -> jax.Array:
    """Applies a convolution with bias."""
    y = lax.conv_general_dilated(
        x,
        params["kernel"],
        (strides, strides),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + params["bias"]
