"""Small data sets in the official forms, written by other means than they are read."""

import dataclasses
import hashlib
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.registered import skip_registration

from train.data.prepare.cifar import files

# fmt: off
CIFAR10_NAMES = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
    "truck",
]
# fmt: on


@pytest.fixture(autouse=True)
def _own_directories(tmp_path, monkeypatch):
    """Keeps the tests out of the user's cache and data."""
    monkeypatch.setenv("SHIFTJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "default"))


@pytest.fixture
def noise():
    """Returns a function that makes different random pictures at every call."""
    rng = np.random.default_rng(0)
    return lambda *shape: rng.integers(0, 256, shape, np.uint8)


@pytest.fixture
def write_tfds(tmp_path):
    """Returns a function that writes a TFDS data set with the given examples."""

    def write(splits, *, name="tiny", keys=("image", "label"), config=None, **options):
        shape = options.pop("shape", (None, None, 3))
        classes = options.pop("classes", 3)
        features = options.pop("features", None) or {
            keys[0]: tfds.features.Image(shape=shape),
            keys[1]: tfds.features.ClassLabel(
                names=[f"class{i}" for i in range(classes)]
            ),
        }
        config = config and tfds.core.BuilderConfig(name=config, version="1.0.0")

        with skip_registration():

            class Tiny(tfds.core.GeneratorBasedBuilder):
                VERSION = tfds.core.Version(options.pop("version", "1.0.0"))
                BUILDER_CONFIGS = [config] if config else []
                code_path = None

                def _info(self):
                    return tfds.core.DatasetInfo(
                        builder=self,
                        features=tfds.features.FeaturesDict(features),
                        supervised_keys=keys,
                    )

                def _split_generators(self, dl_manager):
                    return {key: self._records(value) for key, value in splits.items()}

                def _records(self, examples):
                    for i, (image, label) in enumerate(examples):
                        if isinstance(image, np.ndarray):
                            image = Image.fromarray(image)
                        yield i, {keys[0]: image, keys[1]: label}

                def _generate_examples(self):
                    """Is abstract in TFDS and not used here."""

        Tiny.name = name
        builder = Tiny(
            data_dir=tmp_path / "sets", config=config, file_format="array_record"
        )
        builder.download_and_prepare(download_dir=tmp_path / "downloads")
        return str(tmp_path / "sets")

    return write


def python2_pickle(value):
    """Pickles as Python 2 did with protocol 2, opcode by opcode."""
    return pickle.PROTO + b"\x02" + _opcodes(value) + pickle.STOP


def _opcodes(value):
    if isinstance(value, dict):
        items = b"".join(_opcodes(k) + _opcodes(v) for k, v in value.items())
        return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    if isinstance(value, list):
        items = b"".join(map(_opcodes, value))
        return pickle.EMPTY_LIST + pickle.MARK + items + pickle.APPENDS
    if isinstance(value, int):
        return pickle.BININT + struct.pack("<i", value)
    if isinstance(value, str | bytes):
        text = value.encode() if isinstance(value, str) else value
        return pickle.BINSTRING + struct.pack("<i", len(text)) + text
    shape = b"".join(map(_opcodes, value.shape))
    return (  # numpy 1.x's ndarray.__reduce__
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01" + shape + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + _opcodes(value.tobytes())
        + b"tb"
    )


@dataclasses.dataclass
class Official:
    """Small CIFAR files with the official names and layout, and what is in them."""

    name: str
    images: dict
    labels: dict
    python: Path
    binary: Path


@pytest.fixture
def official(tmp_path, monkeypatch, noise):
    """Returns a function that writes CIFAR files and makes their digests known."""

    def write(name="cifar10", batch=12):
        spec = files.DATA_SETS[name]
        if name == "cifar10":
            names = {"label": CIFAR10_NAMES}
        else:
            names = {
                "coarse_label": [f"coarse{i}" for i in range(20)],
                "label": [f"fine{i}" for i in range(100)],
            }
        made = Official(
            name,
            {},
            {},
            tmp_path / "official" / spec.python.folder,
            tmp_path / "official" / spec.binary.folder,
        )
        made.python.mkdir(parents=True)
        made.binary.mkdir()
        for part in ("train", "test"):
            pairs = zip(
                getattr(spec.python, part), getattr(spec.binary, part), strict=True
            )
            images, labels = [], {key: [] for key in names}
            for python, binary in pairs:
                images.append(noise(batch, 32, 32, 3))
                planes = images[-1].transpose(0, 3, 1, 2).reshape(batch, 3072)
                new = {k: (noise(batch) % len(v)).tolist() for k, v in names.items()}
                for key in names:
                    labels[key] += new[key]
                contents = {"batch_label": "some batch", "data": planes}
                contents |= {spec.pickled_keys[key][0]: new[key] for key in names}
                contents["filenames"] = [f"{i}.png" for i in range(batch)]
                (made.python / python).write_bytes(python2_pickle(contents))
                columns = [np.array(new[key], np.uint8)[:, None] for key in names]
                rows = np.concatenate([*columns, planes], axis=1)
                (made.binary / binary).write_bytes(rows.tobytes())
            made.images[part], made.labels[part] = np.concatenate(images), labels
        meta = {spec.pickled_keys[key][1]: value for key, value in names.items()}
        (made.python / spec.python.names[0]).write_bytes(python2_pickle(meta))
        for file, value in zip(spec.binary.names, names.values(), strict=True):
            (made.binary / file).write_text("\n".join(value) + "\n\n")
        digests = {
            key: hashlib.md5("\n".join(value).encode()).hexdigest()
            for key, value in names.items()
        }
        spec = dataclasses.replace(
            spec,
            names_digest=digests,
            python=dataclasses.replace(spec.python, md5=md5s(spec.python, made.python)),
            binary=dataclasses.replace(spec.binary, md5=md5s(spec.binary, made.binary)),
        )
        monkeypatch.setitem(files.DATA_SETS, name, spec)
        return made

    return write


def md5s(layout, folder):
    """Computes the digests of the files whose digests are published."""
    return {
        file: hashlib.md5((folder / file).read_bytes()).hexdigest()
        for file in layout.md5
    }


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """Returns a function that packs made files as the official archive."""

    def write(made, layout, prefix=""):
        spec = files.DATA_SETS[made.name]
        part = getattr(spec, layout)
        path = tmp_path / "packed" / part.archive
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w:gz") as archive:
            archive.add(getattr(made, layout), prefix + part.folder)
        algorithm = part.archive_digest.split(":")[0]
        digest = hashlib.new(algorithm, path.read_bytes()).hexdigest()
        part = dataclasses.replace(
            part,
            archive_bytes=path.stat().st_size,
            archive_digest=f"{algorithm}:{digest}",
        )
        spec = dataclasses.replace(spec, **{layout: part})
        monkeypatch.setitem(files.DATA_SETS, made.name, spec)
        return path

    return write
