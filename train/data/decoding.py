"""The decoding of images: its options, and the pixels of one image."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from shiftjax import image_files, image_sizes
from train.data import bulk, jpeg
from train.data.random_crop import random_box, uniforms

Decode = Literal["once", "each_epoch"]
CropDecoder = Literal["pillow", jpeg.Decoder]
OnCorrupt = Literal["stop", "skip"]
ON_CORRUPT: tuple[str, ...] = get_args(OnCorrupt)
CROP_DECODERS: tuple[str, ...] = get_args(CropDecoder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """The options of decoding images.

    Attributes:
      image_size: height and width of the images; images of another size are resized to
        cover it, and the center is cropped.
      channels: 3 (RGB; gray images are repeated) or 1 (gray).
      resize: the short side before the center is cropped; None for `image_size`.
      crop_scale: the smallest and the largest area of a random-resized crop of training
        images, as shares of the image; None for the center.
      crop_decoder: "pillow", or for random-resized crops of JPEG files "opencv" or
        "nvimgcodec"; see `train.data.jpeg`.
      seed: the seed of the random crops.
      decode: "once", into memory, or "each_epoch"; None for once, unless there are
        random crops or the source would take more than half of the memory.
      on_corrupt: "stop" at a damaged image, or "skip" it: leave it out of a set that is
        decoded once, or take the next image in its place.
      threads: number of threads; None for one per core that the process may use.
    """

    image_size: image_sizes.Size = 32
    channels: int = 3
    resize: int | None = None
    crop_scale: tuple[float, float] | None = None
    crop_decoder: CropDecoder = "pillow"
    seed: int = 0
    decode: Decode | None = None
    on_corrupt: OnCorrupt = "stop"
    threads: int | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape `(height, width, channels)` of an image."""
        return *image_sizes.extent(self.image_size), self.channels

    def at_each_epoch(self, examples: int) -> bool:
        """Returns True if the images of a source are decoded at each epoch.

        Args:
          examples: number of examples of all splits of the source.

        Example:
          >>> Decoding(image_size=224).at_each_epoch(10**9)
          True
        """
        if self.decode is not None:
            return self.decode == "each_epoch"
        size = examples * math.prod(self.image_shape)
        return self.crop_scale is not None or size > bulk.memory() / 2

    def pixels(
        self, image: bytes | Path, number: int, draw: int | None, upright: bool
    ) -> np.ndarray:
        """Decodes an image, to uint8 `[height, width, channels]`.

        Args:
          image: the encoded bytes, or the path of a file.
          number: the number of the example, for the random crop.
          draw: another number each time that the example is drawn, for the random
            crop; None for the center.
          upright: True to turn the image upright by its EXIF orientation.

        Raises:
          InputError: if it is not an image, or is damaged.
        """
        box = None
        if draw is not None and self.crop_scale is not None:
            draws = uniforms(self.seed, draw, number)
            box = functools.partial(random_box, draws=draws, scale=self.crop_scale)
            if self.crop_decoder != "pillow":
                found = jpeg.decode_crop(
                    image,
                    self.image_size,
                    self.channels,
                    box,
                    decoder=self.crop_decoder,
                    upright=upright,
                )
                if found is not None:
                    return found
        return image_files.decode(
            image,
            self.image_size,
            self.channels,
            upright=upright,
            resize=self.resize,
            box=box,
        )
