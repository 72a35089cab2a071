"""Evaluation of a network, a run or released weights on every example of a set."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from shiftjax.errors import InputError, MissingFileError
from shiftjax.weights import open_pretrained
from train import comparison, coordination, files, hosts
from train import config as config_file
from train.assemble import Setup, set_up
from train.checkpointing import Checkpoints, Restored
from train.data.examples import Examples
from train.data.placement import FED_STEPS, facts, host_share
from train.data.stream import Prefetch, items, padded_order
from train.parallel import Replicas
from train.state import TrainState
from train.tasks import load_split
from train.workdir import CHECKPOINTS

RAW = "_raw"  # after the name of a split: of the variables that are not averaged


def evaluate(setup: Setup, variables: Any, examples: Examples) -> dict[str, float]:
    """Evaluates a network on every example of a set, exactly once.

    Args:
      setup: the parts of the run.
      variables: the variables of the network, on the devices.
      examples: the examples.

    Returns:
      The metrics of the task, such as "loss" and "top1", and the number of "examples".
    """
    replicas = setup.replicas
    batch_size = -(-setup.config.eval_batch_size // replicas.count) * replicas.count
    order = padded_order(len(examples), min(batch_size, _round_up(examples, replicas)))
    data, fed = setup.on_devices(examples)
    length = len(order) if fed is None else FED_STEPS
    totals: dict[str, Any] = {}
    kept: list[dict[str, np.ndarray]] = []

    def make(start: int) -> Any:
        indices = host_share(order[start : start + length])
        return replicas.split(items(indices, fed, length))

    prefetch = Prefetch(make, range(0, len(order), length))
    try:
        for start, batch in prefetch:
            count = np.int32(min(length, len(order) - start))
            sums, rows = jax.device_get(setup.eval_steps(variables, data, batch, count))
            # Python's floats, because float32 has no exact counts above 2**24.
            totals = {name: totals.get(name, 0) + float(x) for name, x in sums.items()}
            kept.append(
                {n: x[:count].reshape(-1, *x.shape[2:]) for n, x in rows.items()}
            )
    finally:
        prefetch.close()
    seen = round(totals["examples"])
    if seen != len(examples):
        raise RuntimeError(f"evaluated {seen} of {len(examples)} examples")
    rows = {n: np.concatenate([part[n] for part in kept])[:seen] for n in kept[0]}
    metrics = setup.trainer.task.metrics(totals, rows, examples)
    return metrics | {"examples": seen}


def evaluate_state(
    setup: Setup, state: TrainState, split: str, examples: Examples
) -> dict[str, dict[str, float]]:
    """Evaluates a state: its variables and, if these are an average, the raw ones too.

    Args:
      setup: the parts of the run.
      state: the state, on the devices.
      split: the name of the split.
      examples: its examples.

    Returns:
      Metrics as of `evaluate`, by the split in the log: "test", and "test_raw" for the
      variables after the last step if the state has a moving average.
    """
    chosen = {split: state.variables}
    if state.ema is not None:
        chosen[f"{split}{RAW}"] = state.raw_variables
    return {name: evaluate(setup, x, examples) for name, x in chosen.items()}


def evaluate_run(
    workdir: str,
    split: str = "test",
    *,
    step: int | None = None,
    devices: int | None = None,
    on_skip: Callable[[str], None] = print,
) -> dict[str, float]:
    """Evaluates a checkpoint of a run on every example of a split.

    Several processes make the same call, share the examples and get the same result.

    Args:
      workdir: directory of the run.
      split: "test", "validation", "train" or "train+validation".
      step: the step of the checkpoint; None for the newest.
      devices: number of devices to use; None for all.
      on_skip: called with a message for each damaged checkpoint that is skipped, on
        the first process.

    Returns:
      Means over the examples, "loss" and "top1" (and "top5" with more than ten
      classes), the number of "examples" and the "step".

    Raises:
      InputError: if the run, the checkpoint or the split does not exist.
    """
    config = hosts.all_do(lambda: config_file.load_config(workdir))
    comparison.compare(config)

    def assemble() -> tuple[Examples, Setup]:
        examples = load_split(config, split)
        return examples, set_up(dataclasses.replace(config, devices=devices), examples)

    examples, setup = hosts.all_do(assemble)
    comparison.compare_facts(facts(examples, split))
    restored = hosts.all_do(lambda: read_checkpoint(workdir, setup, step))
    found = coordination.exchange(str(restored.step))
    if len(set(found)) > 1:
        raise InputError(
            f"the processes read the checkpoints of steps {', '.join(found)} in "
            f"{workdir}: give one of them by --step"
        )
    for message in restored.skipped if hosts.is_first() else ():
        on_skip(message)
    variables = setup.replicas.replicate(restored.state.variables)
    return evaluate(setup, variables, examples) | {"step": restored.step}


def read_checkpoint(
    workdir: str | os.PathLike[str], setup: Setup, step: int | None = None
) -> Restored:
    """Reads a checkpoint of a run, and writes nothing.

    Args:
      workdir: directory of the run.
      setup: the parts of the run.
      step: the step of the checkpoint; None for the newest.

    Raises:
      InputError: if there is none.
    """
    folder, restored = files.folder(workdir) / CHECKPOINTS, None
    if files.in_store(folder) or folder.exists():  # else it would be made
        with Checkpoints(folder) as checkpoints:
            restored = checkpoints.restore(setup.template(), step=step)
    if restored is None:
        raise InputError(f"{workdir} holds no checkpoint yet")
    return restored


def evaluate_weights(
    name: str,
    directory: str | None = None,
    *,
    source: str | None = None,
    split: str = "test",
    data_dir: str | None = None,
    devices: int | None = None,
) -> dict[str, float]:
    """Evaluates weights on every example of a split.

    Args:
      name: "architecture.tag", or a .safetensors file.
      directory: directory of the releases; see `shiftjax.load_pretrained`.
      source: the data, as in training; None for the data that they were trained on.
      split: "test", "validation", "train" or "train+validation".
      data_dir: directory of the TFDS data sets; None for TFDS's default.
      devices: number of devices to use; None for all.

    Returns:
      Means over the examples, "loss" and "top1" (and "top5" with more than ten
      classes), and the number of "examples".

    Raises:
      InputError: if the weights or the data do not exist, or their classes differ.
    """
    pretrained = open_pretrained(name, directory)
    card = pretrained.card
    if not card.class_names:
        raise InputError(
            f"{name} returns {pretrained.model.outputs}, which have no accuracy"
        )
    options = {k: v for k, v in card.options.items() if k != "num_classes"}
    config = config_file.Config(
        devices=devices,
        model=config_file.Model(card.architecture, options),
        data=config_file.Data(
            source=source or card.dataset,
            data_dir=data_dir,
            image_size=card.image_size,
            resize=card.resize,
            mean=card.mean,
            std=card.std,
        ),
    )
    try:
        examples = load_split(config, split)
    except MissingFileError as error:
        if source is not None:
            raise
        # A card has the name of a folder, and not its place.
        raise MissingFileError(f"{error}; --source names other data") from error
    if examples.class_names != card.class_names:
        raise InputError(
            f"{config.data.source} has other classes than {name}: "
            f"{', '.join(examples.class_names[:5])}, ... and not "
            f"{', '.join(card.class_names[:5])}, ..."
        )
    setup = set_up(config, examples)
    return evaluate(setup, setup.replicas.replicate(pretrained.variables), examples)


def _round_up(examples: Examples, replicas: Replicas) -> int:
    """Returns the smallest batch of all examples that the devices can share."""
    return -(-len(examples) // replicas.count) * replicas.count
