"""The checkpoints of a run: saving, keeping and verifying them.

Names, dtypes and shapes are compared before a state is loaded, sha256 hashes after. A
damaged step is skipped for the one before it, and renamed when the run saves again. An
intact state that does not fit this run is an error; no state is loaded in part.
"""

import dataclasses
import heapq
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, Self

import jax
from etils import epath

from shiftjax.errors import InputError, MissingFileError
from train.checkpointing.host import (
    PyTree,
    copy_to_host,
    host_template,
    restore_keys,
)
from train.checkpointing.manifest import (
    DamagedError,
    Manifest,
    difference,
    draft,
    seal,
    verify_arrays,
)
from train.checkpointing.store import StepStore

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Restored:
    """The contents of a checkpoint.

    Attributes:
      step: the number of updates.
      state: a tree like the template, with NumPy arrays and typed PRNG keys.
      metadata: as given to `Checkpoints.save`.
      metrics: as given to `Checkpoints.save`, the finite ones.
      skipped: a message for each newer step that was damaged and skipped.
    """

    step: int
    state: PyTree
    metadata: dict[str, Any]
    metrics: dict[str, float]
    skipped: tuple[str, ...] = ()


class Checkpoints:
    """The last few and the best few checkpoints of one run, in one directory.

    A checkpoint is one copy of the state, without a replica axis: it can be saved on
    one number of devices and restored on another. Several processes on a shared
    directory make the same calls with equal values.

    Args:
      directory: the directory, which is made if it does not exist.
      keep_last: the number of newest steps to keep, at least one.
      keep_best: the number of best steps to keep besides, if `best_metric` is given.
      best_metric: the name of the metric that ranks the steps.
      best_mode: "max" if the largest value is the best, "min" if the smallest is.

    Raises:
      InputError: if the directory cannot be made or an argument is out of range.

    Example:
      >>> import tempfile
      >>> state = {"bias": jax.numpy.arange(3.0), "rng": jax.random.key(0)}
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     with Checkpoints(directory) as checkpoints:
      ...         checkpoints.save(10, state, {"seed": 0}, {"top1": 0.9})
      ...         restored = checkpoints.restore(jax.eval_shape(lambda: state))
      >>> restored.step, restored.metadata, restored.state["bias"]
      (10, {'seed': 0}, array([0., 1., 2.], dtype=float32))
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep_last: int = 3,
        keep_best: int = 1,
        best_metric: str | None = None,
        best_mode: Literal["max", "min"] = "max",
    ) -> None:
        if keep_last < 1 or keep_best < 0:
            raise InputError(
                "keep_last must be at least 1 and keep_best at least 0, got "
                f"{keep_last} and {keep_best}"
            )
        self._keep_last, self._keep_best = keep_last, keep_best
        self._best_metric, self._best_mode = best_metric, best_mode
        self._scores: dict[int, float] = {}  # of the steps that have this metric
        self._store = StepStore(directory, self._kept)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._damaged: set[int] = set()
        self._inspected = False  # True if all steps on disk are known to be intact
        self._current: int | None = None  # the last step that was saved or restored

    def steps(self) -> list[int]:
        """Lists the steps on disk, oldest first, damaged ones included."""
        return self._store.steps()

    def save(
        self,
        step: int,
        state: PyTree,
        metadata: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Saves a step in the background; on return the state may be donated.

        Waits first for the previous save to finish. If the file system refused that
        one, this one is not in the background: it is on disk on return. Does nothing
        for the last step that was saved or restored.

        Args:
          step: the number of updates.
          state: a tree of arrays, typed PRNG keys and None.
          metadata: values that JSON can hold, such as the configuration.
          metrics: numbers that rank the steps; those that are not finite are left out.

        Raises:
          InputError: if neither the previous save nor this one could be written, or
            the directory already holds an intact checkpoint of this step. With several
            processes, if the previous save could not be written.
        """
        retries = self._previous_failed(step)
        if step == self._current:
            return
        if step in self.steps() and step not in self._damaged:
            raise InputError(
                f"{self._store.directory} already holds a checkpoint of step {step}: "
                "resume from the newest, remove the newer ones or use another directory"
            )
        manifest = draft(step, state, metadata, metrics or {})
        host = copy_to_host(state)
        if jax.process_count() == 1:
            self._pending = self._worker.submit(self._write, manifest, host)
        else:
            # Orbax's barriers between processes are collectives. Every process has to
            # start them in the same order: from this thread, between two steps.
            self._begin(manifest, host)
            self._pending = self._worker.submit(self._store.finish)
        self._current = step
        if retries:
            self.wait()

    def restore(self, template: PyTree, step: int | None = None) -> Restored | None:
        """Reads the newest intact checkpoint, or that of one step.

        Args:
          template: a tree like the state, of arrays or `jax.ShapeDtypeStruct`.
          step: the step to read; None for the newest intact one.

        Returns:
          The checkpoint, its arrays on the host, or None if the directory holds none.

        Raises:
          MissingFileError: if there is no checkpoint of that step.
          InputError: if the state in it has other names, shapes or dtypes than the
            template, or if every checkpoint is damaged.
        """
        self.wait()
        steps = self.steps()
        if step is not None and step not in steps:
            raise MissingFileError(
                f"no checkpoint of step {step} in {self._store.directory} "
                f"(there: {', '.join(map(str, steps)) or 'none'})"
            )
        skipped: list[str] = []
        for candidate in reversed(steps if step is None else [step]):
            try:
                restored = self._read(candidate, template)
            except DamagedError as error:
                self._damaged.add(candidate)
                self._inspected = False
                skipped.append(f"checkpoint of step {candidate} is damaged: {error}")
            else:
                self._current = candidate
                return dataclasses.replace(restored, skipped=tuple(skipped))
        if skipped:
            advice = "" if step else "; move the directory away to start again"
            raise InputError(
                f"nothing to restore in {self._store.directory}: {'; '.join(skipped)}"
                f"{advice}"
            )
        return None

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
          InputError: if the file system refused it.
        """
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                pending.result()
        except Exception:
            self._current = None  # the caller may save this step again
            raise

    def close(self) -> None:
        """Waits for the last save and ends the background threads."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except InputError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # the first error is raised

    def _previous_failed(self, step: int) -> bool:
        """Waits for the previous save; returns True if `step` is to take its place."""
        try:
            self.wait()
        except InputError as error:
            if jax.process_count() > 1:  # the others may not have failed
                raise
            _LOG.warning("%s; step %d is saved instead", error, step)
            return True
        return False

    def _write(self, manifest: Manifest, host: PyTree) -> None:
        """Writes a step."""
        self._begin(manifest, host)
        self._store.finish()

    def _begin(self, manifest: Manifest, host: PyTree) -> None:
        """Starts to write a step, after an inspection of the others on disk."""
        if not self._inspected:
            self._inspect()
        self._rank(manifest)
        self._store.begin(seal(manifest, host), host)

    def _inspect(self) -> None:
        """Renames damaged steps and ranks the others."""
        self._scores.clear()
        for step in self.steps():
            try:
                self._rank(self._store.read_manifest(step))
            except DamagedError:
                self._damaged.add(step)
        while self._damaged:
            self._store.set_aside(self._damaged.pop())
        self._inspected = True

    def _rank(self, manifest: Manifest) -> None:
        """Records the score of a step."""
        value = manifest["metrics"].get(self._best_metric)
        if value is not None:
            sign = 1 if self._best_mode == "max" else -1
            self._scores[manifest["step"]] = sign * value

    def _kept(self, steps: list[int]) -> set[int]:
        """Chooses the steps to keep: the last and the best; of equal ones the newer."""
        scored = [(self._scores[step], step) for step in steps if step in self._scores]
        best = heapq.nlargest(self._keep_best, scored)
        return {*steps[-self._keep_last :], *(step for _, step in best)}

    def _read(self, step: int, template: PyTree) -> Restored:
        """Reads a step, compares it with the template and verifies it."""
        manifest = self._store.read_manifest(step)
        if unlike := difference(manifest, template):
            raise InputError(
                f"the checkpoint of step {step} in {self._store.directory} does not "
                f"fit this run's state: {unlike}"
            )
        arrays = self._store.read_state(step, host_template(template))
        verify_arrays(manifest, arrays)
        state = restore_keys(template, arrays)
        return Restored(step, state, manifest["metadata"], manifest["metrics"])
