"""A trace of a few steps, by JAX's profiler."""

import tempfile
from pathlib import Path

import jax

from train import files

FOLDER = "profile"
WARM_UP = 2  # dispatches before the trace


class Profile:
    """Traces the first steps after the warm-up of a process.

    Args:
      workdir: the folder of the run.
      steps: number of steps to trace, rounded up to whole dispatches; None for none.
    """

    def __init__(self, workdir: files.Folder, steps: int | None) -> None:
        self._folder, self._steps = workdir / FOLDER, steps
        self._dispatches = 0
        self._begin = self._end = 0
        self._traces: tempfile.TemporaryDirectory[str] | None = None

    def dispatch(self, step: int) -> None:
        """Starts the trace when it is due; called before each dispatch.

        Args:
          step: number of steps before this dispatch.
        """
        self._dispatches += 1
        if self._steps is not None and self._dispatches > WARM_UP:
            self._begin, self._end, self._steps = step, step + self._steps, None
            self._traces = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._traces.name)

    def end(self, step: int) -> str:
        """Ends the trace when it is due; called when the devices have ended a step.

        Args:
          step: number of completed steps.

        Returns:
          A message when it is written, else "".
        """
        if self._traces is None or step < self._end:
            return ""
        self.close()
        steps = f"steps {self._begin + 1:,} to {step:,}"
        return f"a profile of {steps} is in {self._folder}, for TensorBoard or xprof"

    def close(self) -> None:
        """Ends and writes the trace, if one has begun."""
        if self._traces is None:
            return
        jax.profiler.stop_trace()
        for path in sorted(Path(self._traces.name).rglob("*")):
            if path.is_file():
                target = self._folder / path.relative_to(self._traces.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                files.write(target, path.read_bytes())
        self._traces.cleanup()
        self._traces = None
