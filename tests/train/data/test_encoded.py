"""Images that are decoded for each batch: the same pixels in any batch."""

import logging

import numpy as np
import pytest
from PIL import Image

from shiftjax.errors import InputError
from train.data import bulk
from train.data.encoded import Encoded
from train.data.image_set import ImageSet
from train.data.random_crop import random_box, uniforms
from train.data.sources import load_source
from train.data.stream import Order, items

SIZE = 16
SCALE = (0.2, 1.0)


@pytest.fixture
def draw(tmp_path):
    """Returns a function that draws images of many sizes in two classes."""

    def draw(split="train", count=12, kind="jpg"):
        rng = np.random.default_rng(len(split))
        for i in range(count):
            folder = tmp_path / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            width, height = (int(x) for x in rng.integers(30, 90, 2))
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:03d}.{kind}")
        return tmp_path

    return draw


@pytest.fixture
def root(draw):
    draw("test", 4)
    return draw()


def streamed(root, split="train+validation", **options):
    options = {"image_size": SIZE, "decode": "each_epoch", **options}
    found = load_source(f"folder:{root}", split, **options)
    assert isinstance(found, Encoded)
    return found


def files(root, split="train"):
    return sorted((root / split).glob("*/*"), key=str)


def test_only_the_images_of_a_split_are_decoded(draw, monkeypatch):
    """Of 12 without splits: 2 for the test, 1 for validation and 9 for training."""
    folder, decoded = draw() / "train", []
    pixels = Encoded._pixels

    def counted(self, image, number, draw):
        decoded.append(number)
        return pixels(self, image, number, draw)

    monkeypatch.setattr(Encoded, "_pixels", counted)
    for split in ("train", "validation", "test"):
        examples = load_source(f"folder:{folder}", split, 1, image_size=SIZE)
        assert isinstance(examples, ImageSet)
        assert len(examples) == {"train": 9, "validation": 1, "test": 2}[split]
    assert sorted(decoded) == list(range(12))


def test_the_interface_is_that_of_images_in_memory(root):
    encoded = streamed(root)
    memory = load_source(f"folder:{root}", "train+validation", image_size=SIZE)
    assert isinstance(memory, ImageSet)
    everything = np.arange(12)
    for one in (encoded, encoded.take(everything)):
        images, labels = one.batch(everything)
        np.testing.assert_array_equal(images, memory.images)
        np.testing.assert_array_equal(labels, memory.labels)
        np.testing.assert_array_equal(one.labels, memory.labels)
        assert (len(one), one.num_classes) == (12, 2)
        assert one.class_names == memory.class_names
        assert one.image_shape == memory.image_shape == (SIZE, SIZE, 3)
    some = np.array([7, -1, 2])
    for chosen in (encoded, memory):
        images, labels = chosen.take([3, 9, 11]).batch(np.array([2, 0, -1]))
        np.testing.assert_array_equal(images[:2], memory.images[[11, 3]])
        assert labels[:2].tolist() == memory.labels[[11, 3]].tolist()
        assert (images.shape, images.dtype) == ((3, SIZE, SIZE, 3), np.uint8)
    images, labels = encoded.batch(some)
    assert (images[1] == 0).all()
    assert labels.dtype == np.int32


def test_training_and_validation_of_encoded_sets_are_joined(draw):
    draw("test", 4)
    draw("validation", 6)
    root = draw()
    both = streamed(root)
    memory = load_source(f"folder:{root}", "train+validation", image_size=SIZE)
    assert len(both) == 18
    np.testing.assert_array_equal(both.labels, memory.labels)
    images, labels = both.batch(np.arange(17, -1, -1))
    np.testing.assert_array_equal(images, memory.images[::-1])
    np.testing.assert_array_equal(labels, memory.labels[::-1])


def test_splits_are_the_same_whether_in_memory_or_not(draw):
    """Cut by their labels: a fifth for testing, and two for validation."""
    root = draw("", 20)
    for split in ("train", "validation", "test"):
        encoded = streamed(root, split, validation_examples=2)
        memory = load_source(
            f"folder:{root}", split, image_size=SIZE, validation_examples=2
        )
        images, labels = encoded.batch(np.arange(len(memory)))
        np.testing.assert_array_equal(images, memory.images)
        np.testing.assert_array_equal(labels, memory.labels)


def test_a_random_crop_is_the_box_cut_and_resized(draw):
    draw("test", 4, "png")
    root = draw(kind="png")
    encoded = streamed(root, crop_scale=SCALE, seed=3)
    epochs = np.arange(12) % 5
    images, _ = encoded.batch(np.arange(12), epochs)
    for i, path in enumerate(files(root)):
        picture = Image.open(path)
        box = random_box(*picture.size, uniforms(3, int(epochs[i]), i), SCALE)
        expected = picture.crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(images[i], np.asarray(expected))


def test_a_large_jpeg_is_decoded_at_a_fraction_and_the_crop_is_the_same(tmp_path):
    y, x = np.mgrid[:600, :900]
    image = np.stack([y // 4, x // 6, (x + y) // 10], 2) + 50
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(image.astype(np.uint8)).save(
            tmp_path / name / "0.jpg", quality=95
        )
    encoded = streamed(tmp_path, "train", crop_scale=SCALE, validation_examples=0)
    number = int(encoded.numbers[0])
    full = Image.open(tmp_path / "train" / "ab"[number] / "0.jpg")
    full.load()
    for epoch in range(20):
        box = random_box(900, 600, uniforms(0, epoch, number), SCALE)
        expected = full.crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        received, _ = encoded.batch(np.array([0]), np.array([epoch]))
        # The edges are within half a pixel of the reduced image, a quarter of one of
        # the result. Two of these differ by 10 at most, and JPEG has its own errors.
        difference = np.abs(received[0].astype(int) - np.asarray(expected))
        assert difference.max() <= 5


def test_the_box_is_of_the_upright_image(tmp_path, noise):
    """Orientation 6: the stored image has to be turned clockwise."""
    pixels = noise(40, 60, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / name / "0.png", exif=exif)
    encoded = streamed(tmp_path, "train", crop_scale=SCALE, validation_examples=0)
    number = int(encoded.numbers[0])
    upright = Image.fromarray(np.rot90(pixels, -1).copy())
    box = random_box(40, 60, uniforms(0, 2, number), SCALE)
    expected = upright.crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    received, _ = encoded.batch(np.array([0]), np.array([2]))
    np.testing.assert_array_equal(received[0], np.asarray(expected))


def test_without_epochs_the_center_is_cropped(root):
    images, _ = streamed(root, crop_scale=SCALE).batch(np.arange(12))
    expected, _ = streamed(root).batch(np.arange(12))
    np.testing.assert_array_equal(images, expected)


def test_pixels_do_not_depend_on_threads_or_batches(root):
    order, epochs = np.arange(12)[::-1], np.arange(12) % 3
    sets = [streamed(root, crop_scale=SCALE, threads=n) for n in (1, 4)]
    wanted, labels = sets[0].batch(order, epochs)
    for size in (12, 5, 1):
        for one in sets:
            for start in range(0, 12, size):
                part = slice(start, start + size)
                images, own = one.batch(order[part], epochs[part])
                np.testing.assert_array_equal(images, wanted[part])
                np.testing.assert_array_equal(own, labels[part])


def test_a_run_that_resumes_within_an_epoch_has_the_same_pixels(root):
    """12 examples in batches of 5: steps 2 and 4 are in two epochs each."""

    def input_of(steps):
        order, examples = Order(12, 5, 0), streamed(root, crop_scale=SCALE)
        for step in steps:
            yield items(order.indices(step)[None], examples, 1, order.draws(step)[None])

    whole = list(input_of(range(6)))
    for step, resumed in zip(range(3, 6), input_of(range(3, 6)), strict=True):
        for name, array in resumed.items():
            np.testing.assert_array_equal(array, whole[step][name])
    first = np.concatenate([x["images"][0] for x in whole])
    index = np.concatenate([x["index"][0] for x in whole])
    again = [np.flatnonzero(index == i) for i in range(12)]
    assert any((first[a[0]] != first[a[1]]).any() for a in again if len(a) > 1)


@pytest.mark.parametrize(("decode", "gigabytes"), [("once", 0), ("each_epoch", 99)])
def test_where_images_are_is_an_option(root, monkeypatch, decode, gigabytes):
    monkeypatch.setattr(bulk, "memory", lambda: gigabytes * 10**9 or 16 * SIZE**2 * 3)
    found = load_source(f"folder:{root}", "train", image_size=SIZE, decode=decode)
    assert isinstance(found, ImageSet if decode == "once" else Encoded)


@pytest.mark.parametrize("fits", [True, False])
def test_by_default_it_depends_on_the_memory(root, monkeypatch, fits):
    """16 examples of both splits, of which half of the memory has to hold all."""
    monkeypatch.setattr(bulk, "memory", lambda: 2 * 16 * SIZE**2 * 3 - (not fits))
    for split in ("train", "test"):
        found = load_source(f"folder:{root}", split, image_size=SIZE)
        assert isinstance(found, ImageSet) == fits


def test_random_crops_need_images_that_are_decoded_at_each_epoch(root):
    assert isinstance(
        load_source(f"folder:{root}", "train", image_size=SIZE, crop_scale=SCALE),
        Encoded,
    )
    with pytest.raises(
        InputError, match=r"random-resized-crop .* of digits are in mem"
    ):
        load_source("digits", "train", crop_scale=SCALE)


@pytest.fixture
def damaged(root):
    paths = files(root)
    for i in (4, 5, 11):
        paths[i].write_bytes(b"no image")
    return root


def test_a_damaged_image_stops_and_is_named(damaged):
    with pytest.raises(InputError, match=r"train/a/008\.jpg: cannot be read") as error:
        streamed(damaged).batch(np.arange(12))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_next_image_takes_the_place_of_a_damaged_one(damaged, caplog, threads):
    encoded = streamed(damaged, on_corrupt="skip", crop_scale=SCALE, threads=threads)
    epochs = np.arange(12)
    with caplog.at_level(logging.WARNING):
        images, labels = encoded.batch(np.arange(12), epochs)
        encoded.batch(np.arange(12), epochs)
    (message,) = caplog.messages  # once
    assert "3 of 12 images are damaged so far" in message
    assert "the first is" in message
    assert "train/a/008.jpg" in message
    sound = [0, 1, 2, 3, 6, 6, 6, 7, 8, 9, 10, 0]
    expected = encoded.batch(np.array(sound), epochs)
    np.testing.assert_array_equal(images, expected[0])
    np.testing.assert_array_equal(labels, expected[1])
    assert labels.tolist() == [int(i >= 6) for i in sound]


def test_damaged_images_are_left_out_of_a_set_that_is_decoded_once(damaged):
    with pytest.warns(UserWarning, match=r"3 of 12 images are left out.*a/008\.jpg"):
        found = load_source(
            f"folder:{damaged}", "train+validation", image_size=SIZE, on_corrupt="skip"
        )
    assert len(found) == 9


def test_a_set_without_a_sound_image_is_refused(root):
    for path in files(root):
        path.write_bytes(b"no image")
    encoded = streamed(root, on_corrupt="skip")
    with pytest.raises(InputError, match="none of 12 images can be read"):
        encoded.batch(np.arange(3))
    with pytest.raises(InputError, match=r"none of 12 images can be read: .*train/a/"):
        encoded.decoded()
