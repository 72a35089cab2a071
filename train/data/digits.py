"""The handwritten digits that come with scikit-learn, without a download.

1,797 images of 8x8 gray values 0..16, the test set of
https://archive.ics.uci.edu/dataset/80 (E. Alpaydin, C. Kaynak, 1998).
"""

from typing import Any

import numpy as np
from PIL import Image

from shiftjax import image_files, image_sizes
from train.data import splits
from train.data.image_set import ImageSet

_TEST_EXAMPLES = 360


def open_digits(
    image_size: image_sizes.Size, channels: int, resize: int | None = None
) -> splits.OfficialSplits:
    """Opens the digits: 1,437 training and 360 test examples, stratified by class.

    Args:
      image_size: the height and width to resize the 8x8 images to (bilinear).
      channels: 1, or 3 for three equal channels.
      resize: the short side before the center is cropped; None for `image_size`.

    Returns:
      The splits.
    """

    def read(split: str) -> ImageSet:
        everything = _read(image_size, channels, resize)
        train, test = splits.stratified_cut(everything.labels, _TEST_EXAMPLES)
        return everything.take(train if split == "train" else test)

    return splits.assign("digits", ["train", "test"], read)


def _read(image_size: image_sizes.Size, channels: int, resize: int | None) -> ImageSet:
    """Reads all digits in scikit-learn's order."""
    from sklearn.datasets import load_digits  # takes a second, so only if needed

    digits: Any = load_digits()  # its annotation lacks the attributes
    gray = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = [
        image_files.fit(Image.fromarray(g), image_size, channels, resize) for g in gray
    ]
    names = tuple(str(name) for name in digits.target_names)
    return ImageSet(np.stack(images), digits.target.astype(np.int32), names)
