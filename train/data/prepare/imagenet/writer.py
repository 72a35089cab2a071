"""Writes ImageNet as TensorFlow Datasets does, without TensorFlow.

Name, version, features, labels and file names are those of the builder of TFDS. Two
things differ. The images are in the order of the source, so the training images are
sorted by class: TFDS needs twice the disk space to shuffle them, and readers with
random access, such as this trainer, shuffle them at each epoch. And every image keeps
its bytes: TFDS encodes a PNG and 22 CMYK images again, which Pillow decodes as they
are.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from rich.console import Console
from rich.progress import Progress
from tensorflow_datasets.core import example_serializer, file_adapters, naming, splits

from train.data.prepare import directory
from train.data.prepare.imagenet import files, reader
from train.data.prepare.imagenet.files import ImageNet, Split

_PADDING = 1 << 17  # a record file consists of blocks of 64 KiB, one of them its index


def write_imagenet(
    source: Sequence[str | Path],
    target: Path,
    console: Console,
    *,
    verify: bool = False,
) -> None:
    """Writes ImageNet from the official archives or from folders of their images.

    Args:
      source: the archives, folders with the archives, or folders with `train` and
        `val`.
      target: the directory to create, `data_dir/imagenet2012/VERSION`.
      console: the console for the progress.
      verify: if True, compare the digests of the archives first, which takes minutes.

    Raises:
      InputError: if a file is missing, not the official one or damaged, or the disk has
        too little space.
    """
    spec = files.official()
    found = reader.find_splits(spec, source)
    reader.check_complete(spec, found)
    # The records have less around an image than the archives.
    needed = sum(s.archive_bytes + s.shards * _PADDING for s in spec.splits)
    directory.check_space(target.parents[1], needed)
    if verify:
        reader.verify_archives(spec, found, console)
    with (
        directory.scratch(target) as scratch,
        Progress(console=console) as progress,
    ):
        total = sum(split.examples for split in spec.splits)
        task = progress.add_task(f"writing {files.NAME}", total=total)
        written = _write(spec, found, scratch, lambda: progress.advance(task))
        directory.move_to_place(written, target)


def _write(
    spec: ImageNet, found: Mapping[str, Path], folder: Path, on_image: Callable[[], Any]
) -> Path:
    """Writes both splits and their description, and returns their directory."""
    official: Any = tfds.builder_cls(files.NAME)  # its metaclass hides its signature
    builder = official(data_dir=folder, file_format="array_record")
    features = builder.info.features
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())

    def records(split: Split) -> Iterator[tuple[str, bytes]]:
        for example in reader.read_split(spec, split, found[split.name]):
            encoded = features.encode_example(
                {
                    "image": example.image,
                    "label": example.label,
                    "file_name": example.file_name,
                }
            )
            yield example.file_name, serializer.serialize_example(encoded)
            on_image()

    written = builder.data_path
    written.mkdir(parents=True)
    infos = [_write_split(split, records(split), written) for split in spec.splits]
    builder.info.set_splits(splits.SplitDict(infos))
    builder.info.write_to_directory(written)
    return Path(written)


def _write_split(
    split: Split, records: Iterator[tuple[str, bytes]], folder: epath.Path
) -> splits.SplitInfo:
    """Writes the record files of a split, and returns its description for TFDS."""
    template = naming.ShardedFileTemplate(
        data_dir=folder,
        dataset_name=files.NAME,
        split=split.name,
        filetype_suffix="array_record",
    )
    edges = [split.examples * i // split.shards for i in range(split.shards + 1)]
    lengths = [end - start for start, end in itertools.pairwise(edges)]
    paths = [
        template.sharded_filepath(shard_index=i, num_shards=split.shards)
        for i in range(split.shards)
    ]
    for path, length in zip(paths, lengths, strict=True):
        file_adapters.ArrayRecordFileAdapter.write_examples(
            path, itertools.islice(records, length)
        )
    next(records, None)  # raises if the source has not ended
    return splits.SplitInfo(
        name=split.name,
        shard_lengths=lengths,
        num_bytes=sum(path.stat().length for path in paths),
        filename_template=template,
    )
