"""Pairs in LFW's format: what is read, and the one line that says what is wrong."""

import itertools
import re
import tracemalloc
from pathlib import Path

import pytest

from shiftjax import InputError, MissingFileError
from shiftjax.apps import face_pairs
from shiftjax.apps.face_pairs import (
    Pair,
    choose_folds,
    draw_pairs,
    read_pairs,
    write_pairs,
)

FILES = [
    "Ann_Lee/Ann_Lee_0001.jpg",
    "Ann_Lee/Ann_Lee_0002.PNG",
    "Ann_Lee/Ann_Lee_0003.txt",
    "Ann_Lee/Ann_Lee_0012.webp",
    "Bo/Bo_0001.jpg",
    "Bo/Bo_0002.jpg",
    "Cy/Cy_0001.bmp",
    "Cy/Cy_0004.jpeg",
]

GOOD = """
2 1
Ann_Lee 1 12
Ann_Lee 2 Bo 1
Bo 2 1
Cy 4 Bo 2
"""
# fold, first, second, same
EXPECTED = [
    (0, "Ann_Lee/Ann_Lee_0001.jpg", "Ann_Lee/Ann_Lee_0012.webp", True),
    (0, "Ann_Lee/Ann_Lee_0002.PNG", "Bo/Bo_0001.jpg", False),
    (1, "Bo/Bo_0002.jpg", "Bo/Bo_0001.jpg", True),
    (1, "Cy/Cy_0004.jpeg", "Bo/Bo_0002.jpg", False),
]


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / name).touch()
    return tmp_path / "faces"


@pytest.fixture
def read(tmp_path, folder):
    """Returns a function that reads a text as a file of pairs."""

    def function(text, **options):
        (tmp_path / "pairs.txt").write_text(text, "utf-8", newline="")
        return read_pairs(tmp_path / "pairs.txt", folder, **options)

    return function


SPELLINGS = {
    "spaces": GOOD.lstrip(),
    "tabs": GOOD.lstrip().replace(" ", "\t"),
    "blank lines": GOOD.replace("\n", "\n\n"),
    "no last newline": GOOD.strip(),
    "from Windows": "\ufeff" + GOOD.lstrip().replace("\n", "\r\n"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_pairs_are_read_in_their_order(read, folder, name):
    expected = [Pair(f, folder / a, folder / b, same) for f, a, b, same in EXPECTED]
    assert read(SPELLINGS[name]) == expected


def test_a_single_number_is_one_fold(read):
    text = "2\nAnn_Lee 1 2\nBo 1 2\nBo 1 Cy 1\nCy 4 Ann_Lee 1\n"
    pairs = read(text, min_folds=1)
    assert [(pair.fold, pair.same) for pair in pairs] == [
        (0, True),
        (0, True),
        (0, False),
        (0, False),
    ]
    with pytest.raises(InputError, match=r"pairs.txt:1: '2' is 1 fold of 2 x 2 pairs"):
        read(text)


def test_a_name_may_have_spaces_between_tabs(read, folder):
    for number in (1, 2):
        (folder / "Di M").mkdir(exist_ok=True)
        (folder / "Di M" / f"Di M_000{number}.jpg").touch()
    text = "1\t1\nDi M\t1\t2\nDi M\t1\tBo\t1\n"
    assert read(text, min_folds=1)[0].second == folder / "Di M" / "Di M_0002.jpg"


def test_of_two_files_of_one_image_the_first_is_taken(read, folder):
    (folder / "Bo" / "Bo_0001.png").touch()
    assert read(GOOD)[2].second == folder / "Bo" / "Bo_0001.jpg"


def edited(line, text):
    lines = GOOD.strip().split("\n")
    lines[line - 1] = text
    return "\n".join(lines)


# The text, and the message after the file's path.
WRONG = {
    "empty": ("", "1: the file is empty"),
    "blank": (" \n\n", "1: the file is empty"),
    "no header": (edited(1, "Bo 1 2"), "1: 'Bo 1 2' must be the number of folds"),
    "no folds": (edited(1, "0 1"), "1: '0 1' must be the number of folds"),
    "no pairs": (edited(1, "2 0"), "1: '2 0' must be the number of folds"),
    "half": (edited(1, "2 1.5"), "1: '2 1.5' must be the number of folds"),
    "one fold": (edited(1, "1 2"), "1: '1 2' is 1 fold of 2 x 2 pairs; at least 2"),
    "two fields": (edited(4, "Bo 2"), "4: 'Bo 2' must be NAME NUMBER NUMBER, or"),
    "five fields": (edited(3, "Cy 4 Bo 2 7"), "3: 'Cy 4 Bo 2 7' must be NAME"),
    "no number": (edited(2, "Ann Lee 1 2"), "2: 'Ann Lee 1 2' must be NAME"),
    "number 0": (edited(2, "Ann_Lee 0 2"), "2: 'Ann_Lee 0 2' must be NAME"),
    "negative": (edited(2, "Ann_Lee 1 -2"), "2: 'Ann_Lee 1 -2' must be NAME"),
    "long": (edited(2, "Bo 1 " + "9" * 5000), "2: 'Bo 1 999"),
    "outside": (edited(3, "Bo 1 .. 2"), "3: 'Bo 1 .. 2' must be NAME"),
    "itself": (edited(2, "Bo 1 1"), "2: 'Bo 1 1' must be two images of one person"),
    "one as two": (edited(3, "Bo 1 Bo 2"), "3: 'Bo 1 Bo 2' must be two images of"),
    "one kind": (
        edited(5, "Bo 1 2"),
        "5: pair 2 of fold 2 shows one person; it must show two people: a fold is 1",
    ),
    "other order": (edited(2, "Cy 1 Bo 1"), "2: pair 1 of fold 1 shows two people; it"),
    "short": (edited(5, ""), "4: .*2 folds of 2 x 1 .* ends with 1 pairs of fold 2"),
    "no last fold": (edited(1, "3 1"), "5: .*3 folds .* ends with 0 pairs of fold 3"),
    "header alone": ("2 1\n", "1: .* ends with 0 pairs of fold 1"),
    "more": (GOOD.strip() + "\nBo 1 2", "6: .*2 folds of 2 x 1 pairs, and this is one"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_answered_with_its_line(read, name):
    text, message = WRONG[name]
    with pytest.raises(InputError, match=rf"pairs\.txt:{message}") as error:
        read(text)
    assert "\n" not in str(error.value)


# A line of the file, and the nearest name.
MISSING = {
    "Ann_Lee 1 9": (2, "Ann_Lee/Ann_Lee_0009.*; the nearest is Ann_Lee/Ann_Lee_00"),
    "Ann_Lee 1 3": (2, "Ann_Lee/Ann_Lee_0003.*; the nearest is Ann_Lee/Ann_Lee_00"),
    "Ann_Leee 1 2": (2, "Ann_Leee/Ann_Leee_0001.*; the nearest is Ann_Lee/"),
    "Cy 4 Boo 1": (5, "Boo/Boo_0001.*; the nearest is Bo/"),
}


@pytest.mark.parametrize("line", MISSING)
def test_a_missing_image_is_answered_with_the_nearest(read, line):
    number, message = MISSING[line]
    with pytest.raises(MissingFileError, match=re.escape(message)) as error:
        read(edited(number, line))
    assert f"pairs.txt:{number}: there is no image " in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_folder_has_no_nearest(tmp_path):
    (tmp_path / "pairs.txt").write_text(GOOD)
    (tmp_path / "none").mkdir()
    with pytest.raises(MissingFileError, match="the folder is empty"):
        read_pairs(tmp_path / "pairs.txt", tmp_path / "none")


def test_what_is_no_file_of_pairs_is_named(tmp_path, folder):
    with pytest.raises(MissingFileError, match=r"no file of pairs .*none\.txt"):
        read_pairs(tmp_path / "none.txt", folder)
    with pytest.raises(MissingFileError, match=r"no folder of images .*nowhere"):
        read_pairs(tmp_path / "none.txt", tmp_path / "nowhere")
    (tmp_path / "pairs.txt").write_bytes(b"\xff\xfe1\x000\x00")
    with pytest.raises(InputError, match="is not a text file in UTF-8"):
        read_pairs(tmp_path / "pairs.txt", folder)


def test_what_may_not_be_read_is_named(tmp_path, folder, refuse):
    (tmp_path / "pairs.txt").touch()
    for method in ("read_text", "iterdir"):
        refuse(method)
    with pytest.raises(InputError, match=r"pairs\.txt cannot be read: Permission den"):
        read_pairs(tmp_path / "pairs.txt", folder)
    with pytest.raises(InputError, match=f"^{folder} cannot be read: Permission den"):
        draw_pairs(folder)


def test_some_folds_are_chosen():
    first, *others = [Pair(fold, Path("a"), Path("b"), True) for fold in (0, 1, 1, 2)]
    assert choose_folds([first, *others], [3, 2]) == others
    assert choose_folds([first, *others], []) == [first, *others]
    for folds in ([0], [4], [1, 1]):
        given = " ".join(map(str, folds))
        with pytest.raises(
            InputError, match=f"folds {given}: the pairs have .* 1 to 3"
        ):
            choose_folds([first, *others], folds)


def test_pairs_are_drawn_from_disjoint_people(tmp_path):
    """Five people with 4, 3, 3, 2 and 1 images, and files that no pair can name."""
    counts = {"Ann_Lee": 4, "Bo": 3, "Cy": 3, "Di": 2, "Ed": 1}
    for name, count in counts.items():
        (tmp_path / "faces" / name).mkdir(parents=True)
        for number in range(1, count + 1):
            (tmp_path / "faces" / name / f"{name}_{number:04}.png").touch()
    for other in ("Bo/portrait.png", "Bo/Bo_0000.png", "Bo/Bo_0009.txt", "list.png"):
        (tmp_path / "faces" / other).touch()
    pairs = draw_pairs(tmp_path / "faces", folds=2, count=2, seed=1)
    assert [(p.fold, p.same) for p in pairs] == [
        (fold, same) for fold in (0, 1) for same in (True, True, False, False)
    ]
    people = [
        {
            file.parent.name
            for p in pairs
            if p.fold == fold
            for file in (p.first, p.second)
        }
        for fold in (0, 1)
    ]
    assert not people[0] & people[1]
    assert all((p.first.parent == p.second.parent) == p.same for p in pairs)
    assert len({frozenset((p.first, p.second)) for p in pairs}) == len(pairs)
    assert pairs == draw_pairs(tmp_path / "faces", folds=2, count=2, seed=1)
    assert pairs != draw_pairs(tmp_path / "faces", folds=2, count=2, seed=2)
    write_pairs(tmp_path / "pairs.txt", pairs)
    assert read_pairs(tmp_path / "pairs.txt", tmp_path / "faces") == pairs


def test_images_whose_number_no_line_can_name_are_not_drawn(tmp_path):
    """Image 42 is Di_0042.png: Di_00042.png would be another one, or none."""
    (tmp_path / "Di").mkdir()
    (tmp_path / "Ed").mkdir()
    names = ("Di_00042", "Di_01042", "Di_20260102030405", "Di_1042", "Di_123456789")
    for name in (*names, "Ed_0001"):
        (tmp_path / name[:2] / f"{name}.png").touch()
    pairs = draw_pairs(tmp_path, folds=1, count=1)
    found = {file.stem for pair in pairs for file in (pair.first, pair.second)}
    assert found <= {"Di_1042", "Di_123456789", "Ed_0001"}
    write_pairs(tmp_path / "pairs.txt", pairs)
    assert read_pairs(tmp_path / "pairs.txt", tmp_path, min_folds=1) == pairs
    with pytest.raises(InputError, match="has 2 people and 1 pairs of one person"):
        draw_pairs(tmp_path, folds=1, count=2)


@pytest.mark.parametrize("name", ["Jos\udce9", "Di\tLee", " Ed", "Ed\n"])
def test_people_whom_no_line_can_name_are_named(tmp_path, name):
    """A folder of another encoding than UTF-8, for example of an old archive."""
    for number in (1, 2):
        image = tmp_path / "faces" / name / f"{name}_{number:04}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
    pairs = [Pair(0, *sorted(image.parent.iterdir()), same=True)]
    with pytest.raises(InputError, match="a file of pairs cannot name"):
        write_pairs(tmp_path / "pairs.txt", pairs)
    assert not (tmp_path / "pairs.txt").exists()


def test_all_pairs_of_two_people_can_be_drawn(tmp_path):
    for name, count in {"Ann": 6, "Bo": 1, "Cy": 1}.items():
        (tmp_path / name).mkdir()
        for number in range(1, count + 1):
            (tmp_path / name / f"{name}_{number:04}.png").touch()
    files = sorted(tmp_path.glob("*/*.png"))
    expected = {
        frozenset((a, b))
        for a, b in itertools.combinations(files, 2)
        if a.parent != b.parent
    }
    pairs = draw_pairs(tmp_path, folds=1, count=13)
    assert {frozenset((p.first, p.second)) for p in pairs if not p.same} == expected
    assert len(expected) == 13


def test_pairs_of_many_images_need_little_memory(tmp_path, monkeypatch):
    """100 people with 50 images have 12 million pairs, a gigabyte as a list."""
    monkeypatch.setattr(
        face_pairs._Images,
        "numbered",
        lambda images, name: [images.folder / name / f"{i}.png" for i in range(50)],
    )
    for number in range(100):
        (tmp_path / str(number)).mkdir()
    tracemalloc.start()
    pairs = draw_pairs(tmp_path, folds=1, count=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    two = {(p.first, p.second) for p in pairs if not p.same}
    assert len(two) == 1000
    assert all(a.parent != b.parent for a, b in two)
    assert peak < 50e6


def test_all_pairs_can_be_drawn(folder):
    """Ann Lee has images 1, 2 and 12, Bo 1 and 2, and Cy 1 and 4."""
    found = draw_pairs(folder, folds=1, count=5)
    assert {p.first.parent.name for p in found if p.same} == {"Ann_Lee", "Bo", "Cy"}
    assert len({(p.first, p.second) for p in found if p.same}) == 5
    message = "fold 1 of 1 has 3 people and 5 pairs of one person; count 6: use a sm"
    with pytest.raises(InputError, match=message):
        draw_pairs(folder, folds=1, count=6)
    with pytest.raises(InputError, match="folds 0: it must be at least 1"):
        draw_pairs(folder, folds=0)
    with pytest.raises(MissingFileError, match="no folder of images"):
        draw_pairs(folder / "nobody")
