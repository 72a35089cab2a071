"""Steps in a directory, written and read by Orbax; the only module that imports it.

Orbax writes steps atomically, removes the remains of killed saves, and deletes the
steps that are not kept. It does not notice a flipped byte, casts dtypes silently, and
takes an empty directory for a checkpoint; `manifest` and `checkpoints` detect these. A
step has two parts: `state`, the arrays, and `manifest`.
"""

import contextlib
import dataclasses
import gc
import itertools
import logging
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence

from etils import epath
from orbax.checkpoint import v1

from shiftjax.errors import InputError
from train.checkpointing.host import PyTree
from train.checkpointing.manifest import DamagedError, Manifest, verify_manifest

COMMITTED = "commit_success.txt"  # Orbax's mark of a whole step in an object store
READ_PAUSES = (1.0, 5.0, 0.1)  # seconds after each read of a store that has failed


class StepStore:
    """The steps in one directory.

    Its methods are called from one thread at a time, and equally by every process.

    Args:
      directory: the directory, which is made if it does not exist.
      keep: called with the steps in rising order; returns those to keep.

    Raises:
      InputError: if the directory cannot be made.
    """

    def __init__(
        self, directory: epath.PathLike, keep: Callable[[list[int]], set[int]]
    ) -> None:
        self.directory = epath.Path(directory)
        self._in_store = "://" in str(directory)
        if not self._in_store:  # else it would become a local path
            self.directory = self.directory.expanduser().absolute()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._explained(error) from error
        self._policy = _PreservationPolicy(keep)
        self._context = _orbax_context()
        self._writer: v1.training.Checkpointer | None = None
        self._begun: v1.AsyncResponse[bool] | None = None  # a save

    def steps(self) -> list[int]:
        """Lists the steps, oldest first, damaged ones included."""
        try:
            paths = [path for path in self.directory.iterdir() if path.is_dir()]
        except OSError as error:
            if self._in_store and isinstance(error, FileNotFoundError):
                return []  # a store has no empty folders
            raise self._explained(error) from error
        steps = [path for path in paths if re.fullmatch(r"0|[1-9]\d*", path.name)]
        if self._in_store:  # where Orbax cannot rename a step when it is written
            steps = [path for path in steps if (path / COMMITTED).exists()]
        return sorted(int(path.name) for path in steps)

    def begin(self, manifest: Manifest, host: PyTree) -> None:
        """Starts to write a step, which must not exist yet.

        Args:
          manifest: a manifest returned by `seal`.
          host: the state's arrays, which must not change until `finish` returns.

        Raises:
          InputError: if the file system refuses it.
        """
        try:
            if self._writer is None:
                self._writer = v1.training.Checkpointer(
                    self.directory,
                    context=self._context,
                    preservation_policy=self._policy,
                    cleanup_tmp_directories=True,
                )
            self._begun = self._writer.save_checkpointables_async(
                manifest["step"],
                {"state": host, "manifest": manifest},
                force=True,
            )
        except Exception as error:
            raise self._explained(error) from error

    def finish(self) -> None:
        """Waits until the step is written and superseded steps are deleted.

        Raises:
          InputError: if the file system refuses it.
        """
        begun, self._begun = self._begun, None
        try:
            if begun is not None:
                begun.result()  # which alone ends the thread of this save
            if self._writer is not None:
                self._writer.wait()
        except Exception as error:
            raise self._explained(error) from error

    def read_manifest(self, step: int) -> Manifest:
        """Reads a step's manifest.

        Args:
          step: one of `steps`.

        Returns:
          The manifest, verified.

        Raises:
          DamagedError: if it is missing, or differs from what was written.
        """
        manifest = self._load(step, "manifest")
        verify_manifest(manifest)
        return manifest

    def read_state(self, step: int, template: PyTree) -> PyTree:
        """Reads a step's arrays, which are not verified.

        Args:
          step: one of `steps`.
          template: a tree of NumPy arrays of the dtypes and shapes in the manifest.

        Returns:
          The tree with the stored arrays.

        Raises:
          DamagedError: if they cannot be read.
        """
        return self._load(step, "state", template)

    def set_aside(self, step: int) -> None:
        """Renames a step to `STEP.corrupt`, so that its number is free again."""
        self.close()  # the writer would still list this step
        if v1.multihost.is_primary_host(0):
            names = (f"{step}.corrupt{n or ''}" for n in itertools.count())
            paths = (self.directory / name for name in names)
            free = next(path for path in paths if not path.exists())
            (self.directory / str(step)).rename(free)

    def close(self) -> None:
        """Ends Orbax's threads."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _load(self, step: int, part: str, template: PyTree = None) -> PyTree:
        """Loads one part of a step; in a store again if the first reads fail."""
        path, reason = self.directory / str(step), ""
        with _without_echoes():
            for pause in READ_PAUSES if self._in_store else READ_PAUSES[-1:]:
                try:
                    with self._context:
                        return v1.load_checkpointables(path, {part: template})[part]
                except Exception as error:  # its type depends on the damaged file
                    cause: BaseException = error
                    while cause.__cause__ is not None:  # which the others only wrap
                        cause = cause.__cause__
                    reason = f"{type(cause).__name__}: {cause}"
                gc.collect()  # abandoned reads, which the traceback kept alive
                time.sleep(pause)
        raise DamagedError(f"its {part} is broken ({textwrap.shorten(reason, 160)})")

    def _explained(self, error: Exception) -> Exception:
        """Converts an error of the file system to one sentence; keeps other errors."""
        self._writer = None  # the writer would raise the error again at each call
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        elif code := re.search(r"os_error_code='(\d+)'", str(error)):  # tensorstore's
            reason = os.strerror(int(code[1]))
        else:
            return error
        return InputError(f"cannot keep checkpoints in {self.directory}: {reason}")


@dataclasses.dataclass(frozen=True)
class _PreservationPolicy:
    """An adapter of `StepStore`'s `keep` to Orbax.

    Orbax's own policy for the best steps reads the unverified metrics of each step when
    it opens a directory, and crashes on a damaged file.
    """

    keep: Callable[[list[int]], set[int]]

    def should_preserve(
        self,
        checkpoints: Sequence[v1.training.CheckpointMetadata],
        *,
        context: v1.training.preservation_policies.PreservationContext,
    ) -> list[bool]:
        """Returns True for each step to keep."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = self.keep(sorted(steps))
        return [step in kept for step in steps]


def _orbax_context() -> v1.Context:
    """Builds Orbax's context, and filters its log."""
    # Orbax logs each failure about eight times with its traceback, and also raises it.
    logging.getLogger("absl").addFilter(_quiet)
    registry = v1.handlers.local_registry()
    # Without this handler, Orbax may take the dict for a tree of arrays.
    registry.add(v1.handlers.JsonHandler, checkpointable_name="manifest")
    context = v1.Context()
    context.checkpointables.registry = registry
    context.memory.deepcopy_host_arrays = False  # they are already copies
    return context


def _quiet(entry: logging.LogRecord) -> bool:
    """Passes Orbax's warnings, and all log entries of other packages."""
    return "orbax" not in entry.pathname or entry.levelno == logging.WARNING


@contextlib.contextmanager
def _without_echoes() -> Iterator[None]:
    """Silences the reads that Orbax abandons when another one fails.

    Each of them reports, with a traceback, that it failed too or that its event loop is
    closed.
    """
    log, hook = logging.getLogger("asyncio"), sys.unraisablehook

    def is_other(entry: logging.LogRecord) -> bool:
        return "never retrieved" not in entry.getMessage()

    def report_others(unraisable: "sys.UnraisableHookArgs") -> None:
        if "loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    log.addFilter(is_other)
    sys.unraisablehook = report_others
    try:
        yield
    finally:
        log.removeFilter(is_other)
        sys.unraisablehook = hook
