"""Pairs of face images, in the format of LFW's pairs.txt.

The format is that of Labeled Faces in the Wild (http://vis-www.cs.umass.edu/lfw, README
of the data set). The first line has the number of folds and the number N of pairs of
each kind in a fold. Each fold has N pairs of one person and N pairs of two people:

    10    300
    Abel_Pacheco          1    4                    images 1 and 4 of one person
    Abdel_Madi_Shabneh    1    Dean_Barker    1     images of two people

A first line with N alone, as in LFW's development sets, stands for one fold. Fields are
separated by tabs or, in a line without tabs, by spaces. Image 4 of a person is the file
`Abel_Pacheco/Abel_Pacheco_0004.jpg`, with any of the extensions of images.
"""

import bisect
import dataclasses
import difflib
import itertools
import os
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from shiftjax import image_files
from shiftjax.errors import InputError, MissingFileError, reading
from shiftjax.files import user_path, write_atomically

# The number of all pairs of a kind, and a function from its number to a pair.
Numbered = tuple[int, Callable[[int], tuple[Path, Path]]]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two images of faces.

    Attributes:
      fold: number of the fold, from 0.
      first: file of the first image.
      second: file of the second image.
      same: True if both images show the same person.
    """

    fold: int
    first: Path
    second: Path
    same: bool


def read_pairs(
    file: str | os.PathLike, folder: str | os.PathLike, *, min_folds: int = 2
) -> list[Pair]:
    """Reads a file of pairs, and finds their images.

    Args:
      file: the file of pairs.
      folder: folder of the images, with one folder for each person.
      min_folds: smallest number of folds. Two are needed to choose a threshold on other
        folds than those it is tested on; 1 admits LFW's development sets.

    Returns:
      The pairs, in the order of the file.

    Raises:
      MissingFileError: if the file, the folder or an image does not exist.
      InputError: if the file is empty, a line is malformed, there are too few folds, or
        a fold does not have the pairs of both kinds that the first line promises.
    """
    file, folder = user_path(file), user_path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder of images {folder}")
    (number, header), *lines = _read_lines(file)
    folds, count = _parse_header(header, f"{file}:{number}", min_folds)
    promised = f"the first line promises {folds} folds of 2 x {count} pairs"
    images = _Images(folder)
    pairs = []
    for number, line in lines:
        where = f"{file}:{number}"
        fold, place = divmod(len(pairs), 2 * count)
        if fold == folds:
            raise InputError(f"{where}: {promised}, and this is one more")
        name, one, other, two = _parse_pair(line, where)
        if (name == other) != (place < count):
            kinds = "one person", "two people"
            raise InputError(
                f"{where}: pair {place + 1} of fold {fold + 1} shows "
                f"{kinds[name != other]}; it must show {kinds[place >= count]}: a fold "
                f"is {count} pairs of one person, then {count} of two people"
            )
        found = images.find(name, one, where), images.find(other, two, where)
        pairs.append(Pair(fold, *found, same=name == other))
    if len(pairs) < 2 * count * folds:
        fold, place = divmod(len(pairs), 2 * count)
        raise InputError(
            f"{file}:{number}: {promised}, but the file ends with {place} pairs of "
            f"fold {fold + 1}"
        )
    return pairs


def choose_folds(pairs: Sequence[Pair], folds: Sequence[int]) -> list[Pair]:
    """Chooses the pairs of some folds.

    Args:
      pairs: the pairs of all folds.
      folds: numbers of folds, from 1; none for all of them.

    Returns:
      The pairs of these folds, in their order.

    Raises:
      InputError: if a fold does not exist, or is given twice.
    """
    count = 1 + max(pair.fold for pair in pairs)
    if set(folds) - set(range(1, count + 1)) or len(set(folds)) < len(folds):
        raise InputError(
            f"folds {' '.join(map(str, folds))}: the pairs have the folds 1 to "
            f"{count}, and each may be given once"
        )
    return [pair for pair in pairs if not folds or pair.fold + 1 in folds]


def draw_pairs(
    folder: str | os.PathLike, folds: int = 10, count: int = 300, seed: int = 0
) -> list[Pair]:
    """Draws pairs of the images of a folder, without one twice.

    The people are shared out to the folds at random, so that no two folds have one in
    common. The pairs of a fold are drawn from all pairs of its images, with equal
    probabilities: first those of one person, then those of two people.

    Args:
      folder: folder of the images, with one folder for each person.
      folds: number of folds.
      count: number of pairs of each kind in a fold.
      seed: seed of the random numbers.

    Returns:
      The pairs, in the order of a file.

    Raises:
      MissingFileError: if the folder does not exist.
      InputError: if a number is not positive, or a fold has too few pairs.
    """
    for name, number in (("folds", folds), ("count", count)):
        if number < 1:
            raise InputError(f"{name} {number}: it must be at least 1")
    folder = user_path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder of images {folder}")
    images = _Images(folder)
    people = [own for name in images.people() if (own := images.numbered(name))]
    rng, pairs = random.Random(seed), []
    rng.shuffle(people)
    for fold in range(folds):
        chosen = people[fold::folds]
        for same in (True, False):
            found, sample = (_of_one if same else _of_two)(chosen)
            if found < count:
                shown = "one person" if same else "two people"
                raise InputError(
                    f"{folder}: fold {fold + 1} of {folds} has {len(chosen)} people "
                    f"and {found} pairs of {shown}; count {count}: use a smaller one, "
                    "or fewer folds"
                )
            numbers = rng.sample(range(found), count)
            pairs += [Pair(fold, *sample(number), same) for number in numbers]
    return pairs


def _of_one(people: Sequence[Sequence[Path]]) -> Numbered:
    """Numbers all pairs of images of one person, from 0."""
    pairs = [pair for own in people for pair in itertools.combinations(own, 2)]
    return len(pairs), pairs.__getitem__


def _of_two(people: Sequence[Sequence[Path]]) -> Numbered:
    """Numbers all pairs of images of two people, without a list of them."""
    files = [file for own in people for file in own]
    ends = itertools.accumulate(len(own) for own in people)  # of each person's images
    after = [end for own, end in zip(people, ends, strict=True) for _ in own]
    starts = [0, *itertools.accumulate(len(files) - end for end in after)]

    def pair(number: int) -> tuple[Path, Path]:
        first = bisect.bisect_right(starts, number) - 1
        return files[first], files[after[first] + number - starts[first]]

    return starts[-1], pair


def write_pairs(file: str | os.PathLike, pairs: Sequence[Pair]) -> None:
    """Writes a file of pairs atomically, as `read_pairs` reads it.

    Args:
      file: the file.
      pairs: pairs in the order of a file, equally many of each kind in all folds.

    Raises:
      InputError: if the file cannot be written, or the name of a person is not UTF-8,
        has a tab or a line break, or begins or ends with a space.
    """
    folds = 1 + max(pair.fold for pair in pairs)
    lines = [f"{folds}\t{len(pairs) // (2 * folds)}"]
    for pair in pairs:
        name, one = _person_and_number(pair.first)
        other, two = _person_and_number(pair.second)
        fields = [name, one, two] if pair.same else [name, one, other, two]
        lines.append("\t".join(map(str, fields)))
    write_atomically(user_path(file), "\n".join([*lines, ""]).encode())


def _person_and_number(file: Path) -> tuple[str, int]:
    """Returns the person and the number of an image.

    Raises:
      InputError: if no line can name the person.
    """
    name = file.parent.name
    # A byte that is not UTF-8 is a surrogate in Python.
    if name != name.strip() or re.search(r"[\t\r\n\ud800-\udfff]", name):
        raise InputError(
            f"{file.parent}: a file of pairs cannot name this folder: rename it, in "
            "UTF-8, without tabs and line breaks, and without spaces around the name"
        )
    return name, int(file.stem.rpartition("_")[2])


def _read_lines(file: Path) -> list[tuple[int, str]]:
    """Reads the lines that are not blank, with their numbers from 1."""
    if not file.is_file():
        raise MissingFileError(f"there is no file of pairs {file}")
    with reading(file):
        text = file.read_text("utf-8-sig")
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{file}:1: the file is empty; it needs a first line '10 300'")
    return lines


def _split(line: str) -> list[str]:
    """Splits a line at its tabs, or at its spaces if it has no tabs."""
    fields = line.strip().split("\t" if "\t" in line.strip() else None)
    return [field.strip() for field in fields]


def _positive(field: str) -> int:
    """Parses a positive decimal number; any other text gives 0."""
    return int(field) if field.isascii() and field.isdigit() and len(field) < 10 else 0


def _parse_header(line: str, where: str, min_folds: int) -> tuple[int, int]:
    """Returns the number of folds, and of pairs of each kind in a fold."""
    numbers = [_positive(field) for field in _split(line)]
    if len(numbers) > 2 or 0 in numbers:
        raise InputError(
            f"{where}: {line.strip()!r} must be the number of folds and the number of "
            "pairs of each kind in a fold, as '10 300', or the latter alone"
        )
    folds, count = numbers if len(numbers) == 2 else (1, *numbers)
    if folds < min_folds:
        raise InputError(
            f"{where}: {line.strip()!r} is {folds} fold of 2 x {count} pairs; at least "
            f"{min_folds} folds are needed"
        )
    return folds, count


def _parse_pair(line: str, where: str) -> tuple[str, int, str, int]:
    """Returns the name and the number of both images."""
    fields = _split(line)
    same = len(fields) == 3
    if same:
        fields.insert(2, fields[0])
    name, one, other, two = fields if len(fields) == 4 else ("", "", "", "")
    numbers = _positive(one), _positive(two)
    if 0 in numbers or {name, other} & {"", ".", ".."}:
        raise InputError(
            f"{where}: {line.strip()!r} must be NAME NUMBER NUMBER, or NAME NUMBER "
            "OTHER NUMBER for two people"
        )
    if same != (name == other) or (same and numbers[0] == numbers[1]):
        raise InputError(
            f"{where}: {line.strip()!r} must be two images of one person, NAME NUMBER "
            "NUMBER, or images of two people, NAME NUMBER OTHER NUMBER"
        )
    return name, numbers[0], other, numbers[1]


class _Images:
    """The images of a folder, each person's files listed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._people: dict[str, dict[str, Path]] = {}

    def find(self, name: str, number: int, where: str) -> Path:
        """Returns the file of an image; `where` is the line for the error."""
        if name not in self._people:
            self._people[name] = self._list(name)
        files, stem = self._people[name], f"{name}_{number:04}"
        if stem in files:
            return files[stem]
        wanted = f"{where}: there is no image {self.folder / name / stem}.*"
        if files:
            near = difflib.get_close_matches(stem, files, n=1, cutoff=0)
            nearest = files[near[0]].relative_to(self.folder)
        else:
            near = difflib.get_close_matches(name, self.people(), n=1, cutoff=0)
            nearest = f"{near[0]}/" if near else None
        hint = f"; the nearest is {nearest}" if nearest else "; the folder is empty"
        raise MissingFileError(wanted + hint)

    def people(self) -> list[str]:
        """Lists the names of the people, sorted."""
        with reading(self.folder):
            return sorted(path.name for path in self.folder.iterdir() if path.is_dir())

    def numbered(self, name: str) -> list[Path]:
        """Returns the files of a person that a file of pairs can name."""
        number = "(?!0000)[0-9]{4}|[1-9][0-9]{4,8}"  # 5 is 0005, and never 00005
        stem = re.compile(f"{re.escape(name)}_(?:{number})")
        files = self._list(name)
        return [files[found] for found in sorted(files) if stem.fullmatch(found)]

    def _list(self, name: str) -> dict[str, Path]:
        """Lists the image files of a person by their names without extension."""
        person = self.folder / name
        if not person.is_dir():
            return {}
        with reading(person):
            paths = sorted(person.iterdir(), reverse=True)  # of two, the first wins
        return {
            path.stem: path
            for path in paths
            if path.suffix.lower() in image_files.EXTENSIONS
        }
