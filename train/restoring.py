"""The checkpoint from which a run resumes: of one step, also after a divergence."""

from typing import Any

from shiftjax.errors import InputError
from train import coordination, hosts
from train.assemble import Setup
from train.checkpointing import Checkpoints, Restored
from train.exits import TemporaryError


def restore_newest(
    setup: Setup, checkpoints: Checkpoints, template: Any
) -> Restored | None:
    """Reads the newest intact checkpoint of a run, on every host.

    Args:
      setup: the parts of the run.
      checkpoints: the checkpoints of the run.
      template: a tree like the state, of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      The checkpoint, or None for a new run.

    Raises:
      InputError: if the checkpoint does not fit the run, or its data have changed.
      TemporaryError: if the hosts have read different steps. A host that cannot read
        the newest one for a moment takes an older one.
    """
    restored = hosts.all_do(lambda: checkpoints.restore(template))
    steps = coordination.exchange("none" if restored is None else str(restored.step))
    if len(set(steps)) > 1:
        raise TemporaryError(
            f"the processes read the checkpoints of different steps in "
            f"{setup.config.workdir}: {', '.join(steps)}; start the run again"
        )
    if restored is not None:
        _check_data(setup, restored)
    return restored


def diverged(step: int, checkpoints: Checkpoints) -> InputError:
    """Builds the error for a run whose loss or update is not finite.

    Args:
      step: the first such step.
      checkpoints: the checkpoints of the run, of which one may still be written.
    """
    failure = ""
    try:
        checkpoints.wait()
    except InputError as error:
        failure = f" ({error})"
    saved = max(checkpoints.steps(), default=None)
    saved_text = "no checkpoint was saved yet"
    if saved is not None:
        saved_text = f"the last checkpoint, of step {saved}, is kept"
    return InputError(
        f"step {step} diverged, its loss or its update is not finite; {saved_text}"
        f"{failure}: try a lower --schedule.learning-rate or --optimizer.clip-norm 1"
    )


def _check_data(setup: Setup, restored: Restored) -> None:
    """Raises InputError if the run began with another number of training examples.

    The order of the examples, the splits and the number of steps depend on it.
    """
    now, config = len(setup.train_set), setup.config
    before = restored.metadata.get("examples", now)  # earlier versions saved none
    if before != now:
        raise InputError(
            f"{config.data.source} has {now:,} training examples, and the run in "
            f"{config.workdir} began with {before:,}: it can resume on the same "
            "examples only; begin another run in another --workdir"
        )
