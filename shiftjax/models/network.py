"""The base class of all networks: input checks, head and named features."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from shiftjax.errors import InputError
from shiftjax.fast.cpu import Planes
from shiftjax.module import Activations, Unit
from shiftjax.shift import positive

Features = dict[str, Activations]


class Network(Unit, kw_only=True):
    """A network that maps images to logits.

    Attributes:
      num_classes: number of logits.
      remat: if True, the backward pass recomputes each block, and only the tensors
        between blocks are kept.
      implementation: one of `shiftjax.fast.dispatch.NAMES`, or None for the fastest on
        the default backend. Forward-mode derivatives need "reference".
    """

    num_classes: int = 10
    remat: bool = False

    channels: ClassVar[int] = 3
    outputs: ClassVar[str] = "logits"  # what the network returns, for messages

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, capture_features: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Computes logits.

        Args:
          images: `[batch, height, width, channels]` floats, normalized.
          train: if True, BatchNorm uses, and averages, the statistics of the batch.
          capture_features: if True, also return the named features.

        Returns:
          Logits `[batch, num_classes]`, float32; with `capture_features` also the
          features by name: "stem", "stage1", "stage2", ... `[batch, h, w, c]` and
          "pre_logits" `[batch, c]`.

        Raises:
          InputError: if the images or an option do not fit.
        """
        x, features = self.trunk(images, train)
        return self.leave(x, features, capture_features)

    def trunk(self, images: jax.Array, train: bool) -> tuple[Activations, Features]:
        """Computes the last activations before the head, and the features."""
        raise NotImplementedError(f"{type(self).__name__} is the base of the networks")

    def block(self, kind: type[Unit]) -> Any:
        """Returns the class of a block, rematerialized if `remat`."""
        return nn.remat(kind, static_argnums=(2,)) if self.remat else kind

    def enter(
        self, images: jax.Array, train: bool, chunk: int | None = None
    ) -> tuple[Activations, str]:
        """Checks the images, chooses the implementation and converts to its layout.

        Args:
          images: `[batch, height, width, channels]` floats.
          train: if True, BatchNorm uses the statistics of the batch.
          chunk: largest number of images in a chunk of `Planes`.

        Returns:
          The images in the layout of the implementation, and its name.

        Raises:
          InputError: if they have another shape or dtype, or other channels than the
            params.
        """
        stem = self.variables.get("params", {}).get("stem", {})
        check_images(images, stem.get("conv", stem).get("kernel"))
        name = self.choose(images, train).name
        if name == "cpu":
            return Planes.from_nhwc(images, chunk=chunk), name
        return images, name

    def leave(
        self, x: Activations, features: Features, capture_features: bool
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Averages over the pixels, and applies the head.

        Args:
          x: the output of the last stage.
          features: earlier features by name.
          capture_features: if True, also return the features.

        Returns:
          The output of the head, at least float32; with `capture_features` also the
          features in NHWC, and "pre_logits" `[batch, channels]`.
        """
        x = x.global_average_pool() if isinstance(x, Planes) else x.mean((1, 2))
        outputs = self.apply_head(x)
        if not capture_features:
            return outputs
        return outputs, {
            name: value.to_nhwc() if isinstance(value, Planes) else value
            for name, value in (features | {"pre_logits": x}).items()
        }

    def apply_head(self, x: jax.Array) -> jax.Array:
        """Computes logits from the mean over the pixels, `[batch, channels]`."""
        return self.dense(positive("num_classes", self.num_classes), x)

    def dense(self, features: int, x: jax.Array) -> jax.Array:
        """Applies the dense layer of the head, and returns at least float32."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = nn.Dense(features, **dtypes, name="head")(x)
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))


def check_images(images: jax.Array, kernel: Any) -> None:
    """Checks that images fit a network and its first convolution.

    Args:
      images: `[batch, height, width, channels]` floats.
      kernel: kernel of the first convolution, `[..., channels, features]`; None if it
        is not initialized yet.

    Raises:
      InputError: if they have another shape or dtype, or other channels than the
        kernel.
    """
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f"images are {images.dtype} {list(images.shape)}; the network takes "
            "normalized floats [batch, height, width, channels]"
        )
    if 0 in images.shape[1:]:
        raise InputError(
            f"images are {list(images.shape)}: height, width and channels must be at "
            "least 1"
        )
    kernel = nn.meta.unbox(kernel)  # of `nn.with_partitioning`
    if kernel is not None and images.shape[-1] != kernel.shape[-2]:
        raise InputError(
            f"images have {images.shape[-1]} channels, the params {kernel.shape[-2]}"
        )
