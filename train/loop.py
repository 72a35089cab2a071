"""The training loop: start or resume, step, record, evaluate, save, stop.

The loop never waits for a step that it has just dispatched: it fetches the sums one
dispatch late, and a background thread prepares the input of the next dispatch. It waits
only to evaluate and to save.
"""

import collections
import contextlib
import dataclasses
import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from rich.console import Console

from shiftjax.errors import InputError
from train import comparison, files, hosts
from train import config as config_file
from train.assemble import Setup, set_up
from train.checkpointing import Checkpoints
from train.config import Config
from train.data.examples import Examples
from train.data.placement import facts, training_items
from train.data.stream import Prefetch
from train.evaluation import evaluate_state
from train.logging import writers
from train.logging.console import Reporter, describe_metrics
from train.logging.profile import Profile
from train.logging.records import MetricsWriter, plot_curves, read_test
from train.logging.window import Dispatch, Instant, Window
from train.machine import note_start
from train.periods import every
from train.restoring import diverged, restore_newest
from train.state import TrainState
from train.steps import NEVER
from train.stopping import StopRequest
from train.tasks import load_split
from train.tasks.task import Introduced
from train.workdir import CHECKPOINTS, open_workdir

CURVES = "curves.png"
SAMPLE = "sample.png"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
      state: the last state, on the devices.
      steps: number of completed steps.
      finished: True if the run is complete; False if it was asked to stop.
      test: metrics of the test split, if finished.
    """

    state: TrainState
    steps: int
    finished: bool
    test: dict[str, float]


class Loop:
    """The loop of one run, from a state to the end.

    Args:
      setup: the parts of the run.
      reporter: displays the progress.
      writer: writes the metrics; None on all hosts but the first.
      checkpoints: saves the states.
      sums: sums of a line of metrics that was begun before the first step, if any.
      validation: the validation split, if there is one.
    """

    def __init__(
        self,
        setup: Setup,
        reporter: Reporter,
        writer: MetricsWriter | None,
        checkpoints: Checkpoints,
        sums: dict[str, float],
        validation: Examples | None = None,
    ) -> None:
        self.setup = setup
        self.reporter = reporter
        self.writer = writer
        self.checkpoints = checkpoints
        config, epoch = setup.config, setup.order.steps_per_epoch
        self._periods = {
            "log": float(config.log_steps),
            "evaluate": config.eval_epochs * epoch,
            "save": config.save_epochs * epoch,
        }
        self._validation = validation
        self._window = Window(sums)
        self._compiled: dict[str, float] = {}  # goes into the first line of the process
        self._profile = Profile(
            files.folder(config.workdir), config.profile if hosts.is_first() else None
        )
        self._saved = time.perf_counter()

    def run(self, state: TrainState, stop: StopRequest) -> TrainState:
        """Trains to the end or until asked to stop, and saves the last state."""
        setup, step = self.setup, int(state.step)
        begin = step
        data, fed = setup.on_devices(setup.train_set)
        length = setup.steps_per_dispatch

        def make(request: tuple[int, int]) -> Any:
            start, count = request
            steps = range(start, start + count)
            share = training_items(setup.order, steps, fed, length)
            return setup.replicas.split(share)

        prefetch = Prefetch(make, self._dispatches(step))
        in_flight: collections.deque[Dispatch] = collections.deque()

        def now() -> Instant:
            return Instant(time.perf_counter(), prefetch.waited)

        def batches() -> Iterator[Any]:
            """Yields the input, and saves before an error of it, which ends the run."""
            try:
                yield from prefetch
            except InputError:
                if jax.process_count() == 1:  # another process does not see the error
                    while in_flight:
                        self._collect(in_flight.popleft(), now)
                    self._pause(state, step, evaluate_=False, save=step > begin)
                raise

        try:
            for (start, count), batch in batches():
                arguments = (state, data, batch, np.int32(count))
                if start == begin:
                    self._compile(*arguments)
                self._window.start(now())
                self._profile.dispatch(start)
                state, sums = setup.train_steps(*arguments)
                step = start + count
                in_flight.append(Dispatch(step, sums))
                for dispatch in in_flight:
                    dispatch.note(now())
                last = step == setup.total_steps
                stopping = stop.reached() or last
                due = {name: self._due(name, start, step) for name in self._periods}
                due["evaluate"] |= last  # its epoch may end half a step later
                due["save"] |= due["log"] and self._is_long_ago()
                waits = stopping or due["evaluate"] or due["save"]
                while len(in_flight) > (0 if waits else 1):
                    self._collect(in_flight.popleft(), now)
                if waits:
                    self._window.stop()
                    self._pause(state, step, due["evaluate"], due["save"] or stopping)
                if stopping:
                    break
        finally:
            prefetch.close()
            self._profile.close()
        return state

    def _dispatches(self, step: int) -> Iterator[tuple[int, int]]:
        """Yields (first step, number of steps), cut where an action is due."""
        while step < self.setup.total_steps:
            ends = [every(period, step) for period in self._periods.values()]
            end = min(step + self.setup.steps_per_dispatch, self.setup.total_steps)
            count = min(end, *ends) - step
            yield step, count
            step += count

    def _due(self, name: str, start: int, step: int) -> bool:
        return every(self._periods[name], start) == step

    def _is_long_ago(self) -> bool:
        """Returns True, on all hosts, when the last save is too long ago."""
        minutes = self.setup.config.save_minutes
        if minutes is None:
            return False
        return hosts.agreed(time.perf_counter() - self._saved >= 60 * minutes)

    def _compile(self, *arguments: Any) -> None:
        """Compiles the program ahead of the first call, and measures the time."""
        began = time.perf_counter()
        self.setup.train_steps.lower(*arguments).compile()
        self._compiled = {"compile_seconds": time.perf_counter() - began}

    def _collect(self, dispatch: Dispatch, now: Callable[[], Instant]) -> None:
        """Fetches the sums of a dispatch, and writes a line if one is due."""
        step, sums = dispatch.step, jax.device_get(dispatch.sums)
        end = dispatch.end or now()
        if message := self._profile.end(step):
            self.reporter.message(message)
        if sums["bad_step"] != NEVER:
            raise diverged(int(sums["bad_step"]), self.checkpoints)
        self._window.add(sums, end)
        if every(self._periods["log"], step - 1) != step and (
            step != self.setup.total_steps
        ):
            return
        record = _line(self.setup, step, "train", self._window.means())
        record |= self._compiled
        self._compiled = {}
        record["learning_rate"] = np.asarray(self.setup.rate(step - 1)).item()
        self._write(record)
        self.reporter.advance(step, record)
        self._window = self._window.next()

    def _pause(self, state: TrainState, step: int, evaluate_: bool, save: bool) -> None:
        """Evaluates and saves, if due."""
        metrics: dict[str, float] = {}
        if evaluate_ and self._validation is not None:
            found = evaluate_state(self.setup, state, "validation", self._validation)
            metrics = found["validation"]
            epoch = self.setup.epoch(step)
            for split, means in found.items():
                self._write(_line(self.setup, step, split, means))
                self.reporter.message(
                    f"epoch {epoch:.1f}  {split} {describe_metrics(means)}"
                )
            self._show(state, self._validation)
        if save:
            if self.writer is not None:
                self.writer.flush()
            metadata = {
                "config": config_file.record(self.setup.config),
                "sums": self._window.sums,
                "examples": len(self.setup.train_set),
            }
            self.checkpoints.save(step, state, metadata, metrics)
            self._saved = time.perf_counter()

    def _show(self, state: TrainState, examples: Examples) -> None:
        """Saves a sample of what the network does, if the task draws one."""
        if self.writer is not None:
            image = self.setup.trainer.task.sample(state.variables, examples)
            if image is not None:
                drawn = io.BytesIO()
                image.save(drawn, format="PNG")
                workdir = files.folder(self.setup.config.workdir)
                files.write(workdir / SAMPLE, drawn.getvalue())

    def _write(self, record: dict[str, Any]) -> None:
        if self.writer is not None:
            self.writer.write(record)


def train(config: Config, reporter_console: Any = None) -> Outcome:
    """Trains, or resumes the run in the workdir, and evaluates on the test split.

    Args:
      config: the configuration of the run.
      reporter_console: the `rich.console.Console` that displays the run; None for
        standard output.

    Returns:
      The result.

    Raises:
      InputError: if an option or an input is invalid, or the loss is not finite.
    """
    config = config_file.absolute(config)
    hosts.first_does(lambda: writers.check_writers(config.log_to))
    setup = _set_up(config)
    validation = hosts.all_do(lambda: _load_validation(config))
    comparison.compare_facts(facts(setup.train_set, "training"))
    if validation is not None:
        comparison.compare_facts(facts(validation, "validation"))
    workdir = files.folder(config.workdir)
    with contextlib.ExitStack() as stack:
        lock = hosts.first_does(lambda: stack.enter_context(open_workdir(config)))
        if hosts.agreed(lock is not None):  # else the folder cannot be written
            hosts.check_shared(workdir)
        checkpoints = stack.enter_context(
            Checkpoints(
                workdir / CHECKPOINTS,
                keep_last=config.keep_last,
                keep_best=config.keep_best,
                best_metric=setup.trainer.task.best_metric,
                best_mode=setup.trainer.task.best_mode,
            )
        )
        stop = stack.enter_context(StopRequest())
        state, sums, messages = _start(setup, checkpoints)
        step = int(state.step)

        def open_log() -> MetricsWriter | None:
            if lock is None:  # a finished run, in a folder that cannot be written
                return None
            note_start(workdir, step, setup.replicas.all_devices)
            return stack.enter_context(
                MetricsWriter(
                    workdir,
                    resume_step=step,
                    keep_test=step == setup.total_steps and bool(read_test(workdir)),
                    log_to=config.log_to,
                )
            )

        writer = hosts.first_does(open_log)
        console = reporter_console if hosts.is_first() else Console(quiet=True)
        reporter = stack.enter_context(Reporter(setup.total_steps, step, console))
        if "tensorboard" in config.log_to and files.in_store(workdir):
            messages.append("TensorBoard events are written to local folders only")
        task = setup.trainer.task
        if isinstance(task, Introduced) and hosts.is_first():
            messages.append(task.introduction(state.variables, setup.train_set))
        for message in messages:
            reporter.message(message)
        loop = Loop(setup, reporter, writer, checkpoints, sums, validation)
        state = loop.run(setup.replicas.replicate(state), stop)
        step = int(state.step)
        finished = step == setup.total_steps
        checkpoints.wait()
        test = _finish(setup, state, writer, workdir) if finished else {}
    return Outcome(state, step, finished, test)


def _set_up(config: Config) -> Setup:
    """Builds the parts of a run, on every host or on none."""

    def build() -> Setup:
        setup = set_up(config)
        try:
            jax.eval_shape(setup.initial_state)  # raises if it cannot be built
        except InputError:  # a run that resumes does not need the weights of --init
            if not any(files.folder(config.workdir).glob(f"{CHECKPOINTS}/[0-9]*")):
                raise
            setup.template()
        return setup

    return hosts.all_do(build)


def _load_validation(config: Config) -> Examples | None:
    """Loads the validation split; returns None if no examples are held out."""
    if config.data.train_on != "train" or config.data.validation_examples == 0:
        return None
    return load_split(config, "validation")


def _start(
    setup: Setup, checkpoints: Checkpoints
) -> tuple[TrainState, dict[str, float], list[str]]:
    """Returns the newest or first state, the sums of its open line, and messages."""
    restored = restore_newest(setup, checkpoints, setup.template())
    config = setup.config
    where = (
        f"{config.model.name} on {len(setup.train_set):,} examples of "
        f"{config.data.source}, {setup.total_steps:,} steps of {config.batch_size} on "
        f"{setup.replicas.count} {setup.replicas.devices[0].platform} device(s)"
    )
    if restored is None:
        state = hosts.all_do(setup.initial_state)
        return state, {}, [f"{where}; in {config.workdir}"]
    resumed = f"resuming {config.workdir} at step {restored.step:,}"
    sums = restored.metadata.get("sums", {})
    return restored.state, sums, [where, *restored.skipped, resumed]


def _finish(
    setup: Setup, state: TrainState, writer: MetricsWriter | None, workdir: files.Folder
) -> dict[str, float]:
    """Evaluates on the test split, unless recorded already, and draws the curves."""
    recorded = (read_test(workdir) if hosts.is_first() else None) or {}
    if hosts.agreed(bool(recorded)):
        if writer is not None and not (workdir / CURVES).exists():
            _draw(setup, workdir)
        places = ("step", "epoch", "split")
        return {name: x for name, x in recorded.items() if name not in places}
    found = evaluate_state(setup, state, "test", load_split(setup.config, "test"))
    if writer is not None:
        for split, means in reversed(found.items()):  # the line of "test" is the last
            writer.write(_line(setup, setup.total_steps, split, means))
        writer.flush()  # the curves are drawn from the file
        _draw(setup, workdir)
    return found["test"]


def _line(
    setup: Setup, step: int, split: str, metrics: dict[str, float]
) -> dict[str, Any]:
    """Returns a line of the log: the place in the run, and the metrics of a split."""
    epoch = round(setup.epoch(step), 4)
    return {"step": step, "epoch": epoch, "split": split, **metrics}


def _draw(setup: Setup, workdir: files.Folder) -> None:
    """Draws the curves of a run."""
    plot_curves(workdir, workdir / CURVES, metric=setup.trainer.task.best_metric)
