"""Reads image classification sets of Hugging Face's library `datasets` from the disk.

A folder of `save_to_disk`, or Parquet files in a folder or, as on the Hub, in its
folder `data`. The library converts Parquet files once, to Arrow files in its cache.

Images are in the column of type `Image`, and labels in that of type `ClassLabel`, or
else are the integers of a column `label`. Of several columns, those called `image` and
`label` are used.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shiftjax.errors import InputError, MissingFileError, needs_extra
from train.data import shards, splits
from train.data.decoding import Decoding
from train.data.encoded import Encoded
from train.data.labels import name_classes

_LOG = logging.getLogger(__name__)
_SAVED = ("dataset_dict.json", "state.json")  # which `save_to_disk` writes
_HIDDEN = -1  # the label of images whose labels are not published

Table = Any  # datasets.Dataset, which is not needed for other sources


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows with an image and a label; see `train.data.records.Records`.

    Attributes:
      place: the data set and the split, for errors.
      images: a table with one column, of encoded images.
      labels: int32 `[rows]`.
      class_names: one name per class.
    """

    place: str
    images: Table
    labels: np.ndarray
    class_names: tuple[str, ...]

    upright: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, number: int) -> str:
        """Returns the data set, the split and the number of a row."""
        return f"{self.place} row {number}"

    def read(self, numbers: Sequence[int]) -> list[tuple[bytes | Path, int]]:
        """Reads rows, without decoding their images."""
        if not numbers:
            return []
        try:
            (images,) = self.images[list(numbers)].values()
        except Exception as e:  # of Arrow, or of the system
            raise InputError(f"{self.place} cannot be read ({_reason(e)})") from e
        labels = self.labels[list(numbers)].tolist()
        return [(_encoded(x), label) for x, label in zip(images, labels, strict=True)]


def open_hugging_face(path: str, decoding: Decoding) -> splits.OfficialSplits:
    """Opens a data set of Hugging Face on the disk.

    Args:
      path: a folder of `save_to_disk`, a folder of Parquet files, or one such file.
      decoding: how the images become pixels.

    Returns:
      The splits.

    Raises:
      MissingFileError: if there is no such file or folder.
      InputError: if `datasets` is not installed, or the data set is damaged or has no
        images with one label each.
    """
    source, root = f"hf:{path}", Path(path).expanduser()
    if not root.exists():
        raise MissingFileError(
            f"{source}: there is no such folder; to write one, "
            "datasets.load_dataset(NAME).save_to_disk(FOLDER)"
        )
    with needs_extra(source, "huggingface"):
        import datasets  # noqa: F401  # pyright: ignore[reportMissingImports]
    tables = _tables(root)
    columns = {x: _columns(f"{root}: {x}", table) for x, table in tables.items()}
    labels = {
        split: _labels(f"{root}: {split}", table, columns[split][1])
        for split, table in tables.items()
    }
    labels = {x: own for x, own in labels.items() if not _hidden(f"{root}: {x}", own)}
    if not labels:
        raise InputError(f"{root} has no labels: all are {_HIDDEN}")
    class_names = name_classes(
        {f"{root}: {split}": own for split, own in labels.items()},
        _class_names(root, tables, columns),
    )
    examples = sum(map(len, labels.values()))

    def read(split: str) -> Encoded:
        images = _encoded_images(tables[split], columns[split][0])
        own = labels[split].astype(np.int32)
        rows = Rows(f"{root}: {split}", images, own, class_names)
        return Encoded.of(rows, decoding, examples)

    return splits.assign(source, list(labels), read)


def _tables(root: Path) -> dict[str, Table]:
    """Opens the tables of the splits; a single one is for training."""
    try:
        opened = _opened(root)
    except InputError:
        raise
    except Exception as e:  # of Arrow, of the system, or of `datasets`
        raise InputError(
            f"{root} is not a whole data set of Hugging Face ({_reason(e)})"
        ) from e
    tables = opened if isinstance(opened, dict) else {"train": opened}
    known = {name: x for name, x in tables.items() if name in splits.SPLIT_NAMES}
    if not known:
        raise InputError(
            f"{root} has the splits {', '.join(tables)}; it needs train or test"
        )
    return known


def _opened(root: Path) -> dict[str, Table] | Table:
    """Opens what is in a folder, in one of the two forms."""
    import datasets  # pyright: ignore[reportMissingImports]

    if any((root / name).exists() for name in _SAVED):
        return datasets.load_from_disk(str(root))
    return {
        split: datasets.Dataset.from_parquet([str(file) for file in files])
        for split, files in shards.by_split(_parquet_files(root)).items()
    }


def _parquet_files(root: Path) -> list[Path]:
    """Lists Parquet files."""
    files = [root] if root.is_file() else [*root.glob("*.parquet")]
    files = files or [*(root / "data").glob("*.parquet")]
    if not files:
        raise InputError(
            f"{root} is neither a folder of save_to_disk nor one of Parquet files"
        )
    return files


def _columns(place: str, table: Table) -> tuple[str, str]:
    """Returns the names of the columns of images and of labels."""
    import datasets  # pyright: ignore[reportMissingImports]

    def find(name: str, kind: str, fits: Callable[[Any], bool]) -> str:
        found = [key for key, feature in table.features.items() if fits(feature)]
        if name in found or len(found) == 1:
            return name if name in found else found[0]
        if found:
            raise InputError(
                f"{place} has {len(found)} columns of {kind}, {', '.join(found)}: "
                f"rename the one to use to {name!r}"
            )
        raise InputError(
            f"{place} has no column of {kind}; its columns are {_listed(table)}"
        )

    image = find("image", "type Image", lambda x: isinstance(x, datasets.Image))
    dtype = str(getattr(table.features.get("label"), "dtype", ""))
    if dtype.startswith(("int", "uint")):
        return image, "label"
    kind = "type ClassLabel (or of integers and called 'label')"
    return image, find("label", kind, lambda x: isinstance(x, datasets.ClassLabel))


def _listed(table: Table) -> str:
    """Lists the columns of a table, with their types."""
    features: Mapping[str, Any] = table.features
    return ", ".join(f"{name}: {type(x).__name__}" for name, x in features.items())


def _labels(place: str, table: Table, column: str) -> np.ndarray:
    """Reads the labels of a table, as integers `[rows]`."""
    arrow = table.select_columns([column]).with_format("arrow")[:].column(column)
    if arrow.null_count:
        raise InputError(f"{place} has {arrow.null_count} rows without a label")
    return arrow.to_numpy()


@functools.cache  # logs once for each split
def _note_hidden(place: str) -> None:
    _LOG.warning("%s is left out: its labels are not published, all are -1", place)


def _hidden(place: str, labels: np.ndarray) -> bool:
    """Returns True for a split whose labels are not published."""
    if (labels != _HIDDEN).any():
        return False
    _note_hidden(place)
    return True


def _class_names(
    root: Path, tables: Mapping[str, Table], columns: Mapping[str, tuple[str, str]]
) -> list[str] | None:
    """Returns the names of the classes, the same in all splits, or None for numbers."""
    names = {
        split: getattr(table.features[columns[split][1]], "names", None)
        for split, table in tables.items()
    }
    (first, wanted), *others = names.items()
    for split, found in others:
        if found != wanted:
            raise InputError(f"{root}: {split} has not the same classes as {first}")
    return wanted


def _encoded_images(table: Table, column: str) -> Table:
    """Returns a table of encoded images alone, as Python objects."""
    import datasets  # pyright: ignore[reportMissingImports]

    images = table.with_format(None).select_columns([column])
    return images.cast_column(column, datasets.Image(decode=False))


def _encoded(image: Mapping[str, Any] | None) -> bytes | Path:
    """Returns the bytes of an image, or else its path; no bytes if it is missing."""
    if image is None or (image["bytes"] is None and not image["path"]):
        return b""
    return Path(image["path"]) if image["bytes"] is None else image["bytes"]


def _reason(error: Exception) -> str:
    """Returns the first line of an error, of the one below it if there is one."""
    return str(error.__cause__ or error).partition("\n")[0]
