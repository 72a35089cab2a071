"""Evaluation of a run after the fact."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax

from shiftjax.errors import InputError
from shiftjax.weights import open_pretrained
from train import config as config_file
from train.checkpointing import Checkpoints
from train.setup import evaluate, load_split, set_up
from train.workdir import CHECKPOINTS


def evaluate_run(
    workdir: str,
    split: str = "test",
    *,
    step: int | None = None,
    devices: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Evaluates a checkpoint of a run on every example of a split.

    Args:
      workdir: folder of the run.
      split: "test", "validation", "train" or "train+validation".
      step: the checkpoint to take; None for the newest.
      devices: how many devices to use; None for all.
      say: told of checkpoints that are damaged, and passed over.

    Returns:
      Means over the examples: "loss", "top1" (and "top5" of more than ten classes), how
      many "examples" there were, and the "step".

    Raises:
      InputError: if there is no such run, checkpoint or split.
    """
    config = config_file.load(Path(workdir))
    examples = load_split(config, split)
    setup = set_up(dataclasses.replace(config, devices=devices), examples)
    with Checkpoints(Path(workdir) / CHECKPOINTS) as checkpoints:
        restored = checkpoints.restore(jax.eval_shape(setup.initial_state), step=step)
    if restored is None:
        raise InputError(f"{workdir} holds no checkpoint yet")
    for message in restored.skipped:
        say(message)
    variables = setup.replicas.replicate(restored.state.variables)
    return evaluate(setup, variables, examples) | {"step": restored.step}


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
      directory: folder of the releases; see `shiftjax.load_pretrained`.
      source: the data, as in training; None for those it was trained on.
      split: "test", "validation", "train" or "train+validation".
      data_dir: where TFDS data sets are; None for where TFDS looks itself.
      devices: how many devices to use; None for all.

    Returns:
      Means over the examples: "loss", "top1" (and "top5" of more than ten classes), and
      how many "examples" there were.

    Raises:
      InputError: if there are no such weights or data, or they differ in their classes.
    """
    pretrained = open_pretrained(name, directory)
    card = pretrained.card
    if not card.class_names:
        raise InputError(f"{name} gives pictures, whose accuracy there is none of")
    options = {k: v for k, v in card.options.items() if k != "num_classes"}
    config = config_file.Config(
        devices=devices,
        model=config_file.Model(card.architecture, options),
        data=config_file.Data(
            source=source or card.dataset,
            data_dir=data_dir,
            image_size=card.image_size,
            mean=_three(card.mean),
            std=_three(card.std),
        ),
    )
    examples = load_split(config, split)
    if examples.class_names != card.class_names:
        raise InputError(
            f"{config.data.source} has other classes than {name}: "
            f"{', '.join(examples.class_names[:5])}, ... and not "
            f"{', '.join(card.class_names[:5])}, ..."
        )
    setup = set_up(config, examples)
    return evaluate(setup, setup.replicas.replicate(pretrained.variables), examples)


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue
