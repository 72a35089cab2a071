"""What networks are trained for. A task is a file here, and a row of `TASKS`."""

from shiftjax.errors import unknown_name
from train.config import Config
from train.data import sources
from train.data.image_set import ImageSet
from train.tasks.classification import Classification
from train.tasks.style import Style
from train.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "style": Style,
}


def find(name: str) -> type[Task]:
    """Returns the task of a name.

    Raises:
      UnknownNameError: if there is none.

    Example:
      >>> find("style").best_metric
      'loss'
    """
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]


def load_split(config: Config, split: str) -> ImageSet:
    """Loads a split of a run's data, as the task wants them.

    Args:
      config: the run's.
      split: as of `train.data.sources.load`.

    Raises:
      InputError: if the data or the task are not there.
    """
    return sources.load(
        config.data.source,
        split,
        image_size=config.data.image_size,
        data_dir=config.data.data_dir,
        validation_examples=config.data.validation_examples,
        labelled=find(config.task).labelled,
    )
