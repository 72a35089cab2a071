"""Random-resized crops of JPEG files by OpenCV and nvImageCodec, faster than Pillow.

What differs is the filter. Pillow averages the pixels of a box that shrinks. Here they
are interpolated between the nearest four, as in TensorFlow's input pipelines.

nvImageCodec decodes only the box, as tf.data does, and on the CPU only.
"""

import contextlib
import functools
import importlib.util
import os
import queue
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from shiftjax import image_files, image_sizes
from shiftjax.errors import InputError, needs_extra
from shiftjax.image_files import Box

Decoder = Literal["opencv", "nvimgcodec"]

_UPRIGHT = (None, 1)  # of the EXIF orientations
_idle: queue.SimpleQueue[Any] = queue.SimpleQueue()  # decoders of nvImageCodec


def check_installed(decoder: Decoder) -> None:
    """Raises InputError if the packages of a decoder are not installed."""
    with needs_extra(f"--augment.crop-decoder {decoder}", decoder):
        import cv2

        if decoder == "nvimgcodec":
            _nvimgcodec()

    # The trainer decodes on one thread per core already.
    cv2.setNumThreads(1)


def decode_crop(
    image: bytes | Path,
    image_size: image_sizes.Size,
    channels: int,
    box: Callable[[int, int], Box],
    *,
    decoder: Decoder,
    upright: bool,
) -> np.ndarray | None:
    """Decodes a JPEG file, and resizes a box of it with bilinear interpolation.

    A file is decoded at 1/2, 1/4 or 1/8 of its size if the box then still is as large
    as the result. OpenCV does this also for nvImageCodec, which cannot.

    Args:
      image: the encoded bytes, or the path of a file.
      image_size: height and width of the result, in pixels.
      channels: 1 for gray, 3 for RGB.
      box: chooses the box, from the width and the height of the image.
      decoder: "opencv" decodes the whole image, "nvimgcodec" only the box.
      upright: True if an image is to be turned upright by its EXIF orientation.

    Returns:
      uint8 `[height, width, channels]`; None for a file that cannot be read, is cut
      off before the end of what is decoded, has to be turned, or is not a JPEG of gray
      or RGB pixels.
    """
    import cv2

    try:
        encoded = image if isinstance(image, bytes) else image.read_bytes()
        with image_files.opened(encoded) as file:
            turned = upright and image_files.orientation(file) not in _UPRIGHT
            if file.format != "JPEG" or file.mode not in ("L", "RGB") or turned:
                return None
            width, height = file.size
    except (OSError, InputError):
        return None
    chosen = box(width, height)
    size = image_sizes.extent(image_size)
    short = min(chosen[2] - chosen[0], chosen[3] - chosen[1])
    scale = next(x for x in (8, 4, 2, 1) if x == 1 or short >= x * max(size))
    if decoder == "nvimgcodec" and scale == 1:
        pixels = _decode_box(encoded, chosen, channels)
    else:
        pixels = _decode_whole(encoded, scale, channels)
        if pixels is not None:
            across, down = pixels.shape[1] / width, pixels.shape[0] / height
            left, right = (round(edge * across) for edge in chosen[::2])
            top, bottom = (round(edge * down) for edge in chosen[1::2])
            pixels = pixels[top:bottom, left:right]
    if pixels is None:
        return None
    # INTER_LINEAR_EXACT, the same on all kinds of processors, takes twice the time.
    resized = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized.reshape(*size, channels)


def _decode_whole(encoded: bytes, scale: int, channels: int) -> np.ndarray | None:
    """Decodes an image at 1/`scale` of its size, by OpenCV."""
    import cv2

    # Each flag is a bit. Those of the scales are named for gray, and one adds color.
    reduced = {
        8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
        4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
        2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
        1: cv2.IMREAD_GRAYSCALE,
    }
    color = 0 if channels == 1 else cv2.IMREAD_COLOR_RGB
    flags = reduced[scale] | color | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)


def _decode_box(encoded: bytes, box: Box, channels: int) -> np.ndarray | None:
    """Decodes a box of an image, by nvImageCodec."""
    codec = _nvimgcodec()
    left, top, right, bottom = box
    stream = codec.CodeStream(encoded)
    part = stream.get_sub_code_stream(region=codec.Region(top, left, bottom, right))
    colors = codec.ColorSpec
    params = codec.DecodeParams(
        apply_exif_orientation=False,
        color_spec=colors.GRAY if channels == 1 else colors.SRGB,
    )
    try:
        decoder = _idle.get_nowait()
    except queue.Empty:
        decoder = codec.Decoder(
            device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY,
            backends=[codec.Backend(codec.BackendKind.CPU_ONLY)],
            max_num_cpu_threads=1,
        )
    decoded = decoder.decode(part, params=params)
    _idle.put(decoder)  # for the next image of any thread; one decodes one at a time
    return None if decoded is None else np.asarray(decoded.cpu())


@functools.cache
def _nvimgcodec() -> ModuleType:
    """Imports nvImageCodec with one of its extensions, the JPEG decoder for CPUs.

    The others print, when they are loaded, that CUDA's libraries are missing.
    """
    spec = None
    with contextlib.suppress(ModuleNotFoundError):  # not even another nvidia package
        spec = importlib.util.find_spec("nvidia.nvimgcodec")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(name="nvidia-nvimgcodec-cu12")
    # A damaged file is reported by who decodes it.
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for file in Path(spec.origin).parent.glob("extensions/*jpeg_turbo_ext*"):
            shutil.copy(file, folder)
        extensions = os.environ.setdefault("NVIMGCODEC_EXTENSIONS_PATH", folder)
        module = importlib.import_module("nvidia.nvimgcodec")
        if extensions == folder:
            del os.environ["NVIMGCODEC_EXTENSIONS_PATH"]
    return module
