"""Evaluation of a run after the fact."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax

from shiftjax.errors import InputError
from train import config as config_file
from train.checkpointing import Checkpoints
from train.loop import CHECKPOINTS
from train.setup import evaluate, load_split, set_up


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
    state = setup.replicas.replicate(restored.state)
    return evaluate(setup, state, examples) | {"step": restored.step}
