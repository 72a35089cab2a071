"""Crops by OpenCV: the pixels of Pillow, but for the filter; Pillow for all else."""

import io
import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter

from shiftjax import image_files
from shiftjax.errors import InputError, UnknownNameError
from train.data import opencv
from train.data.sources import load_source

pytest.importorskip("cv2")


def encoded(height, width, mode="RGB", kind="JPEG", **options):
    """Encodes smooth noise."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3))
    file = io.BytesIO()
    image.convert(mode).save(file, kind, **options)
    return file.getvalue()


def crop(image, size, box, channels=3, upright=True):
    return opencv.decode_crop(image, size, channels, lambda *_: box, upright=upright)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_box_of_the_right_size_has_pillows_pixels(mode, channels):
    image = encoded(50, 70, mode)
    with Image.open(io.BytesIO(image)) as file:
        whole = np.asarray(file.convert({1: "L", 3: "RGB"}[channels]))
    expected = whole.reshape(50, 70, channels)[7:40, 11:55]
    found = crop(image, (33, 44), (11, 7, 55, 40), channels)
    assert found.dtype == np.uint8
    # Gray is the luma of the file here, and is computed from red, green and blue there.
    np.testing.assert_allclose(found, expected, atol=1, strict=False)


def bilinear(values, count):
    """Interpolates along the first axis, between the centers of pixels."""
    at = (np.arange(count) + 0.5) * len(values) / count - 0.5
    low = np.clip(np.floor(at).astype(int), 0, len(values) - 1)
    high, part = np.minimum(low + 1, len(values) - 1), np.clip(at - low, 0, 1)
    part = part.reshape(-1, *[1] * (values.ndim - 1))
    return values[low] * (1 - part) + values[high] * part


@pytest.mark.parametrize(("height", "width"), [(20, 30), (48, 20), (60, 61)])
def test_a_box_is_interpolated_between_the_nearest_pixels(height, width):
    image = encoded(50, 70)
    with Image.open(io.BytesIO(image)) as file:
        part = np.asarray(file)[5:45, 10:60].astype(float)
    rows = bilinear(part, height)
    expected = bilinear(rows.swapaxes(0, 1), width).swapaxes(0, 1)
    found = crop(image, (height, width), (10, 5, 60, 45)).astype(float)
    assert np.abs(found - expected).max() <= 1  # OpenCV computes in integers


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_file_is_decoded_at_a_fraction_of_its_size(scale, channels):
    """At the right fraction the box needs no filter; Pillow decodes the same one."""
    image = encoded(160, 320)
    with Image.open(io.BytesIO(image)) as file:
        file.draft({1: "L", 3: "RGB"}[channels], (320 // scale, 160 // scale))
        whole = np.asarray(file).reshape(160 // scale, 320 // scale, channels)
    box = (64, 32, 64 + 16 * scale, 32 + 16 * scale)
    left, top = 64 // scale, 32 // scale
    found = crop(image, 16, box, channels)
    np.testing.assert_array_equal(found, whole[top : top + 16, left : left + 16])


def test_a_turned_image_is_left_to_pillow():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image = encoded(40, 60, exif=exif)
    assert crop(image, 16, (0, 0, 20, 20)) is None
    plain = crop(encoded(40, 60), 16, (0, 0, 20, 20))
    np.testing.assert_array_equal(crop(image, 16, (0, 0, 20, 20), upright=False), plain)


@pytest.mark.parametrize(
    "image",
    [
        encoded(40, 60, kind="PNG"),
        encoded(40, 60, "CMYK"),
        encoded(40, 60)[:-40],
        encoded(40, 60)[:100],
        b"not an image",
    ],
    ids=["png", "cmyk", "cut off", "cut in the header", "none"],
)
def test_what_is_left_to_pillow(image):
    assert crop(image, 16, (0, 0, 20, 20)) is None


@pytest.fixture
def folder(tmp_path):
    for name in "ab":
        for i in range(6):
            path = tmp_path / name / (f"{i}.png" if i == 0 else f"{i}.jpg")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encoded(40 + i, 60, kind="PNG" if i == 0 else "JPEG"))
    return tmp_path


def crops(folder, **options):
    examples = load_source(
        f"folder:{folder}", "train", image_size=24, crop_scale=(0.3, 1.0), **options
    )
    count = len(examples)
    images, _ = examples.batch(np.arange(count), np.full(count, 3))
    return images.astype(float)


def test_the_boxes_are_those_of_pillow(folder):
    """The filters differ by less than two images do: 6 of 255 is between the two."""
    ours, pillows = crops(folder, crop_decoder="opencv"), crops(folder)
    assert 0 < np.abs(ours - pillows).mean() < 6 < np.abs(ours[1:] - ours[:-1]).mean()


def test_a_file_that_is_cut_off_is_named(folder):
    path = folder / "a" / "3.jpg"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"a/3\.jpg: cannot be read"):
        crops(folder, crop_decoder="opencv", validation_examples=0, cut_test=False)


def test_what_is_refused(folder, monkeypatch):
    with pytest.raises(UnknownNameError, match="opencv"):
        crops(folder, crop_decoder="opncv")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"pip install 'shiftjax\[opencv\]'"):
        crops(folder, crop_decoder="opencv")


def test_evaluation_is_by_pillow(folder):
    """Without a draw the center is cropped, whatever decodes the random boxes."""
    options = {"image_size": 24, "crop_scale": (0.3, 1.0)}
    found = [
        load_source(f"folder:{folder}", "train", **options, crop_decoder=x).batch(
            np.arange(4)
        )[0]
        for x in ("pillow", "opencv")
    ]
    np.testing.assert_array_equal(*found)


def test_pillow_reads_the_file_alike():
    """The two libraries decode by the same method, so that only the filter differs."""
    image = encoded(64, 64)
    box = (3, 5, 51, 53)
    theirs = image_files.decode(image, 48, 3, box=lambda *_: box)
    np.testing.assert_array_equal(crop(image, 48, box), theirs)
