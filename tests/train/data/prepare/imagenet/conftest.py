"""Small archives with the names and the layout of ImageNet's, and what is in them."""

import dataclasses
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.data.prepare.imagenet import files

# Their labels are 0, 281 and 999 (https://www.image-net.org/challenges/LSVRC/2012).
CLASSES = {"n01440764": 0, "n02123045": 281, "n15075141": 999}
VALIDATION = ("n02123045", "n15075141", "n01440764", "n02123045")
TRAIN_NAME, VALIDATION_NAME = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def encoded(image, kind="JPEG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def tar(members):
    """Packs bytes as GNU tar does, with two blocks of zeros at the end."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@dataclasses.dataclass
class Made:
    """A small ImageNet: the bytes by class and file name, and where they are."""

    folder: Path
    train: dict
    validation: dict
    describe: object

    @property
    def archives(self):
        return [self.folder / TRAIN_NAME, self.folder / VALIDATION_NAME]

    def pack(self, **replaced):
        """Writes the archives, and makes their sizes and digests known."""
        inner = {f"{name}.tar": tar(images) for name, images in self.train.items()}
        contents = {"train": tar(inner), "validation": tar(self.validation)} | replaced
        self.folder.mkdir(exist_ok=True)
        for path, data in zip(self.archives, contents.values(), strict=True):
            path.write_bytes(data)
        self.describe(
            [len(data) for data in contents.values()],
            [hashlib.md5(data).hexdigest() for data in contents.values()],
        )
        return self

    def unpack(self, root, *, flat):
        """Writes the files as folders; flat as on Kaggle."""
        for name, images in self.train.items():
            (root / "train" / name).mkdir(parents=True)
            for file, data in images.items():
                (root / "train" / name / file).write_bytes(data)
        for (file, data), label in zip(
            self.validation.items(), VALIDATION, strict=True
        ):
            folder = root / "val" if flat else root / "val" / label
            folder.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)

    def labelled(self):
        """Lists file name, WordNet id and bytes of the images of each split."""
        train = [(f, c, d) for c, i in self.train.items() for f, d in i.items()]
        pairs = zip(self.validation.items(), VALIDATION, strict=True)
        return {"train": train, "validation": [(f, c, d) for (f, d), c in pairs]}


@pytest.fixture
def imagenet(tmp_path, monkeypatch, noise):
    """Makes seven training images of three classes and four validation images."""

    def photo():
        return encoded(Image.fromarray(noise(24, 20, 3)))

    train = {
        name: {f"{name}_{7 * i + 3}.JPEG": photo() for i in range(count)}
        for name, count in zip(CLASSES, (3, 1, 3), strict=True)
    }
    # Of one color, so that it is the same if it is decoded at a fraction of its size.
    ink = np.full((160, 200, 4), (250, 20, 10, 5), np.uint8)
    cmyk = Image.frombytes("CMYK", (200, 160), ink.tobytes())
    train["n02123045"]["n02123045_3.JPEG"] = encoded(cmyk)
    png = Image.fromarray(np.full((16, 16, 3), (9, 90, 200), np.uint8))
    train["n15075141"]["n15075141_3.JPEG"] = encoded(png, "PNG")
    validation = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": photo() for i in range(4)}

    def describe(sizes=(0, 0), digests=("", "")):
        replace = dataclasses.replace
        spec = files.ImageNet(
            replace(
                files.TRAIN,
                archive_bytes=sizes[0],
                md5=digests[0],
                examples=7,
                shards=3,
            ),
            replace(
                files.VALIDATION,
                archive_bytes=sizes[1],
                md5=digests[1],
                examples=4,
                shards=2,
            ),
            tuple(CLASSES),
            VALIDATION,
        )
        monkeypatch.setattr(files, "official", lambda: spec)

    describe()
    return Made(tmp_path / "archives", train, validation, describe)
