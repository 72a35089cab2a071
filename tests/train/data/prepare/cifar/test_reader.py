"""The official files: found, verified, decoded; nothing else gets in."""

import os
import pickle
import tarfile

import numpy as np
import pytest

from shiftjax.errors import InputError, MissingFileError
from train.data.prepare.cifar import reader
from train.data.prepare.cifar.files import DATA_SETS
from train.data.prepare.cifar.pickles import load_pickle


def read(name, *source):
    return reader.read_cifar(DATA_SETS[name], source)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("layout", ["python", "binary"])
def test_both_layouts_are_read(official, name, layout):
    made = official(name)
    contents = read(name, getattr(made, layout))
    for part in ("train", "test"):
        received = getattr(contents, part)
        assert np.array_equal(received.images, made.images[part])
        assert {k: v.tolist() for k, v in received.labels.items()} == made.labels[part]
    first, count = {"cifar10": ("airplane", 10), "cifar100": ("fine0", 100)}[name]
    assert contents.names["label"][0] == first
    assert len(contents.names["label"]) == count


def test_the_folder_above_and_a_list_of_files_will_do(official):
    made = official()
    above = read("cifar10", made.python.parent)
    listed = read("cifar10", *made.binary.iterdir())
    assert np.array_equal(above.train.images, made.images["train"])
    assert np.array_equal(listed.train.images, made.images["train"])


def test_a_missing_file_is_named(official):
    made = official()
    (made.python / "data_batch_3").unlink()
    with pytest.raises(MissingFileError, match="missing data_batch_3 "):
        read("cifar10", made.python)
    with pytest.raises(MissingFileError, match="nowhere: there is no such"):
        read("cifar10", made.python / "nowhere")


def test_a_file_of_another_name_is_refused(official):
    other = official().python / "notes.txt"
    other.write_text("hello")
    with pytest.raises(InputError, match=r"notes\.txt: not a file of cifar10"):
        read("cifar10", other)


@pytest.mark.parametrize(
    ("layout", "file"), [("python", "data_batch_2"), ("binary", "test_batch.bin")]
)
def test_one_changed_byte_is_refused(official, layout, file):
    made = official()
    path = getattr(made, layout) / file
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"{file}: md5 \w{{32}} instead of the"):
        read("cifar10", getattr(made, layout))


def test_changed_class_names_are_refused(official):
    made = official()
    names = made.binary / "batches.meta.txt"
    names.write_text(names.read_text().replace("cat", "dog"))
    with pytest.raises(InputError, match=r"batches\.meta\.txt: the class names"):
        read("cifar10", made.binary)


@pytest.mark.parametrize("layout", ["python", "binary"])
def test_archives_are_read(official, pack, layout):
    made = official()
    archive = pack(made, layout)
    for source in (archive, archive.parent):
        contents = read("cifar10", source)
        assert np.array_equal(contents.test.images, made.images["test"])


def test_an_archive_cut_short_or_changed_is_refused(official, pack):
    archive = pack(official(), "binary")
    data = archive.read_bytes()
    archive.write_bytes(data[:-1])
    with pytest.raises(
        InputError, match=f"{len(data) - 1} bytes instead of the official"
    ):
        read("cifar10", archive)
    archive.write_bytes(data[:-1] + b"?")
    with pytest.raises(InputError, match=r"sha256 \w{64} instead of the official"):
        read("cifar10", archive)


def test_an_archive_without_a_file(official, pack):
    made = official()
    (made.binary / "data_batch_4.bin").unlink()
    with pytest.raises(
        MissingFileError, match=r"data_batch_4\.bin is not in the archive"
    ):
        read("cifar10", pack(made, "binary"))


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    target = tmp_path / "proof"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {target}",)

    for protocol in (0, 2, 4):
        with pytest.raises(
            InputError, match=r"asks for \w+\.system.*none of its code has been run"
        ):
            load_pickle(pickle.dumps({"data": Evil()}, protocol))
    assert not target.exists()


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", pickle.dumps([1, 2]), b"\x80\x02}q\x01(U\x04data", b"\x80\x02]."],
)
def test_what_is_no_pickle_of_cifar_is_refused(data):
    with pytest.raises(InputError, match="not a CIFAR pickle"):
        load_pickle(data)


def test_an_array_of_objects_is_refused():
    """Its elements would be rebuilt by NumPy, out of sight."""
    data = (
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"K\x00\x85U\x01b\x87R(K\x01K\x01\x85cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R"
        b"\x89]tbs."
    )
    with pytest.raises(InputError, match="dtype b'O8'"):
        load_pickle(data)


def test_members_of_an_archive_never_reach_the_disk(official, pack, tmp_path):
    made = official()
    archive = pack(made, "binary", prefix="../../escape/")
    read("cifar10", archive)
    assert not list(tmp_path.parent.rglob("escape"))
    assert tarfile.is_tarfile(archive)
