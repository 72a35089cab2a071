"""Style transfer: images are restyled like one painting.

The task is that of Wu et al. 2018 (https://arxiv.org/abs/1711.08141, section 4),
trained as in Johnson et al. 2016 (https://arxiv.org/abs/1603.08155). The losses compare
features of a frozen network, which is kept on the devices with the images.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from shiftjax import image_files, image_sizes
from shiftjax.apps.thumbnails import encode_thumbnail
from shiftjax.errors import InputError
from shiftjax.models import stylizer
from shiftjax.models.stylizer import StyleNet
from train.config import Augment, Config, published
from train.data.augment import crop_and_flip, normalize, numbers
from train.data.examples import Examples
from train.data.resident import Resident, images_and_labels
from train.logging.metric_names import text
from train.style import features
from train.style.losses import Perceptual, make_loss
from train.tasks.models import make_model
from train.tasks.task import Collections, Item, Sums, total

PARTS = ("loss", "content", "style", "variation")
SHOWN = 4  # images in a sample


@dataclasses.dataclass(frozen=True, eq=False)
class StyleTransfer:
    """The style transfer task; see `train.tasks.task.Task`.

    Attributes:
      model: restyles normalized images.
      loss_of: computes the losses of content and style.
      painting: the style image, uint8 `[height, width, 3]`.
      mean: mean of each channel, for values in 0 .. 1.
      std: standard deviation of each channel, for values in 0 .. 1.
      augment: the augmentation of training images.
    """

    model: nn.Module
    loss_of: Perceptual
    painting: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = dataclasses.field(default_factory=Augment)

    best_metric: ClassVar[str] = "loss"
    best_mode: ClassVar[Literal["max", "min"]] = "min"
    labelled: ClassVar[bool] = False

    @classmethod
    def make(cls, config: Config, examples: Examples) -> "StyleTransfer":
        """Makes the task of a configuration.

        Raises:
          MissingFileError: if the painting or the file of weights does not exist.
          InputError: if an option is missing or does not fit.
        """
        del examples
        options = config.style
        if options.image is None:
            raise InputError(
                "--style.image is missing: the painting to learn the style of"
            )
        _check_options(config)
        image_sizes.check_shape(options.size, 3)
        painting = image_files.decode(
            Path(options.image), options.size, 3, upright=True
        )
        model = make_model(config)
        if not isinstance(model, StyleNet):
            names = " or ".join(stylizer.VARIANTS)
            raise InputError(
                f"--model.name {config.model.name} paints nothing: {names}"
            )
        net = features.load_feature_net(options.features, options.weights)
        net = net.with_layers(options.content_layer, options.style_layers)
        weights = options.content_weight, options.style_weight, options.variation_weight
        return cls(
            model,
            make_loss(net, _as_input(painting), *weights),
            painting,
            config.data.mean,
            config.data.std,
            config.augment,
        )

    @staticmethod
    def class_names(examples: Examples) -> tuple[str, ...]:
        """Returns no names, because the outputs are images."""
        del examples
        return ()

    @staticmethod
    def card_fields(config: Config, test: Mapping[str, float]) -> dict[str, Any]:
        """Returns the painting's thumbnail and source, and the feature network."""
        del test
        assert config.style.image is not None  # else there is no run
        return {
            "painting": encode_thumbnail(Path(config.style.image)),
            "painting_source": config.style.source,
            "feature_network": published(config).style.features,
        }

    def data(self, images: Resident | None) -> dict[str, Any]:
        """Returns the images, the frozen network and the painting's Gram matrices."""
        params = self.loss_of.net.params
        return {"images": images, "params": params, "grams": self._grams}

    def batch(self, data: Any, item: Item, key: jax.Array) -> Any:
        """Makes a training batch: uint8 images, network and Gram matrices."""
        images, _ = images_and_labels(data["images"], item)
        images = crop_and_flip(key, images, numbers(item), self.augment)
        return images, data["params"], data["grams"]

    def loss(self, variables: Collections, batch: Any) -> tuple[jax.Array, Any]:
        """Computes the mean loss of the restyled images."""
        images, params, grams = batch
        painted = self._paint(variables, images)
        loss, parts = self.loss_of(params, grams, painted, images / 255.0)
        count = jnp.float32(len(images))
        sums = {name: value * count for name, value in parts.items()}
        return loss, ({}, sums | {"examples": count})

    def evaluate(
        self, variables: Collections, data: Any, item: Item
    ) -> tuple[Sums, dict[str, jax.Array]]:
        """Sums the losses of the restyled images."""
        images, _ = images_and_labels(data["images"], item)
        painted = self._paint(variables, images)

        def one(painted: jax.Array, image: jax.Array) -> Sums:
            loss, parts = self.loss_of(
                data["params"], data["grams"], painted[None], image[None] / 255.0
            )
            return {"loss": loss, **parts}

        return total(jax.vmap(one)(painted, images), item), {}

    def metrics(
        self, sums: dict[str, Any], rows: dict[str, Any], examples: Examples
    ) -> dict[str, float]:
        """Returns means over the images."""
        del rows
        return {name: float(sums[name]) / len(examples) for name in PARTS}

    def introduction(self, variables: Collections, examples: Examples) -> str:
        """Returns the two losses of the first images, and their weights."""
        images, _ = examples.batch(np.arange(min(SHOWN, len(examples))))
        painted, loss_of = self._painter(variables, images), self.loss_of
        _, parts = jax.jit(loss_of.__call__)(
            loss_of.net.params, self._grams, painted, images / np.float32(255)
        )
        content, style, _ = (text(name, float(parts[name])) for name in PARTS[1:])
        return (
            f"losses at the start: content {content} (weight "
            f"{loss_of.content_weight:.3g}), style {style} (weight "
            f"{loss_of.style_weight:.3g})"
        )

    def sample(self, variables: Collections, examples: Examples) -> Image.Image:
        """Draws the painting, the first images and, below them, the restyled images."""
        images, _ = examples.batch(np.arange(min(SHOWN, len(examples))))
        painted = np.asarray(self._painter(variables, images))
        painted = np.round(255 * painted.clip(0, 1)).astype(np.uint8)
        painting = image_files.fit(Image.fromarray(self.painting), images.shape[1], 3)
        above = np.concatenate([painting, *images], 1)
        below = np.concatenate([np.full_like(painting, 255), *painted], 1)
        return Image.fromarray(np.concatenate([above, below]))

    @functools.cached_property
    def _grams(self) -> dict[str, jax.Array]:
        """The Gram matrices of the painting."""
        painting = _as_input(self.painting)
        return jax.jit(self.loss_of.grams)(self.loss_of.net.params, painting)

    @functools.cached_property
    def _painter(self) -> Any:
        return jax.jit(self._paint)

    def _paint(self, variables: Collections, images: Any) -> jax.Array:
        """Restyles uint8 images: returns `[batch, height, width, 3]` around 0 .. 1."""
        painted: Any = self.model.apply(
            variables, normalize(images, self.mean, self.std)
        )
        return painted * jnp.asarray(self.std) + jnp.asarray(self.mean)


def _check_options(config: Config) -> None:
    """Raises InputError for an option of other tasks that would have no effect."""
    if config.accumulate > 1:
        raise InputError(
            f"--accumulate {config.accumulate}: the task style allows only 1"
        )
    if len(config.data.mean) != 3:
        raise InputError(
            f"--data.mean {config.data.mean[0]}: the task style allows no gray images; "
            "give three numbers"
        )
    if config.model.remat:
        raise InputError("--model.remat: the task style does not allow it")
    augment = config.augment
    for name, value in {
        "label-smoothing": config.label_smoothing,
        "augment.mixup": augment.mixup,
        "augment.cutmix": augment.cutmix,
        "augment.erase": augment.erase,
        "augment.jitter": augment.jitter,
        "augment.rand-augment": augment.rand_augment,
    }.items():
        if value:
            raise InputError(f"--{name} {value}: the task style allows only 0")


def _as_input(image: np.ndarray) -> jax.Array:
    """Returns a uint8 image as the input of a feature network, in 0 .. 1."""
    return jnp.asarray(image[None] / 255, jnp.float32)
