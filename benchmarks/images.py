"""The input of ImageNet: random-resized crops of JPEG files, compared with others.

The images are sections of scikit-learn's two photographs, 500 x 375 pixels in JPEG
files of about 110 kB, like those of ImageNet. Each is read, decoded, cropped and
resized to 224 x 224. A time is that of one image on one core, so that 1000 over the
milliseconds are images per second and core.

A step that only sleeps, for the time of decoding its batch over `LOAD`, shows the wait
for input: without any, its time is that of decoding over `LOAD`. The wait for the first
batch, which nothing can hide, is a thirty-second part of it.
"""

import contextlib
import dataclasses
import importlib.util
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.cases import Case, Options, Program, Table
from shiftjax.errors import InputError
from train.data import jpeg
from train.data.decoding import CropDecoder, Decoding
from train.data.encoded import Encoded
from train.data.folder import Files
from train.data.random_crop import random_box
from train.data.stream import Prefetch
from train.machine import cores

IMAGES = 512  # in a call
STEP = 16  # images in a step that is fed
LOAD = 0.9  # share of the rate of decoding that a step uses
SIZE = (500, 375)
BYTES = 110_000
IMAGE_SIZE = 224
SCALE = (0.08, 1.0)
FASTER: dict[str, jpeg.Decoder] = {"OpenCV": "opencv", "nvImageCodec": "nvimgcodec"}


def input_tables(options: Options, machine: dict[str, Any]) -> list[Table]:
    """Returns a table for one core and one for all cores."""
    images = options.batch_size or (8 if options.quick else IMAGES)
    other = "torchvision" if importlib.util.find_spec("torchvision") else "Pillow"
    found = []
    for count in sorted({1, len(cores())}):
        own = {"images": images, "cores": count}
        step = f"shiftjax, feeding a step at {LOAD} of its rate"
        cases = [
            Case("shiftjax", "jax", "benchmarks.images:shiftjax", own),
            Case(step, "jax", "benchmarks.images:feeding", own),
        ]
        for library, decoder in FASTER.items():
            with contextlib.suppress(InputError):
                jpeg.check_installed(decoder)
                name, chosen = f"shiftjax with {library}", {"decoder": decoder}
                program = "benchmarks.images:shiftjax"
                cases.append(Case(name, "jax", program, own | chosen))
        if machine.get("torch"):
            name = f"PyTorch's DataLoader with {other}"
            cases.append(Case(name, "torch", "benchmarks.images:data_loader", own))
        if importlib.util.find_spec("tensorflow"):
            name = "tf.data, which decodes the crop alone"
            cases.append(Case(name, "tensorflow", "benchmarks.images:tf_data", own))
        title = f"random-resized crop of a JPEG file, on each of {count} core(s)"
        found.append(Table(title, "shiftjax", tuple(cases), own))
    return found


def shiftjax(images: int, cores: int, decoder: CropDecoder = "pillow") -> Program:
    """Makes batches as in the trainer, cropped anew at each call, by threads."""
    if decoder != "pillow":
        jpeg.check_installed(decoder)
    examples, folder = _examples(images, cores, decoder)
    epoch = 0

    def call() -> Any:
        nonlocal epoch
        epoch += 1
        result = examples.batch(np.arange(images), np.full(images, epoch))
        return result, folder  # which exists as long as the program

    return Program(call, lambda _: None, steps=max(images // cores, 1))


def feeding(images: int, cores: int) -> Program:
    """Makes batches ahead of steps, as in the trainer, that only sleep."""
    examples, folder = _examples(images, cores, "pillow")
    batches = np.array_split(np.arange(images), -(-images // STEP))

    def decode(batch: np.ndarray) -> Any:
        return examples.batch(batch, np.zeros(len(batch), np.int32))

    decode(batches[0])
    start = time.perf_counter()
    for batch in batches:
        decode(batch)
    step = (time.perf_counter() - start) / len(batches) / LOAD

    def call() -> Any:
        for _ in Prefetch(decode, batches):
            time.sleep(step)
        return folder

    return Program(call, lambda _: None, steps=max(images // cores, 1))


def _examples(
    images: int, cores: int, decoder: CropDecoder
) -> tuple[Encoded, tempfile.TemporaryDirectory]:
    """Writes the images, into a folder that exists as long as it is referred to."""
    folder = tempfile.TemporaryDirectory()
    paths = _write_photographs(Path(folder.name), images)
    files = Files(paths, np.zeros(images, np.int32), ("photograph",))
    decoding = Decoding(
        image_size=IMAGE_SIZE, crop_scale=SCALE, crop_decoder=decoder, threads=cores
    )
    return Encoded.of(files, decoding), folder


def data_loader(images: int, cores: int) -> Program:
    """Makes batches in PyTorch, with a process per core."""
    from torch.utils.data import DataLoader  # pyright: ignore[reportMissingImports]

    folder = tempfile.TemporaryDirectory()
    several = {"multiprocessing_context": "forkserver", "persistent_workers": True}
    loader = DataLoader(
        Photographs(_write_photographs(Path(folder.name), images)),  # pyright: ignore
        batch_size=min(64, max(images // cores, 1)),
        num_workers=cores if cores > 1 else 0,
        **(several if cores > 1 else {}),
    )

    def call() -> Any:
        return list(loader), folder

    return Program(call, lambda _: None, steps=max(images // cores, 1))


def tf_data(images: int, cores: int) -> Program:
    """Makes batches in tf.data, with a thread per core."""
    import tensorflow as tf  # pyright: ignore

    folder = tempfile.TemporaryDirectory()

    def crop(path: Any) -> Any:
        encoded = tf.io.read_file(path)
        start, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(encoded),
            tf.zeros([1, 0, 4]),
            area_range=SCALE,
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        box = tf.concat([start[:2], size[:2]], 0)
        image = tf.io.decode_and_crop_jpeg(encoded, box, channels=3)
        return tf.cast(tf.image.resize(image, (IMAGE_SIZE, IMAGE_SIZE)), tf.uint8)

    paths = map(str, _write_photographs(Path(folder.name), images))
    data = tf.data.Dataset.from_tensor_slices(list(paths))
    data = data.map(crop, num_parallel_calls=cores).batch(min(64, images))
    threads = tf.data.Options()
    threads.threading.private_threadpool_size = cores
    data = data.with_options(threads)

    def call() -> Any:
        return [batch.numpy() for batch in data], folder

    return Program(call, lambda _: None, steps=max(images // cores, 1))


@dataclasses.dataclass
class Photographs:
    """A data set of PyTorch: files, cropped by torchvision or, without it, by Pillow.

    Attributes:
      paths: the files.
    """

    paths: list[Path]

    def __post_init__(self) -> None:
        self._crop = self._pillow
        if importlib.util.find_spec("torchvision"):
            from torchvision import transforms  # pyright: ignore[reportMissingImports]

            self._crop = transforms.RandomResizedCrop(IMAGE_SIZE, SCALE)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        with Image.open(self.paths[index]) as file:
            return np.asarray(self._crop(file.convert("RGB")))

    def _pillow(self, image: Image.Image) -> Image.Image:
        box = random_box(*image.size, np.random.random((10, 4)), SCALE)
        size = (IMAGE_SIZE, IMAGE_SIZE)
        return image.crop(box).resize(size, Image.Resampling.BILINEAR)


def _write_photographs(folder: Path, images: int) -> list[Path]:
    """Writes sections of two photographs as JPEG files of about `BYTES`."""
    from sklearn.datasets import load_sample_image

    photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    rng = np.random.default_rng(0)
    paths = []
    for i in range(images):
        height, width, _ = photographs[i % 2].shape
        left, top = rng.integers(0, width - SIZE[0]), rng.integers(0, height - SIZE[1])
        section = photographs[i % 2][top : top + SIZE[1], left : left + SIZE[0]]
        encoded = io.BytesIO()
        for quality in range(75, 100, 2):
            encoded = io.BytesIO()
            Image.fromarray(section).save(encoded, "JPEG", quality=quality)
            if encoded.tell() >= BYTES:
                break
        paths.append(folder / f"{i}.jpg")
        paths[-1].write_bytes(encoded.getvalue())
    return paths
