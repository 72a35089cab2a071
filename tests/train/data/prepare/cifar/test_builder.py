"""Preparing CIFAR: what is written, what is refused, what is left behind."""

import hashlib
import io
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from tensorflow_datasets.image_classification import cifar

from shiftjax.errors import InputError, UnknownNameError
from train.data.prepare import prepare
from train.data.prepare.cifar import builder as prepare_module
from train.data.prepare.cifar import files
from train.data.sources import load_source

SHARED = Path(__file__).parents[6] / "shared" / "data"


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "sets"


@pytest.fixture
def run(data_dir):
    """Returns a function that prepares and gives what was printed."""

    def call(name, *source):
        output = io.StringIO()
        path = prepare(
            name,
            source=[str(s) for s in source],
            data_dir=str(data_dir),
            console=Console(file=output, width=200),
        )
        assert path == data_dir / name / "3.0.2"
        return output.getvalue()

    return call


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("layout", ["python", "binary"])
def test_what_tfds_reads_is_what_the_files_hold(official, run, data_dir, name, layout):
    made = official(name)
    assert f"{name} is prepared" in run(name, getattr(made, layout))
    for part in ("train", "test"):
        records = list(tfds.data_source(name, data_dir=data_dir, split=part))
        assert len(records) == len(made.images[part])
        assert len({record["id"] for record in records}) == len(records)
        for record in records:
            prefix, _, number = record["id"].decode().partition("_")
            assert (prefix, len(number)) == (part, 5)
            assert np.array_equal(record["image"], made.images[part][int(number)])
            for key, values in made.labels[part].items():
                assert record[key] == values[int(number)]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_identity_is_that_of_the_official_builder(official, run, data_dir, name):
    run(name, official(name).python)
    written = tfds.builder_from_directory(data_dir / name / "3.0.2").info
    expected = {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}[name]
    theirs = expected(data_dir=data_dir / "elsewhere").info
    assert written.full_name == theirs.full_name
    assert written.description == theirs.description
    assert written.citation == theirs.citation
    assert written.supervised_keys == theirs.supervised_keys
    assert repr(written.features) == repr(theirs.features)
    label_files = sorted(p.name for p in (data_dir / name / "3.0.2").glob("*.txt"))
    assert label_files[-1] == "label.labels.txt"
    assert load_source(f"tfds:{name}", "test", data_dir=str(data_dir)).num_classes == (
        10 if name == "cifar10" else 100
    )


def test_the_official_builder_keeps_its_place():
    assert tfds.builder_cls("cifar10") is cifar.Cifar10


def test_an_archive_will_do(official, pack, run, data_dir):
    made = official()
    run("cifar10", pack(made, "python"))
    received = load_source("tfds:cifar10", "train+validation", data_dir=str(data_dir))
    assert len(received) == len(made.images["train"])


def test_prepared_twice_is_written_once(official, run, data_dir):
    made = official()
    run("cifar10", made.python)
    before = {p: p.stat().st_mtime_ns for p in data_dir.rglob("*")}
    assert "already prepared" in run("cifar10", made.python)
    assert {p: p.stat().st_mtime_ns for p in data_dir.rglob("*")} == before
    assert [p.name for p in data_dir.iterdir()] == ["cifar10"]


def test_an_unknown_name_is_refused(run):
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10"):
        run("cifar1O")


def test_a_wrong_file_is_refused_and_nothing_is_left(official, run, data_dir):
    made = official()
    (made.python / "test_batch").write_bytes(b"something else")
    with pytest.raises(InputError, match="test_batch: md5"):
        run("cifar10", made.python)
    assert not list(data_dir.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_stop_halfway_leaves_nothing(official, run, data_dir, monkeypatch, error):
    made = official()
    encode = Image.fromarray
    calls = []

    def fail(image):
        calls.append(image)
        if len(calls) == 65:  # after the training split
            raise error
        return encode(image)

    monkeypatch.setattr(Image, "fromarray", fail)
    with pytest.raises(type(error)):
        run("cifar10", made.python)
    assert not list(data_dir.iterdir())


def test_a_full_disk_is_said_before_anything_is_done(official, run, monkeypatch):
    made = official()
    usage = shutil.disk_usage(made.python)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="10 MB are free on its disk and 350 MB are"):
        run("cifar10", made.python)


def test_a_folder_that_cannot_be_made(official, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"data_dir .*file/sets cannot be written"):
        prepare("cifar10", data_dir=str(tmp_path / "file" / "sets"))


def test_another_format_in_the_place_is_not_touched(official, run, data_dir):
    made = official()
    run("cifar10", made.python)
    path = data_dir / "cifar10" / "3.0.2" / "dataset_info.json"
    info = json.loads(path.read_text()) | {"fileFormat": "tfrecord"}
    path.write_text(json.dumps(info))
    with pytest.raises(InputError, match="is written as tfrecord"):
        run("cifar10", made.python)
    path.unlink()
    with pytest.raises(InputError, match="not a whole TFDS data set"):
        run("cifar10", made.python)


def test_without_a_source_the_archive_is_downloaded(
    official, pack, run, data_dir, monkeypatch
):
    archive = pack(official(), "binary")
    served = []

    def download(url, path, size, *, verify, console):
        served.append((url, size))
        path.parent.mkdir(parents=True)
        shutil.copy(archive, path)
        verify(path)

    monkeypatch.setattr(prepare_module, "download", download)
    run("cifar10")
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert served == [(url, archive.stat().st_size)]
    assert not list((data_dir / "downloads").iterdir())


def test_two_at_once_download_once(official, pack, run, data_dir, monkeypatch):
    archive = pack(official(), "binary")
    served = []

    def download(url, path, size, *, verify, console):
        served.append(url)
        time.sleep(0.3)  # until the other one downloads too, or waits
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(archive, path)

    monkeypatch.setattr(prepare_module, "download", download)
    with ThreadPoolExecutor(2) as pool:  # files are locked for each opening of them
        texts = list(pool.map(run, ["cifar10", "cifar10"]))
    assert len(served) == 1
    assert all("cifar10 is prepared" in text for text in texts)
    waited = ["waiting: another process prepares cifar10" in text for text in texts]
    assert sorted(waited) == [False, True]
    assert not list((data_dir / "downloads").iterdir())


def test_an_archive_in_the_downloads_is_used_and_kept(official, pack, run, data_dir):
    archive = pack(official(), "binary")
    (data_dir / "downloads").mkdir(parents=True)
    kept = shutil.copy(archive, data_dir / "downloads")
    run("cifar10")
    assert Path(kept).exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_published_digests_are_those_of_the_real_pictures(name):
    """The test split and the names; the training split would take half a minute."""
    pytest.importorskip("pillow_jxl", reason="the real pictures are JPEG XL")
    spec = files.DATA_SETS[name]
    with Image.open(SHARED / name / "test.jxl") as file:
        mosaic = np.asarray(file).reshape(100, 32, 100, 32, 3)
    planes = mosaic.transpose(0, 2, 4, 1, 3).reshape(10000, 3072)
    stored = np.load(SHARED / name / "labels.npz")
    columns = [stored["test_labels"]]
    names = {"label": stored["class_names"]}
    if name == "cifar100":
        columns.insert(0, stored["test_coarse_labels"])
        names["coarse_label"] = stored["coarse_names"]
    rows = np.concatenate([np.stack(columns, axis=1), planes], axis=1)
    expected = spec.binary.md5[spec.binary.test[0]]
    assert hashlib.md5(rows.tobytes()).hexdigest() == expected
    for key, values in names.items():
        text = "\n".join(map(str, values)).encode()
        assert hashlib.md5(text).hexdigest() == spec.names_digest[key]
