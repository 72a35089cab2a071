"""Training tasks. Each is a file of this package and a row of `TASKS`."""

from collections.abc import Mapping
from typing import Any

from shiftjax.errors import unknown_name
from train.config import Config
from train.data import sources
from train.data.examples import Examples
from train.tasks.classification import Classification
from train.tasks.faces import FaceRecognition
from train.tasks.style import StyleTransfer
from train.tasks.task import OwnCard, OwnSplits, Task

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "faces": FaceRecognition,
    "style": StyleTransfer,
}


def find_task(name: str) -> type[Task]:
    """Returns the task of a name.

    Raises:
      UnknownNameError: if there is no such task.

    Example:
      >>> find_task("style").best_metric
      'loss'
    """
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]


def load_split(config: Config, split: str) -> Examples:
    """Loads a split of the data of a run, with labels if the task needs them.

    A task may load its splits itself, see `train.tasks.task.OwnSplits`.

    Args:
      config: the configuration of the run.
      split: the name of the split, as for `train.data.sources.load_source`.

    Raises:
      InputError: if the data or the task do not exist.
    """
    task, augment = find_task(config.task), config.augment
    options = {
        "image_size": config.data.image_size,
        "channels": len(config.data.mean),
        "data_dir": config.data.data_dir,
        "validation_examples": config.data.validation_examples,
        "labelled": task.labelled,
        "resize": config.data.resize,
        "crop_scale": augment.crop_scale if augment.random_resized_crop else None,
        "crop_decoder": augment.crop_decoder,
        "seed": config.seed,
        "decode": config.data.decode,
        "on_corrupt": config.data.on_corrupt,
        "threads": config.data.threads,
    }

    def read(**changed: Any) -> Examples:
        return sources.load_source(config.data.source, split, **options | changed)

    if issubclass(task, OwnSplits):
        return task.load_split(config, split, read)
    return read()


def card_fields(config: Config, test: Mapping[str, float]) -> dict[str, Any]:
    """Returns the fields of a release's card that are the task's own; mostly none.

    A task may have some, see `train.tasks.task.OwnCard`.

    Args:
      config: the configuration of the run.
      test: the metrics of the test.
    """
    task = find_task(config.task)
    if issubclass(task, OwnCard):
        return task.card_fields(config, test)
    return {}
