"""The checkpoint from which a run resumes, the same on every host."""

from typing import Any

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
      InputError: if the checkpoint does not fit the run.
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
    return restored
