"""Tar files of WebDataset: samples, splits and classes, and what is refused."""

import functools
import gzip
import io
import json
import tarfile

import numpy as np
import pytest

from shiftjax.errors import InputError, MissingFileError
from tests.train.data.pngs import assert_any_order, gray_values, numbered, png
from train.data.encoded import Encoded
from train.data.image_set import ImageSet
from train.data.shards import by_split
from train.data.sources import load_source


def pack(path, members, **options):
    """Writes a tar file of names and contents, in this order."""
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(numbers, classes=2):
    for i in numbers:
        yield f"{i:04d}.png", numbered(i)
        yield f"{i:04d}.cls", b"%d\n" % (i % classes)


def read(path, split="train", **options):
    options = {"image_size": 8, "validation_examples": 0, **options}
    return load_source(f"tar:{path}", split, **options)


@pytest.fixture
def folder(tmp_path):
    """Four shards of three splits, with the number of a sample as its gray value."""
    pack(tmp_path / "train-000.tar", samples(range(5)))
    pack(tmp_path / "train-001.tar", samples(range(5, 12)))
    pack(tmp_path / "val.tar", samples(range(20, 23)))
    pack(tmp_path / "test.tar", samples(range(30, 34)))
    return tmp_path


@pytest.mark.parametrize("decode", ["once", "each_epoch"])
def test_splits_are_those_of_the_names(folder, decode):
    expected = {
        "train": [*range(12)],
        "validation": [20, 21, 22],
        "test": [*range(30, 34)],
    }
    for split, wanted in expected.items():
        found = read(folder, split, decode=decode)
        assert isinstance(found, ImageSet if decode == "once" else Encoded)
        assert gray_values(found) == wanted
        assert found.labels.tolist() == [i % 2 for i in wanted]
        assert found.class_names == ("0", "1")
    both = read(folder, "train+validation", decode=decode)
    assert gray_values(both) == [*range(12), 20, 21, 22]


def test_samples_are_read_in_any_order_and_on_any_number_of_threads(folder):
    assert_any_order(functools.partial(read, folder, decode="each_epoch"))


def test_a_file_alone_and_a_folder_of_other_names_are_for_training(folder, tmp_path):
    assert gray_values(read(folder / "test.tar", cut_test=False)) == [30, 31, 32, 33]
    other = tmp_path / "other"
    other.mkdir()
    for name, start in (("b.tar", 10), ("a.tar", 0)):
        pack(other / name, samples(range(start, start + 10)))
    parts = [read(other, split, decode="each_epoch") for split in ("train", "test")]
    assert [len(part) for part in parts] == [16, 4]
    assert gray_values(parts[0]) == sorted(gray_values(parts[0]))
    assert sorted(gray_values(parts[0]) + gray_values(parts[1])) == list(range(20))


@pytest.mark.parametrize("options", [{}, {"channels": 1}, {"resize": 12}])
def test_batches_are_those_of_a_folder_of_the_same_files(tmp_path, noise, options):
    members = []
    for i in range(12):
        content = png(noise(10 + i, 20 - i, 3))
        file = tmp_path / "files" / "train" / "ab"[i // 6] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        members += [
            (f"./deep/{i:02d}.PNG", content),
            (f"./deep/{i:02d}.cls", b"01"[i // 6 :][:1]),
        ]
    pack(tmp_path / "all.tar", members)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    options = {
        "image_size": 8,
        "decode": "each_epoch",
        "crop_scale": (0.3, 1.0),
    } | options
    ours = read(tmp_path / "all.tar", **options)
    theirs = load_source(
        f"folder:{tmp_path}/files", "train", validation_examples=0, **options
    )
    assert ours.class_names == theirs.class_names
    assert len(ours) == 10
    for epoch in (0, 1):
        given = np.array([9, 3, -1, 5]), np.full(4, epoch)
        for one, other in zip(ours.batch(*given), theirs.batch(*given), strict=True):
            np.testing.assert_array_equal(one[[0, 1, 3]], other[[0, 1, 3]])


def test_labels_in_json_and_members_of_other_kinds(tmp_path):
    label = {"label": 1, "caption": "a cat"}
    members = [
        ("0.json", json.dumps(label).encode()),
        ("0.png", numbered(0)),
        ("0.seg.png", b"of no concern"),
        ("1.txt", b"a dog"),
        ("1.jpg", numbered(1)),
        ("1.cls", b"0"),
        ("1.json", b'{"label": 5}'),
        ("about.json", b'{"license": "none"}'),
        ("._1.jpg", b"of macOS"),
    ]
    file = pack(tmp_path / "set.tar", members)
    found = read(file, cut_test=False)
    assert gray_values(found) == [0, 1]
    assert found.labels.tolist() == [1, 0]


def test_names_longer_than_a_header_are_read(tmp_path):
    for number, kind in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        long = "x" * 150
        members = [(f"{long}.png", numbered(7)), (f"{long}.cls", b"0")]
        file = pack(tmp_path / f"{number}.tar", members, format=kind)
        assert gray_values(read(file, cut_test=False)) == [7]


PNG = numbered(3)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "set.tar has no samples, images KEY.jpg with KEY.cls"),
        ([("a.txt", b"text")], "set.tar has no samples"),
        ([("a.png", PNG)], "sample 'a' has no label, an integer in a.cls or as "),
        ([("a.png", PNG), ("a.json", b"{}")], "sample 'a' has no label"),
        ([("a.png", PNG), ("a.json", b'{"label": "1"}')], "sample 'a' has no label"),
        ([("a.png", PNG), ("a.json", b'{"label": true}')], "sample 'a' has no label"),
        ([("a.cls", b"1")], "sample 'a' has no image"),
        ([("a.json", b'{"label": 1}')], "sample 'a' has no image"),
        ([("a.png", PNG), ("a.jpg", PNG)], "the sample 'a' twice, again in a.jpg"),
        ([*samples([1]), *samples([1])], "the sample '0001' twice, again in 0001.png"),
        ([("a.png", PNG), ("a.cls", b"cat")], "a.cls has b'cat', which is no integer"),
        ([("a.png", PNG), ("a.json", b"{")], "a.json is no JSON"),
        ([("a.png", PNG), ("a.cls", b"-1")], "has the label -1: labels count from 0"),
        (
            [("a.png", PNG), ("a.cls", b"9")],
            "has the label 9, and 2 classes have names",
        ),
    ],
)
def test_samples_that_are_not_whole_are_named(tmp_path, members, message):
    file = pack(tmp_path / "set.tar", members)
    (tmp_path / "classnames.txt").write_text("cat\ndog\n\n")
    with pytest.raises(InputError) as error:
        read(file)
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cut_file_is_named_with_its_sample(tmp_path):
    """Cut at any place: within an image, a header, or between two members."""
    file = pack(tmp_path / "set.tar", samples(range(3)))
    whole = file.read_bytes()
    with tarfile.open(file) as tar:
        second = tar.getmember("0001.png")
        header, start = second.offset, second.offset_data
    cuts = {start + 10: "within 0001.png", header: "after 0000.cls"}
    cuts |= {header + 100: "after 0000.cls", start: "within 0001.png"}
    for size, message in cuts.items():
        file.write_bytes(whole[:size])
        with pytest.raises(InputError, match=rf"set\.tar is cut.* {message}"):
            read(file)
    file.write_bytes(whole[:header] + b"\xff" * 512 + whole[start:])
    with pytest.raises(InputError, match=r"set\.tar is cut or damaged after 0000\.cls"):
        read(file)
    file.write_bytes(whole[:100])
    with pytest.raises(InputError, match=r"set\.tar is not a whole tar file"):
        read(file)


def test_a_damaged_image_is_named_or_skipped(tmp_path):
    members = list(samples(range(4)))
    members[2] = ("0001.png", b"no image")
    file = pack(tmp_path / "set.tar", members)
    options = {"decode": "each_epoch", "cut_test": False}
    with pytest.raises(InputError, match=r"set\.tar: sample '0001': .* be read as"):
        gray_values(read(file, **options))
    assert gray_values(read(file, **options, on_corrupt="skip")) == [0, 2, 2, 3]


def test_what_is_not_there_or_compressed(tmp_path):
    with pytest.raises(
        MissingFileError, match=r"tar:no/set\.tar: there is no such file"
    ):
        read("no/set.tar")
    with pytest.raises(InputError, match=r"has no files that end in \.tar"):
        read(tmp_path)
    file = pack(tmp_path / "set.tar", samples(range(3)))
    for name in ("set.tar", "set.tar.gz"):
        packed = gzip.compress(file.read_bytes())
        file.unlink()
        file = tmp_path / name
        file.write_bytes(packed)
        message = f"{file} is compressed.* unpack it with gunzip < {file} > NEW.tar"
        for path in (file, tmp_path):
            with pytest.raises(InputError, match=message):
                read(path)


def test_what_cannot_be_read_is_named(tmp_path):
    file = pack(tmp_path / "set.tar", samples(range(3)))
    names = tmp_path / "classnames.txt"
    names.write_bytes("caf\xe9\nth\xe9".encode("latin-1"))
    with pytest.raises(InputError, match=rf"^{names} is not a text file in UTF-8$"):
        read(file)
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(
        InputError, match=r"folder\.tar cannot be read: Is a directory$"
    ):
        read(tmp_path)


def test_a_folder_without_permission_is_named(tmp_path, refuse):
    refuse("iterdir")
    with pytest.raises(InputError, match=f"^{tmp_path} cannot be read: Permission de"):
        read(tmp_path)


def test_a_file_that_changes_is_indexed_again(tmp_path):
    file = pack(tmp_path / "set.tar", samples(range(3)))
    assert len(read(file, cut_test=False)) == 3
    pack(file, samples(range(5)))
    assert len(read(file, cut_test=False)) == 5


def test_files_of_no_split_beside_others_are_refused(tmp_path):
    names = ["imagenet1k-train-00.tar", "imagenet1k-validation-00.tar", "latest.tar"]
    files = [tmp_path / name for name in names]
    assert by_split(files[:2]) == {"train": files[:1], "validation": files[1:2]}
    assert by_split(files[2:]) == {"train": files[2:]}
    with pytest.raises(InputError, match=r"latest\.tar is of no split, unlike imagen"):
        by_split(files)
