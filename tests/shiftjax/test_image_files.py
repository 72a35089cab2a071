"""Decoding: sizes, kinds of pixels, damage."""

import io
import os
import struct

import numpy as np
import pytest
from PIL import Image

from shiftjax import image_files, image_sizes
from shiftjax.apps import frames
from shiftjax.errors import InputError


@pytest.fixture
def noise(rng):
    """Makes random uint8 arrays."""
    return lambda *shape: rng.integers(0, 256, shape, np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_hidden_folders_are_left_out_but_the_given_one(tmp_path):
    """As those of thumbnails and of deleted files, which are not in the set."""
    root = tmp_path / ".cache" / "images"
    for name in ("class/a.png", "class/.thumbnails/a.png", ".Trash-0/files/b.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for folder in (root, tmp_path / ".cache"):
        assert image_files.find_images(folder) == [root / "class" / "a.png"]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    """A link to the folder itself, two that lead to each other's, and one elsewhere."""
    for name in ("here/class", "there"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.png").touch()
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "class" / "self").symlink_to(".")
    (here / "other").symlink_to(there)
    (there / "back").symlink_to(here)
    found = [str(path.relative_to(here)) for path in image_files.find_images(here)]
    assert found == ["class/a.png", "other/a.png"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a.png").touch()
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    message = f"{tmp_path / 'closed'} cannot be read: Permission denied"
    with pytest.raises(InputError, match=f"^{message}$"):
        image_files.find_images(tmp_path)


def test_a_picture_of_the_size_wanted_is_not_touched(noise):
    image = noise(20, 20, 3)
    assert np.array_equal(image_files.decode(encoded(image), 20, 3), image)


def test_grey_is_repeated_and_kept(noise):
    image = noise(20, 20)
    three = image_files.decode(encoded(image), 20, 3)
    assert np.array_equal(three, np.repeat(image[:, :, None], 3, axis=2))
    assert np.array_equal(image_files.decode(encoded(image), 20, 1), image[:, :, None])


@pytest.mark.parametrize(("height", "width"), [(40, 80), (80, 40)])
def test_the_centre_is_cropped(height, width):
    """The middle is white and the two ends of the long side black."""
    image = np.zeros((height, width, 3), np.uint8)
    image[(height - 40) // 2 :][:40, (width - 40) // 2 :][:, :40] = 255
    result = image_files.decode(encoded(image), 10, 3)
    # Only the outermost pixels may see a little of the black beyond the crop.
    assert (result[1:-1, 1:-1] == 255).all()
    assert result.min() > 150


@pytest.mark.parametrize(
    ("shape", "size", "rows", "columns"),
    [
        ((60, 60), (20, 40), slice(15, 45), slice(None)),  # 40 / 60 of its size
        ((60, 60), (40, 20), slice(None), slice(15, 45)),
        ((30, 90), (20, 40), slice(None), slice(15, 75)),  # 20 / 30 of its size
        ((20, 40), (20, 40), slice(None), slice(None)),
    ],
)
def test_a_size_that_is_not_square_is_covered_and_cropped(shape, size, rows, columns):
    """What is outside of the crop is black, and the crop is white."""
    image = np.zeros((*shape, 3), np.uint8)
    image[rows, columns] = 255
    result = image_files.decode(encoded(image), size, 3)
    assert result.shape == (*size, 3)
    assert (result[1:-1, 1:-1] == 255).all()
    assert result.min() > 120
    assert image_files.decode(encoded(image), size, 1).shape == (*size, 1)


def test_a_box_is_resized_to_a_size_that_is_not_square(noise):
    """The box of the right size is cut out as it is."""
    image = noise(50, 70, 3)
    cut = image_files.decode(
        encoded(image), (20, 40), 3, box=lambda width, height: (5, 10, 45, 30)
    )
    np.testing.assert_array_equal(cut, image[10:30, 5:45])


def test_a_short_side_is_for_square_images():
    for size in ((20, 40), (40, 20)):
        image_sizes.check_shape(size, 3)
        with pytest.raises(InputError, match=r"resize=50: it is for square images"):
            image_sizes.check_shape(size, 3, 50)
    with pytest.raises(InputError, match=r"image_size=\(20, 0\): it must be at least"):
        image_sizes.check_shape((20, 0), 3)


def test_shrinking_averages():
    """Stripes of one pixel become grey, where taking every n-th pixel gives stripes."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::2] = 255
    result = image_files.decode(encoded(image), 16, 3)
    assert np.abs(result[:, 2:-2].astype(int) - 127).max() <= 2


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (300, 7), (1, 1)])
def test_every_size_comes_out_square(size):
    assert image_files.decode(encoded(Image.new("RGB", size)), 16, 3).shape == (
        16,
        16,
        3,
    )


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (300, 301), (256, 256)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_resize_256_and_crop_224_are_pillows(noise, shape, kind):
    """By hand, with torchvision's rounding."""
    data = encoded(noise(*shape, 3), kind)
    height, width = shape
    short = min(shape)
    size = int(256 * width / short), int(256 * height / short)
    resized = Image.open(io.BytesIO(data)).resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    expected = np.asarray(resized)[top : top + 224, left : left + 224]
    received = image_files.decode(data, 224, 3, resize=256)
    np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize(("size", "waves"), [(32, 0), (200, 60)])
def test_a_large_jpeg_decoded_at_a_fraction_is_the_same_picture(size, waves):
    """The waves, 24 pixels long, would be gone at an eighth of the size."""
    y, x = np.mgrid[:512, :768]
    planes = np.stack([y // 4, x // 6, (x + y) // 10], axis=2) + 64
    image = planes + waves * np.sin(x * 2 * np.pi / 24)[:, :, None]
    data = encoded(image.astype(np.uint8), "JPEG", quality=95)
    full = Image.open(io.BytesIO(data)).crop((128, 0, 640, 512))
    expected = np.asarray(full.resize((size, size), Image.Resampling.BOX))
    received = image_files.decode(data, size, 3)
    # Two filters differ by a fraction of the step between two pixels (4 and 40).
    assert np.abs(received.astype(int) - expected).max() <= 6


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (10, 20, 30, 128), (10, 20, 30)),
        ("LA", (10, 128), (10, 10, 10)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 0x8000, (128, 128, 128)),
    ],
)
def test_kinds_of_pixels(mode, colour, expected):
    data = encoded(Image.new(mode, (4, 4), colour), "PNG")
    assert image_files.decode(data, 4, 3)[0, 0].tolist() == list(expected)


@pytest.mark.parametrize(("largest", "value"), [(65535, 0x8000), (1023, 512)])
def test_16_bits_of_a_pgm_are_shown_as_8(tmp_path, largest, value):
    """Its numbers lie in 0 .. the third number of its first line."""
    file = tmp_path / "gray.pgm"
    file.write_bytes(b"P5 4 4 %d\n" % largest + value.to_bytes(2, "big") * 16)
    for options in ({}, {"upright": True}, {"box": lambda width, height: (0, 0, 4, 2)}):
        found = image_files.decode(file, 4, 3, **options)
        np.testing.assert_array_equal(found, np.full((4, 4, 3), 128))
    (frame,) = frames.read_image_file(file).frames
    np.testing.assert_array_equal(frame, np.full((4, 4, 3), 128))


@pytest.mark.parametrize(("ending", "loop"), [("gif", None), ("png", 1), ("webp", 1)])
def test_an_animation_that_is_shown_once_stays_one(noise, tmp_path, ending, loop):
    once = frames.ImageFile((noise(8, 8, 3), noise(8, 8, 3)), (100, 200))
    frames.write_image_file(tmp_path / f"once.{ending}", once)
    with Image.open(tmp_path / f"once.{ending}") as written:
        assert written.info.get("loop") == loop


def test_a_palette_with_transparency_makes_no_warning():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    data = encoded(image, "PNG", transparency=bytes([0, 128]))
    assert image_files.decode(data, 4, 3)[0, 0].tolist() == [200, 100, 50]


def test_pixels_without_a_range_are_refused():
    with pytest.raises(InputError, match="32 bits"):
        image_files.decode(encoded(Image.new("F", (4, 4)), "TIFF"), 4, 3)


def test_exif_orientation_is_obeyed_where_asked_for():
    image = Image.fromarray(np.array([[0, 255], [0, 255]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    data = encoded(image, "PNG", exif=exif)
    plain, upright = (
        image_files.decode(data, 2, 1, upright=u)[..., 0].tolist()
        for u in (False, True)
    )
    assert plain == [[0, 255], [0, 255]]
    assert upright == [[0, 0], [255, 255]]


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_a_box_is_of_the_upright_image(noise, kind):
    image, exif = noise(20, 30, 3), Image.Exif()
    exif[0x0112] = 6

    def box(width, height):
        assert (width, height) == (20, 30)
        return 2, 3, 12, 15

    data = encoded(image, kind, exif=exif)
    found = image_files.decode(data, (12, 10), 3, upright=True, box=box)
    assert np.array_equal(found, np.rot90(image, -1)[3:15, 2:12])


def test_a_damaged_exif_does_not_stop_an_image():
    """Of no known form, or with a text in the place of a number beside a turn."""
    image = np.array([[0, 255], [0, 255]], np.uint8).repeat(8, 0).repeat(8, 1)
    turn = struct.pack("<HHI4s", 0x112, 3, 1, b"\6\0\0\0")
    unit = struct.pack("<HHI4s", 0x128, 2, 4, b"dpi\0")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + turn + unit + bytes(4)
    box = {"box": lambda width, height: (0, 0, width, height)}
    for options in ({}, box):
        data = encoded(image, "JPEG", exif=exif)
        upright = image_files.decode(data, 16, 1, upright=True, **options)
        assert np.abs(upright[..., 0].astype(int) - image.T).max() < 16
        data = encoded(image, "PNG", exif=b"Exif\0\0garbage")
        plain = image_files.decode(data, 16, 1, upright=True, **options)
        assert np.array_equal(plain[..., 0], image)


def damaged_pictures():
    """Returns pictures that end early, lie about themselves or are none."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 40, 3), np.uint8)
    png, jpeg = encoded(image), encoded(image, "JPEG")
    return {
        "empty": b"",
        "text": b"not a picture",
        "half a png": png[: len(png) // 2],
        "half a jpeg": jpeg[: len(jpeg) // 2],
        "broken chunk": png[:40] + b"\0" * 50 + png[90:],
        "huge": png[:16] + struct.pack(">II", 10**9, 10**9) + png[24:],
    }


@pytest.mark.parametrize("kind", damaged_pictures())
def test_damage_is_one_kind_of_error(kind, tmp_path):
    file = tmp_path / "broken.png"
    file.write_bytes(damaged_pictures()[kind])
    message = r"broken\.png: cannot be read as an image"
    with pytest.raises(InputError, match=message) as caught:
        image_files.decode(file, 16, 3)
    assert " at 0x" not in str(caught.value)  # as in Pillow's own words


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", image_files.SAMPLES)
def test_samples_are_pictures_of_any_size(name, channels):
    """With edges, and colours that differ."""
    small, large = (image_files.SAMPLES[name](size, channels) for size in (32, 64))
    assert small.shape == (32, 32, channels)
    assert small.dtype == np.uint8
    assert large.shape == (64, 64, channels)
    assert small.std() > 20
    if channels == 3:
        assert np.abs(small[..., 0].astype(int) - small[..., 2]).mean() > 10


def test_rings_are_drawn_by_their_formula():
    """The centre of 2 x 2 pixels, by hand: three of them at (0, 0), (-1, 0) / 2."""
    red = image_files.rings(2, 1)[..., 0]
    # Pixel (1, 1) is the centre: angle 0, radius 0.
    assert red[1, 1] == (128 + 60 + 60)
    # Pixel (1, 0) is at angle pi, radius 1/2.
    assert red[1, 0] == int(128 - 60 + 60 * np.cos(9))
