"""Preparing ImageNet: what is written, what is refused, what is left behind."""

import io
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image
from rich.console import Console

from shiftjax.errors import InputError, MissingFileError
from train.data import tfds_directory
from train.data.prepare import prepare
from train.data.prepare.imagenet import files
from train.data.prepare.imagenet import reader as reader_module
from train.data.sources import load_source

from .conftest import CLASSES, TRAIN_NAME, VALIDATION, VALIDATION_NAME, tar


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "sets"


@pytest.fixture
def run(data_dir):
    """Returns a function that prepares and gives what was printed."""

    def call(*source, **options):
        output = io.StringIO()
        path = prepare(
            "imagenet2012",
            source=[str(s) for s in source],
            data_dir=str(data_dir),
            console=Console(file=output, width=200),
            **options,
        )
        assert path == data_dir / "imagenet2012" / "5.1.0"
        return output.getvalue()

    return call


@pytest.mark.parametrize(
    "layout", ["archives", "folder", "classes", "flat", "kaggle", "parts"]
)
def test_tfds_reads_the_images_as_they_are(imagenet, run, data_dir, tmp_path, layout):
    made = imagenet.pack()
    source = {"archives": made.archives, "folder": [made.folder]}.get(layout)
    if source is None:
        source = [tmp_path / layout]
        inside = source[0] / ("ILSVRC/Data/CLS-LOC" if layout == "kaggle" else ".")
        made.unpack(inside, flat=layout != "classes")
        if layout == "parts":
            source = [source[0] / "val", source[0] / "train"]
    assert "imagenet2012 is prepared" in run(*source)
    builder = tfds.builder_from_directory(data_dir / "imagenet2012" / "5.1.0")
    names = builder.info.features["label"].names
    for split, expected in made.labelled().items():
        skip = {"image": tfds.decode.SkipDecoding()}
        records = builder.as_data_source(split=split, decoders=skip)
        if layout not in ("archives", "folder"):  # sorted by folder and name
            by_class = split == "train" or layout == "classes"
            expected = sorted(expected, key=lambda e, by=by_class: (by and e[1], e[0]))
        received = [
            (r["file_name"].decode(), names[r["label"]], r["image"]) for r in records
        ]
        assert received == expected
        for record, (_, name, _) in zip(records, expected, strict=True):
            assert record["label"] == CLASSES[name]


def test_the_identity_is_that_of_the_official_builder(imagenet, run, data_dir):
    run(*imagenet.pack().archives)
    path = data_dir / "imagenet2012" / "5.1.0"
    written = tfds.builder_from_directory(path).info
    theirs = tfds.builder_cls("imagenet2012")(data_dir=data_dir / "elsewhere").info
    assert written.full_name == theirs.full_name
    assert written.description == theirs.description
    assert written.citation == theirs.citation
    assert written.supervised_keys == theirs.supervised_keys
    assert repr(written.features) == repr(theirs.features)
    assert written.features["label"].names == theirs.features["label"].names
    assert {s.name: s.shard_lengths for s in written.splits.values()} == {
        "train": [2, 2, 3],
        "validation": [2, 2],
    }
    assert sorted(p.name for p in path.iterdir()) == [
        "dataset_info.json",
        "features.json",
        *(f"imagenet2012-train.array_record-0000{i}-of-00003" for i in range(3)),
        *(f"imagenet2012-validation.array_record-0000{i}-of-00002" for i in range(2)),
        "label.labels.txt",
    ]


def test_records_have_random_access(imagenet, run, data_dir):
    run(*imagenet.pack().archives)
    for file in (data_dir / "imagenet2012" / "5.1.0").glob("*array_record*"):
        found = array_record_module.ArrayRecordReader(str(file))
        assert "group_size:1," in found.writer_options_string()
        found.close()


def test_the_sizes_and_labels_are_the_published_ones():
    spec = files.official()
    assert [s.examples for s in spec.splits] == [1281167, len(spec.validation_labels)]
    assert sum(s.archive_bytes for s in spec.splits) == 154_642_401_280
    # tar writes records of 20 blocks.
    assert not any(s.archive_bytes % 10240 for s in spec.splits)
    assert list(spec.classes) == sorted(spec.classes)
    assert all(spec.classes[label] == name for name, label in CLASSES.items())
    counts = {name: spec.validation_labels.count(name) for name in spec.classes}
    assert set(counts.values()) == {50}


@pytest.mark.parametrize("decode", ["once", "each_epoch"])
def test_the_trainer_reads_it(imagenet, run, data_dir, decode):
    made = imagenet.pack()
    run(*made.archives)
    for split, part in {"train": "train", "test": "validation"}.items():
        examples = load_source(
            "tfds:imagenet2012",
            split,
            0,
            data_dir=str(data_dir),
            image_size=16,
            resize=20,
            decode=decode,
        )
        assert examples.num_classes == 1000
        assert list(examples.labels) == [
            CLASSES[name] for _, name, _ in made.labelled()[part]
        ]
        images = np.asarray(examples.batch(np.arange(len(examples)))[0])
        for image, (name, _, data) in zip(images, made.labelled()[part], strict=True):
            with Image.open(io.BytesIO(data)) as file:
                full = file.convert("RGB")
            short = min(full.size)
            size = tuple(20 * side // short for side in full.size)
            full = full.resize(size, Image.Resampling.BILINEAR)
            left, top = (size[0] - 16) // 2, (size[1] - 16) // 2
            box = (left, top, left + 16, top + 16)
            assert np.array_equal(image, np.asarray(full.crop(box))), name


def test_prepared_twice_is_written_once(imagenet, run, data_dir):
    made = imagenet.pack()
    run(*made.archives)
    before = {p: p.stat().st_mtime_ns for p in data_dir.rglob("*")}
    assert "already prepared" in run(*made.archives)
    assert {p: p.stat().st_mtime_ns for p in data_dir.rglob("*")} == before
    assert [p.name for p in data_dir.iterdir()] == ["imagenet2012"]


@pytest.mark.parametrize("after", [1, 9])
def test_a_stop_halfway_leaves_nothing(imagenet, run, data_dir, monkeypatch, after):
    made = imagenet.pack()
    label = reader_module._label
    calls = []

    def stop(*args):
        calls.append(args)
        if len(calls) == after:
            raise KeyboardInterrupt
        return label(*args)

    monkeypatch.setattr(reader_module, "_label", stop)
    with pytest.raises(KeyboardInterrupt):
        run(*made.archives)
    assert len(calls) == after
    assert not list(data_dir.iterdir())


def test_a_full_disk_is_said_before_anything_is_written(
    imagenet, run, data_dir, monkeypatch
):
    made = imagenet.pack()
    # Five record files are padded to 128 KiB each.
    needed = sum(path.stat().st_size for path in made.archives) + 5 * 131072
    usage = shutil.disk_usage(made.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    run(*made.archives)
    records = (data_dir / "imagenet2012" / "5.1.0").glob("*array_record*")
    assert sum(path.stat().st_size for path in records) <= needed
    shutil.rmtree(data_dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(InputError, match=r"MB are free on its disk and .* MB are need"):
        run(*made.archives)
    assert not list(data_dir.iterdir())


def test_the_space_for_imagenet_is_that_of_its_archives(tmp_path, monkeypatch):
    made = tmp_path / "archives"
    made.mkdir()
    for split in files.official().splits:
        with (made / split.archive).open("wb") as file:
            file.truncate(split.archive_bytes)  # takes no space
    monkeypatch.setattr(reader_module, "_check_classes", lambda *_: None)
    usage = shutil.disk_usage(made)._replace(free=154_700_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"154\.7 GB are free .* and 154\.8 GB"):
        prepare("imagenet2012", source=[made], data_dir=str(tmp_path / "sets"))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_digests_are_compared_on_request(imagenet, run, data_dir, split):
    made = imagenet.pack()
    path = made.archives[split == "validation"]
    data = bytearray(path.read_bytes())
    position = data.index(made.labelled()[split][-1][2]) + 300
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"{path.name}: md5 .* instead of the offic"):
        run(*made.archives, verify=True)
    assert not list(data_dir.iterdir())
    data[position] ^= 1
    path.write_bytes(data)
    run(*made.archives, verify=True)


def refused(run, data_dir, message, *source, error=InputError):
    with pytest.raises(error, match=message) as raised:
        run(*source)
    assert "\n" not in str(raised.value)
    assert not data_dir.exists() or not list(data_dir.iterdir())


def test_what_is_missing_is_named(imagenet, run, data_dir, tmp_path):
    made = imagenet.pack()
    at = "they are at https://image-net.org/download-images"
    for message, source in {
        f"--source names no files: missing {TRAIN_NAME} .* and {VALIDATION_NAME}": (),
        rf"missing {VALIDATION_NAME} \(or a folder val/\); {at}": made.archives[:1],
        rf"missing {TRAIN_NAME} \(or a folder train/\); {at}": made.archives[1:],
        "no/such: there is no such file": ["no/such"],
    }.items():
        refused(run, data_dir, message, *source, error=MissingFileError)
    (tmp_path / "train.tar").write_bytes(b"")
    message = "train.tar: not a file of imagenet2012 by its name; the official ones are"
    refused(run, data_dir, message, tmp_path / "train.tar")


@pytest.mark.parametrize("index", [0, 1])
def test_a_cut_archive_is_refused(imagenet, run, data_dir, index):
    made = imagenet.pack()
    path = made.archives[index]
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 512)
    message = f"{path.name}: {size - 512} bytes instead of the official {size}; .*cut"
    refused(run, data_dir, message, *made.archives)


def test_the_classes_of_the_archive_are_checked(imagenet, run, data_dir):
    made = imagenet.pack()
    inner = {f"{name}.tar": tar(images) for name, images in made.train.items()}
    del inner["n02123045.tar"]
    made.pack(train=tar(inner))
    message = f"{TRAIN_NAME}: 1 missing of 3 classes: n02123045"
    refused(run, data_dir, message, *made.archives)
    made.pack(train=tar(dict.fromkeys((*inner, "n02123045.tar", "n1.tar"), b"")))
    message = f"{TRAIN_NAME}: 1 unknown of 3 classes: n1"
    refused(run, data_dir, message, *made.archives)
    made.pack(train=b"no tar archive" * 512)
    message = f"{TRAIN_NAME}: not a tar archive, or damaged"
    refused(run, data_dir, message, *made.archives)


def damaged(made, split, needle, change):
    """Changes the bytes of an archive at a needle, and keeps its size."""
    path = made.archives[split == "validation"]
    data = bytearray(path.read_bytes())
    position = data.index(needle)
    change(data, position)
    path.write_bytes(data)


def zero(data, position):
    data[position : position + 100] = bytes(100)


def break_checksum(data, position):
    data[position + 110] ^= 1


def test_damaged_images_are_named(imagenet, run, data_dir):
    made = imagenet.pack()
    image = made.train["n15075141"]["n15075141_17.JPEG"]
    damaged(made, "train", image, zero)
    message = f"{TRAIN_NAME}: n15075141/n15075141_17.JPEG is not an image; the source"
    refused(run, data_dir, message, *made.archives)
    made.pack()
    name = "ILSVRC2012_val_00000003.JPEG"
    damaged(made, "validation", made.validation[name], zero)
    message = f"{VALIDATION_NAME}: {name} is not an image; the source is damaged"
    refused(run, data_dir, message, *made.archives)


def test_damaged_headers_are_named(imagenet, run, data_dir):
    made = imagenet.pack()
    damaged(made, "train", b"n15075141_17.JPEG", break_checksum)
    message = (
        rf"{TRAIN_NAME}: n15075141.tar: damaged at or after n15075141_10.JPEG \(bad "
        "header of the next file"
    )
    refused(run, data_dir, message, *made.archives)
    made.pack()
    damaged(made, "train", b"n15075141_3.JPEG", break_checksum)
    message = f"{TRAIN_NAME}: n15075141.tar: damaged at its start"
    refused(run, data_dir, message, *made.archives)
    made.pack()
    damaged(made, "validation", b"ILSVRC2012_val_00000002", break_checksum)
    message = f"{VALIDATION_NAME}: damaged at or after ILSVRC2012_val_00000001.JPEG"
    refused(run, data_dir, message, *made.archives)


def test_a_cut_archive_of_a_class_is_named(imagenet, run, data_dir):
    made = imagenet.pack()
    inner = {f"{name}.tar": tar(images) for name, images in made.train.items()}
    last = inner["n15075141.tar"].index(made.train["n15075141"]["n15075141_17.JPEG"])
    inner["n15075141.tar"] = inner["n15075141.tar"][: last + 100]
    made.pack(train=tar(inner))
    message = (
        f"{TRAIN_NAME}: n15075141.tar: damaged at or after n15075141_1[07].JPEG "
        r"\(unexpected end of data"
    )
    refused(run, data_dir, message, *made.archives)


def test_the_number_of_images_is_checked(imagenet, run, data_dir, tmp_path):
    made = imagenet.pack()
    extra = made.train["n01440764"]["n01440764_3.JPEG"]
    made.train["n01440764"]["n01440764_99.JPEG"] = extra
    made.pack()
    message = "8 images instead of the 7 of the train split"
    refused(run, data_dir, f"{TRAIN_NAME}: {message}", *made.archives)
    made.unpack(tmp_path / "folder", flat=True)
    refused(run, data_dir, f"train: {message}", tmp_path / "folder")
    del made.validation["ILSVRC2012_val_00000002.JPEG"]
    del made.train["n01440764"]["n01440764_99.JPEG"]
    made.pack()
    message = f"{VALIDATION_NAME}: 3 images instead of the 4 of the validation split"
    refused(run, data_dir, message, *made.archives)


def test_validation_images_in_other_folders_are_refused(
    imagenet, run, data_dir, tmp_path
):
    made = imagenet.pack()
    made.unpack(tmp_path / "folder", flat=False)
    name = "ILSVRC2012_val_00000004.JPEG"
    val = tmp_path / "folder" / "val"
    (val / VALIDATION[3] / name).rename(val / VALIDATION[2] / name)
    message = f"val: n01440764/{name} is in the wrong folder, its class is n02123045"
    refused(run, data_dir, message, tmp_path / "folder")
    (val / VALIDATION[2] / name).rename(val / VALIDATION[3] / "cat.JPEG")
    message = "val: n02123045/cat.JPEG is not a validation image by its name"
    refused(run, data_dir, message, tmp_path / "folder")


def test_a_training_image_outside_of_a_class_is_refused(
    imagenet, run, data_dir, tmp_path
):
    made = imagenet.pack()
    made.unpack(tmp_path / "folder", flat=False)
    train = tmp_path / "folder" / "train"
    (train / "n01440764" / "n01440764_3.JPEG").rename(train / "n01440764_3.JPEG")
    message = "train: n01440764_3.JPEG is in no folder of a class"
    refused(run, data_dir, message, tmp_path / "folder")


def test_a_folder_without_read_permission_is_named(imagenet, run, data_dir, tmp_path):
    made = imagenet.pack()
    made.unpack(tmp_path / "folder", flat=False)
    name = "n01440764_3.JPEG"
    (tmp_path / "folder" / "train" / "n01440764" / name).unlink()
    (tmp_path / "folder" / "train" / "n01440764" / name).symlink_to("nowhere")
    refused(run, data_dir, f"{name} cannot be read", tmp_path / "folder")


def test_a_missing_data_set_names_the_command(data_dir):
    message = "`python -m train prepare imagenet2012 --source FOLDER` with the folder"
    with pytest.raises(MissingFileError, match=message):
        tfds_directory.find_directory("imagenet2012", str(data_dir))
