"""Random-resized crop: a random box of the original image, resized to one size.

The random numbers are a function of the seed, the draw (in general the epoch) and the
example alone. So the same box is cropped in any batch, on any host and thread, and when
a run resumes.
"""

import math

import numpy as np

from shiftjax.image_files import Box

TRIES = 10
_RATIOS = (3 / 4, 4 / 3)  # of width to height


def uniforms(seed: int, draw: int, example: int) -> np.ndarray:
    """Returns the random numbers of an example that is drawn.

    They are the raw numbers of Philox, which no version of NumPy may change.

    Args:
      seed: the seed of the run.
      draw: another number each time that the example is drawn, such as the epoch.
      example: the number of the example in its set.

    Returns:
      float64 `[TRIES, 4]` in 0 <= x < 1: area, aspect ratio, top and left of each try.
    """
    bits = np.random.Philox(key=[seed, 0], counter=[0, 0, example, draw])
    raw = bits.random_raw(4 * TRIES)
    return (raw >> np.uint64(11)).reshape(TRIES, 4) * 2.0**-53


def random_box(
    width: int, height: int, draws: np.ndarray, scale: tuple[float, float]
) -> Box:
    """Returns the box of a random-resized crop, as in torchvision.

    The first box that fits into the image is taken. Its area is uniform in `scale`, its
    aspect ratio is log-uniform in 3/4 .. 4/3, and so is its place among all that fit.
    If none fits, it is the largest box in the center with an allowed aspect ratio.

    Source: Szegedy et al. 2014, https://arxiv.org/abs/1409.4842; torchvision's
    `RandomResizedCrop`.

    Args:
      width: width of the image.
      height: height of the image.
      draws: uniform random numbers, `[tries, 4]`; see `uniforms`.
      scale: the smallest and the largest share of the image's area.

    Returns:
      left, top, right and bottom, in pixels.

    Example:
      >>> random_box(400, 300, np.array([[0.0, 0.5, 0.0, 0.999]]), (0.25, 1.0))
      (227, 0, 400, 173)
    """
    low, high = map(math.log, _RATIOS)
    for area, shape, down, across in draws.tolist():
        wanted = width * height * (scale[0] + (scale[1] - scale[0]) * area)
        ratio = math.exp(low + (high - low) * shape)
        w, h = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = math.floor((width - w + 1) * across)
            top = math.floor((height - h + 1) * down)
            return left, top, left + w, top + h
    w = min(width, round(height * _RATIOS[1]))
    h = min(height, round(width / _RATIOS[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
