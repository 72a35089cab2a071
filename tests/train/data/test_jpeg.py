"""Crops by faster decoders: Pillow's pixels but for the filter, Pillow for the rest."""

import importlib.util
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFilter

from shiftjax import image_files
from shiftjax.errors import InputError, UnknownNameError
from train.data import jpeg
from train.data.sources import load_source

pytest.importorskip("cv2")
pytestmark = pytest.mark.parametrize("decoder", ["opencv", "nvimgcodec"])


@pytest.fixture(autouse=True)
def _installed(decoder):
    if decoder == "nvimgcodec" and not sys.platform.startswith("linux"):
        pytest.skip("nvImageCodec is tested on Linux")


def encoded(height, width, mode="RGB", kind="JPEG", **options):
    """Encodes smooth noise."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3))
    file = io.BytesIO()
    image.convert(mode).save(file, kind, **options)
    return file.getvalue()


def crop(decoder, image, size, box, channels=3, upright=True):
    options = {"decoder": decoder, "upright": upright}
    return jpeg.decode_crop(image, size, channels, lambda *_: box, **options)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_box_of_the_right_size_has_pillows_pixels(decoder, mode, channels):
    image = encoded(50, 70, mode)
    with Image.open(io.BytesIO(image)) as file:
        whole = np.asarray(file.convert({1: "L", 3: "RGB"}[channels]))
    expected = whole.reshape(50, 70, channels)[7:40, 11:55]
    found = crop(decoder, image, (33, 44), (11, 7, 55, 40), channels)
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
def test_a_box_is_interpolated_between_the_nearest_pixels(decoder, height, width):
    image = encoded(50, 70)
    with Image.open(io.BytesIO(image)) as file:
        part = np.asarray(file)[5:45, 10:60].astype(float)
    rows = bilinear(part, height)
    expected = bilinear(rows.swapaxes(0, 1), width).swapaxes(0, 1)
    found = crop(decoder, image, (height, width), (10, 5, 60, 45)).astype(float)
    assert np.abs(found - expected).max() <= 1  # OpenCV computes in integers


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_file_is_decoded_at_a_fraction_of_its_size(decoder, scale, channels):
    """At the right fraction the box needs no filter; Pillow decodes the same one."""
    image = encoded(160, 320)
    with Image.open(io.BytesIO(image)) as file:
        file.draft({1: "L", 3: "RGB"}[channels], (320 // scale, 160 // scale))
        whole = np.asarray(file).reshape(160 // scale, 320 // scale, channels)
    box = (64, 32, 64 + 16 * scale, 32 + 16 * scale)
    left, top = 64 // scale, 32 // scale
    found = crop(decoder, image, 16, box, channels)
    np.testing.assert_array_equal(found, whole[top : top + 16, left : left + 16])


def test_a_turned_image_is_left_to_pillow(decoder):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image = encoded(40, 60, exif=exif)
    assert crop(decoder, image, 16, (0, 0, 20, 20)) is None
    plain = crop(decoder, encoded(40, 60), 16, (0, 0, 20, 20))
    np.testing.assert_array_equal(
        crop(decoder, image, 16, (0, 0, 20, 20), upright=False), plain
    )


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
def test_what_is_left_to_pillow(decoder, image):
    assert crop(decoder, image, 16, (40, 20, 60, 40)) is None


def test_what_is_below_the_box_may_be_missing(decoder):
    whole, cut = encoded(40, 60), encoded(40, 60)[:-40]
    box = (0, 0, 16, 16)
    found = crop(decoder, cut, 16, box)
    if decoder == "opencv":  # which decodes the whole file
        assert found is None
    else:
        np.testing.assert_array_equal(found, crop(decoder, whole, 16, box))


def test_decoders_serve_several_threads(decoder):
    """Each image has its own pixels, also where several threads decode at once."""
    images = [encoded(60 + i, 80) for i in range(32)]
    box = (7, 5, 71, 55)
    alone = [crop(decoder, x, 24, box) for x in images]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            together = pool.map(lambda x: crop(decoder, x, 24, box), images)
            np.testing.assert_array_equal(list(together), alone)


@pytest.mark.parametrize("seed", range(8))
def test_any_box_has_pillows_pixels(decoder, seed):
    """Boxes at any place, of any subsampling of colors, sequential and progressive."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(30, 90, 2)
    options = {"subsampling": seed % 3, "progressive": bool(seed % 2), "quality": 90}
    image = encoded(height, width, **options)
    with Image.open(io.BytesIO(image)) as file:
        whole = np.asarray(file)
    for _ in range(10):
        left, right = sorted(rng.choice(width + 1, 2, replace=False))
        top, bottom = sorted(rng.choice(height + 1, 2, replace=False))
        expected = whole[top:bottom, left:right]
        found = crop(decoder, image, expected.shape[:2], (left, top, right, bottom))
        np.testing.assert_array_equal(found, expected)


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


def test_the_boxes_are_those_of_pillow(decoder, folder):
    """The filters differ by less than two images do: 6 of 255 is between the two."""
    ours, pillows = crops(folder, crop_decoder=decoder), crops(folder)
    assert 0 < np.abs(ours - pillows).mean() < 6 < np.abs(ours[1:] - ours[:-1]).mean()


def test_a_file_that_is_cut_off_is_named(decoder, folder):
    path = folder / "a" / "3.jpg"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"a/3\.jpg: cannot be read"):
        crops(folder, crop_decoder=decoder, validation_examples=0, cut_test=False)


def test_what_is_refused(decoder, folder, monkeypatch):
    with pytest.raises(UnknownNameError, match="opencv"):
        crops(folder, crop_decoder="opncv")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=rf"pip install 'shiftjax\[{decoder}\]'"):
        crops(folder, crop_decoder=decoder)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_machine_that_evaluates_needs_no_decoder(decoder, split, folder, monkeypatch):
    """A run of Linux is evaluated and released where there is no nvImageCodec."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    options = {"image_size": 24, "crop_scale": (0.3, 1.0), "validation_examples": 2}
    examples = load_source(f"folder:{folder}", split, **options, crop_decoder=decoder)
    images, _ = examples.batch(np.arange(len(examples)))
    assert images.any(axis=(1, 2, 3)).all()


def test_nvimgcodec_is_imported_if_it_is_there(decoder, monkeypatch):
    """Without a line about CUDA's libraries, which its own import prints."""
    line = f"from train.data import jpeg; jpeg.check_installed({decoder!r})"
    run = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    if decoder == "nvimgcodec":
        jpeg._nvimgcodec.cache_clear()
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(InputError, match="needs nvidia-nvimgcodec-cu12: pip"):
            jpeg.check_installed(decoder)


def test_evaluation_is_by_pillow(decoder, folder):
    """Without a draw the center is cropped, whatever decodes the random boxes."""
    options = {"image_size": 24, "crop_scale": (0.3, 1.0)}
    found = [
        load_source(f"folder:{folder}", "train", **options, crop_decoder=x).batch(
            np.arange(4)
        )[0]
        for x in ("pillow", decoder)
    ]
    np.testing.assert_array_equal(*found)


def test_pillow_reads_the_file_alike(decoder):
    """The two libraries decode by the same method, so that only the filter differs."""
    image = encoded(64, 64)
    box = (3, 5, 51, 53)
    theirs = image_files.decode(image, 48, 3, box=lambda *_: box)
    np.testing.assert_array_equal(crop(decoder, image, 48, box), theirs)
