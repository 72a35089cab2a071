"""Images whose gray value is their number, for the tests of sources."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from train.data.examples import Examples


def png(pixels: np.ndarray) -> bytes:
    """Encodes an image."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def numbered(number: int) -> bytes:
    """Encodes an image of nine rows of seven pixels of one gray value."""
    return png(np.full((9, 7, 3), number, np.uint8))


def gray_values(found: Examples) -> list[int]:
    """Returns the gray values of examples."""
    return found.batch(np.arange(len(found)))[0][:, 0, 0, 0].tolist()


def assert_any_order(read: Callable[..., Examples]) -> None:
    """Checks twelve examples, labeled by parity, in another order and on threads."""
    order = np.random.default_rng(0).permutation(12)
    for threads in (1, 4):
        images, labels = read(threads=threads).batch(order)
        assert images[:, 4, 4, 1].tolist() == order.tolist()
        assert labels.tolist() == (order % 2).tolist()
