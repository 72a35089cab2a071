"""Style transfer networks, with convolutions and with shifts.

Wu et al. 2018 (https://arxiv.org/abs/1711.08141, section 4), after Johnson et al.
2016 (https://arxiv.org/abs/1603.08155). A layer is a convolution, instance norm, ReLU:

    layer     features   stylizer          shift_stylizer
    conv1           32   9x9               9x9
    conv2           64   7x7, stride 2     shift 7x7, 1x1, stride 2
    conv3          128   3x3, stride 2     shift 3x3, 1x1, stride 2
    block1..5      128   3x3, 3x3          (shift 3x3, 1x1) twice
    up1             64   nearest x2, 5x5   nearest x2, shift 5x5, 1x1
    up2             32   nearest x2, 7x7   nearest x2, 7x7
    out              3   9x9               9x9

A block adds its input, with no ReLU on the sum. `out` has neither norm nor ReLU. All
convolutions have biases and are padded by reflection; a shift is padded with zeros. The
shift of conv2 has 49 displacements for 32 channels, so it moves no channel.

Output and input are normalized with the same mean and standard deviation: the image in
0 .. 1 is `y * std + mean`. The network does not clip it. The authors' code
(https://github.com/noahgolmant/shiftnet_styletransfer) takes and returns 0 .. 255, like
the examples of PyTorch. With mean 0 and deviation 1/255 it is the same network. Several
versions of it exist, with other windows in some layers.

A height or width that is not a multiple of 4 is padded by reflection, at the bottom and
on the right, and the result is cropped.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from shiftjax.errors import InputError
from shiftjax.fast.convolutions import block_side, convolve_blocks, convolve_upsampled
from shiftjax.fast.dispatch import REFERENCE
from shiftjax.instancenorm import InstanceNorm
from shiftjax.layers import Shift
from shiftjax.models.network import check_images
from shiftjax.module import Unit
from shiftjax.shift import positive

MULTIPLE = 4  # product of the strides


class StyleConv(Unit):
    """A convolution padded by reflection, or a shift and a 1x1 convolution, with norm.

    Attributes:
      features: number of output channels.
      kernel_size: side K of the window, odd.
      strides: distance between the rows and columns kept, in pixels.
      shifted: if True, the layer is a shift and a 1x1 convolution.
      upsampling: factor by which the input is first enlarged, by repetition of its rows
        and columns.
      normalized: if True, instance norm follows.

    Example:
      >>> x = jnp.ones((1, 8, 8, 18))
      >>> variables = StyleConv(4, 3, shifted=True).init(jax.random.key(0), x)
      >>> jax.tree.map(jnp.shape, variables["params"]["conv"])
      {'bias': (4,), 'kernel': (18, 4)}
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    shifted: bool = False
    upsampling: int = 1
    normalized: bool = True

    kind: ClassVar[str] = "style_conv"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer.

        Args:
          x: `[batch, height, width, channels]`.

        Returns:
          `[batch, h, w, features]`, `h = ceil(height * upsampling / strides)`, w alike.

        Raises:
          InputError: if an option is not a positive integer, or the window is even.
        """
        positive("features", self.features)
        if positive("kernel_size", self.kernel_size) % 2 == 0:
            raise InputError(f"kernel_size={self.kernel_size}: it must be odd")
        times = positive("upsampling", self.upsampling)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        options = dtypes | {"kernel_init": self.kernel_init, "name": "conv"}
        if self.shifted:
            x = x.repeat(times, 1).repeat(times, 2)
            x = Shift(self.kernel_size, self.strides, name="shift")(x)
            x = nn.Dense(self.features, **options)(x)
        else:
            window = (self.kernel_size, self.kernel_size)
            # `_convolve` gets the kernel, and repeats and pads the pixels.
            options |= {"conv_general_dilated": self._convolve}
            x = nn.Conv(self.features, window, self.strides, "VALID", **options)(x)
        if self.normalized:
            x = InstanceNorm(self.epsilon, **dtypes, name="norm")(x)
        return x

    def has_variables(self) -> bool:
        """Returns True if the variables are given, and are not being initialized."""
        return "params" in self.variables and not self.is_initializing()

    def _convolve(
        self, x: jax.Array, kernel: jax.Array, *_: Any, **options: Any
    ) -> jax.Array:
        """Convolves an image, enlarged and padded by reflection.

        Args:
          x: `[batch, height, width, channels]`.
          kernel: `[size, size, channels, features]`.
          options: those that `nn.Conv` passes to `lax.conv_general_dilated`.

        Returns:
          `[batch, h, w, features]`.
        """
        size, times, half = self.kernel_size, self.upsampling, self.kernel_size // 2
        fast = self.choose(x).name != REFERENCE
        if fast and times == 2 and self.strides == 1 and min(x.shape[1:3]) >= size > 1:
            return convolve_upsampled(x, kernel)
        x = x.repeat(times, 1).repeat(times, 2)
        x = jnp.pad(x, [(0, 0), (half, half), (half, half), (0, 0)], "reflect")
        side = block_side(kernel.shape)
        if fast and side > 1 and self.strides == 1:
            return convolve_blocks(x, kernel, side)
        strides = (self.strides, self.strides)
        return lax.conv_general_dilated(x, kernel, strides, "VALID", **options)


class StyleBlock(Unit):
    """A residual block of two layers, with no ReLU on the sum.

    Attributes:
      shifted: if True, the layers are shifts and 1x1 convolutions.
    """

    shifted: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block.

        Args:
          x: `[batch, height, width, channels]`.

        Returns:
          The same shape.
        """
        layer = functools.partial(
            self.unit, StyleConv, x.shape[-1], shifted=self.shifted
        )
        return x + layer(name="conv2")(nn.relu(layer(name="conv1")(x))).astype(x.dtype)


class StyleNet(Unit):
    """A network that maps images to images of the same size.

    The fields `axis_name` and `momentum` of every unit have no effect here: instance
    norm keeps no running statistics.

    Attributes:
      shifted: if True, all layers but the first and the last two have shifts.
      blocks: number of residual blocks.

    Example:
      >>> from shiftjax import create_model
      >>> model = create_model("shift_stylizer")
      >>> images = jax.ShapeDtypeStruct((2, 50, 37, 3), "float32")
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, variables, images).shape
      (2, 50, 37, 3)
    """

    shifted: bool = False
    blocks: int = 5

    kind: ClassVar[str] = StyleConv.kind  # its layers choose for themselves
    image_size: ClassVar[int] = 256
    channels: ClassVar[int] = 3
    outputs: ClassVar[str] = "images"  # what the network returns, for messages

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Restyles normalized images.

        Args:
          images: floats `[batch, height, width, 3]`, normalized; of any size.

        Returns:
          float32 `[batch, height, width, 3]`, normalized as the input is.

        Raises:
          InputError: if the shape or dtype of the images, or an option, does not fit.
        """
        self.choose(images)  # refuses an unknown name
        kernel = self.variables.get("params", {}).get("conv1", {}).get("conv", {})
        check_images(images, kernel.get("kernel"))
        _, height, width, _ = images.shape
        fill = [(0, 0), (0, -height % MULTIPLE), (0, -width % MULTIPLE), (0, 0)]
        x = jnp.pad(images, fill, "reflect")
        for layer in self.encoder():
            x = nn.relu(layer(x))
        for block in self.trunk():
            x = block(x)
        *ups, out = self.decoder()
        for layer in ups:
            x = nn.relu(layer(x))
        x = out(x)[:, :height, :width]
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    @nn.nowrap
    def encoder(self) -> list[StyleConv]:
        """Creates the layers before the blocks, with their names; ReLU follows each."""
        layer = functools.partial(self.unit, StyleConv)
        return [
            layer(32, 9, name="conv1"),
            layer(64, 7, 2, self.shifted, name="conv2"),
            layer(128, 3, 2, self.shifted, name="conv3"),
        ]

    @nn.nowrap
    def trunk(self) -> list[StyleBlock]:
        """Creates the residual blocks, with their names."""
        numbers = range(1, positive("blocks", self.blocks) + 1)
        return [self.unit(StyleBlock, self.shifted, name=f"block{n}") for n in numbers]

    @nn.nowrap
    def decoder(self) -> list[StyleConv]:
        """Creates the layers after the blocks; ReLU follows each but the last."""
        layer = functools.partial(self.unit, StyleConv)
        return [
            layer(64, 5, 1, self.shifted, 2, name="up1"),
            layer(32, 7, upsampling=2, name="up2"),
            layer(self.channels, 9, normalized=False, name="out"),
        ]


VARIANTS: Mapping[str, functools.partial[StyleNet]] = {
    "stylizer": functools.partial(StyleNet),
    "shift_stylizer": functools.partial(StyleNet, shifted=True),
}
