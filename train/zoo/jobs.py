"""The runs of the zoo: their states, and a worker that trains the missing ones.

Each run is a process, `python -m train resume`, which locks its folder, so that no run
is started twice, even from another machine that shares the folder. A stopped run is
resumed, and a finished one is released at once. A run ends with its worker: its
standard input is a pipe from the worker, and it saves and stops when that is closed.
The runs may be in an object store, where the output of a run is written when it ends.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from shiftjax.errors import InputError
from shiftjax.releases import manifest
from train import config as config_file
from train import files
from train.exits import LOST
from train.logging.records import METRICS_FILE, read_metrics
from train.machine import cores
from train.stopping import StopRequest
from train.workdir import CHECKPOINTS, LOCK, holder
from train.zoo.entries import Entry, Root
from train.zoo.output import Output

State = Literal["released", "trained", "running", "stopped", "missing"]
STATES: tuple[State, ...] = ("released", "trained", "running", "stopped", "missing")
LOG = "log.txt"
POLL_SECONDS = 0.5
STORE_POLL_SECONDS = 5.0  # where a look at all runs takes many requests
SHOW_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class WorkerOptions:
    """The options of a worker.

    Attributes:
      root: the folder of the runs, also in a store.
      directory: the folder of the releases.
      data_dir: the folder of the TFDS data sets; None for the one that TFDS uses.
      minutes: the time limit; None to work until nothing is missing.
      jobs: the number of runs at the same time.
    """

    root: Root
    directory: Path
    data_dir: str | None = None
    minutes: float | None = None
    jobs: int = 1


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of the zoo.

    Attributes:
      entry: the network.
      seed: the seed of the run.
      state: one of `STATES`.
      epoch: the number of finished epochs.
      epochs: the number of all epochs.
      top1: on the test set if the run is finished, else in the last line of the log.
    """

    entry: Entry
    seed: int
    state: State
    epoch: float
    epochs: float
    top1: float | None


def look(entries: Sequence[Entry], options: WorkerOptions) -> list[Job]:
    """Returns the runs of some entries in the order of training, seed by seed."""
    there = (options.directory / manifest.FILE).exists()
    releases = manifest.read(options.directory) if there else {}
    ranks = range(max(len(entry.seeds) for entry in entries))
    pairs = [(e, e.seeds[i]) for i in ranks for e in entries if i < len(e.seeds)]
    return [
        _look(entry, seed, releases.get(entry.name), options) for entry, seed in pairs
    ]


def _look(
    entry: Entry, seed: int, release: manifest.Release | None, options: WorkerOptions
) -> Job:
    """Returns the state of one run, from its folder and its release."""
    epochs = entry.config(seed, options.root).epochs
    for run in release.runs if release else ():
        if run.seed == seed:
            return Job(entry, seed, "released", epochs, epochs, run.test["top1"])
    workdir = entry.workdir(seed, options.root)
    has_record = (workdir / METRICS_FILE).exists()
    records = read_metrics(workdir) if has_record else []
    last = records[-1] if records else {"split": "", "epoch": 0.0, "top1": None}
    begun = records or any(workdir.glob(f"{CHECKPOINTS}/[0-9]*"))
    state = "stopped" if begun else "missing"
    if last["split"] == "test":
        state = "trained"
    elif holder(workdir) is not None:
        state = "running"
    return Job(entry, seed, state, last["epoch"], epochs, last["top1"])


def show(jobs: Sequence[Job], console: Console) -> None:
    """Prints the state of each run, one line each, and their counts."""
    table = Table(title="the zoo")
    for heading in ("network", "seed", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("epoch", "top-1"):
        table.add_column(heading, justify="right")
    for job in jobs:
        top1 = "" if job.top1 is None else f"{100 * job.top1:.2f}"
        epoch = f"{job.epoch:.0f} / {job.epochs:.0f}"
        table.add_row(job.entry.name, str(job.seed), job.state, epoch, top1)
    console.print(table)
    counts = {state: sum(job.state == state for job in jobs) for state in STATES}
    console.print(", ".join(f"{n} {state}" for state, n in counts.items() if n))


@contextlib.contextmanager
def on_share(place: int, jobs: int) -> Iterator[None]:
    """Pins processes that are started in this context to one run's share of the cores.

    Runs that share all cores wait for each other's threads. Where the operating system
    has no affinity, nothing is pinned.

    Args:
      place: the position of the run, from 0.
      jobs: the number of runs at the same time.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    mine = cores()
    first = place % len(mine)
    os.sched_setaffinity(0, mine[first::jobs])
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


class ZooWorker:
    """Trains the missing runs of the zoo.

    Args:
      entries: the networks to train, in order.
      options: the options of the worker.
      console: the console for progress messages.
    """

    def __init__(
        self, entries: Sequence[Entry], options: WorkerOptions, console: Console
    ) -> None:
        self.entries = entries
        self.options = options
        self.console = console
        self.failed: list[str] = []
        self._running: dict[Root, tuple[Job, subprocess.Popen, Output]] = {}
        self._places: dict[Root, int] = {}  # positions of the runs, from 0
        self._awaited: set[Root] = set()  # runs of a worker that was killed
        self._tried: set[Root] = set()
        self._asked = False
        self._idle_until = 0.0  # by the clock, if nothing was left to start

    def work(self) -> None:
        """Trains until nothing is missing, the time is over, or a signal arrives.

        Raises:
          InputError: after the last run, if one of them failed.
        """
        minutes = self.options.minutes
        pause = (
            STORE_POLL_SECONDS if files.in_store(self.options.root) else POLL_SECONDS
        )
        end = time.monotonic() + (60 * minutes if minutes is not None else float("inf"))
        shown = time.monotonic()
        self._release_trained()
        with StopRequest() as stop:
            while True:
                self._collect()
                late = stop.signal is not None or time.monotonic() > end
                if late:
                    self._stop_all()
                elif len(self._running) < self.options.jobs:
                    self._start_some()
                if not self._running and (late or not self._awaited):
                    break
                if time.monotonic() - shown > SHOW_SECONDS:
                    shown = time.monotonic()
                    self._tell()
                time.sleep(pause)
        if self.failed:
            raise InputError(f"not trained: {'; '.join(self.failed)}")

    def _start_some(self) -> None:
        """Starts as many runs as are allowed, stopped runs first."""
        orphans = self._orphans()
        for workdir in orphans - self._awaited:
            self._print(f"{workdir}: its worker has ended, waiting for it to stop")
        ended, self._awaited = self._awaited - orphans, orphans
        if ended:
            self._release_trained()
        free = self.options.jobs - len(self._running) - len(orphans)
        if free <= 0 or (time.monotonic() < self._idle_until and not ended):
            return  # a look reads the logs of all runs
        todo = [
            job
            for job in look(self.entries, self.options)
            if job.state in ("stopped", "missing")
            and self._workdir(job) not in self._tried
        ]
        if not todo:  # until a run of another worker has stopped
            self._idle_until = time.monotonic() + SHOW_SECONDS
        for job in sorted(todo, key=lambda job: job.state == "missing"):
            if free <= 0:
                return
            workdir = self._workdir(job)
            self._tried.add(workdir)
            try:
                self._running[workdir] = (job, *self._start(job))
                free -= 1
            except InputError as error:
                self._fail(job, str(error))

    def _orphans(self) -> set[Root]:
        """Returns the folders of runs that still save after their worker was killed."""
        folders = {lock.parent for lock in self.options.root.glob(f"*/*/{LOCK}")}
        holders = {folder: holder(folder) for folder in folders}
        return {folder for folder, by in holders.items() if by and by.is_orphan()}

    def _workdir(self, job: Job) -> Root:
        return job.entry.workdir(job.seed, self.options.root)

    def _start(self, job: Job) -> tuple[subprocess.Popen, Output]:
        """Starts one run; returns its process and its output."""
        from train import release

        workdir = self._workdir(job)
        config = job.entry.config(job.seed, self.options.root)
        release.check_release(
            config, job.entry.tag, self.options.directory, recipe=job.entry.recipe
        )
        workdir.mkdir(parents=True, exist_ok=True)
        data = dataclasses.replace(config.data, data_dir=self.options.data_dir)
        config = dataclasses.replace(config, data=data)
        if (workdir / config_file.FILE).exists():
            changed = config_file.differences(config_file.load_config(workdir), config)
            if changed:
                raise InputError(f"{workdir} holds another run: {'; '.join(changed)}")
        config_file.save_config(config, workdir)
        self._say(f"{job.state} at epoch {job.epoch:.0f}: training", job)
        command = [sys.executable, "-m", "train", "resume", "--attached"]
        command += ["--workdir", str(workdir)]
        environment = dict(os.environ)
        if self.options.jobs > 1:  # else the first run would take all of a GPU's memory
            environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        taken = {self._places[other] for other in self._running}
        place = min(set(range(self.options.jobs)) - taken)
        self._places[workdir] = place
        output = Output(workdir / LOG)
        with on_share(place, self.options.jobs):
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output.file,
                stderr=output.file,
                env=environment,
                start_new_session=True,  # a signal to the group would stop it twice
            )
        return process, output

    def _collect(self) -> None:
        """Handles the runs that have ended, and releases the finished ones."""
        for workdir, (job, process, output) in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[workdir]
            self._idle_until = 0.0
            _hang_up(process)
            last = output.close()
            if code < 0 and not self._asked:
                self._fail(job, f"killed by {signal.Signals(-code).name}")
                continue
            if code == LOST and self._now(job).state not in ("stopped", "missing"):
                self._say("another process has begun it", job)
                continue
            if code > 0:
                self._fail(job, last)
                continue
            now = self._now(job)
            self._say(f"{now.state} at epoch {now.epoch:.0f}{_top1(now)}", job)
            if now.state == "trained":
                self._release(job.entry)

    def _fail(self, job: Job, reason: str) -> None:
        """Records that a run could not be trained; the others continue."""
        self.failed.append(f"{job.entry.name} seed {job.seed}: {reason}")
        self._say(f"failed: {reason}", job)

    def _release_trained(self) -> None:
        """Releases finished runs that are not released yet."""
        jobs = look(self.entries, self.options)
        for entry in dict.fromkeys(j.entry.name for j in jobs if j.state == "trained"):
            self._release(next(e for e in self.entries if e.name == entry))

    def _release(self, entry: Entry) -> None:
        """Releases an entry's finished runs, in a subprocess, which loads JAX."""
        jobs = look([entry], self.options)
        done = [str(self._workdir(job)) for job in jobs if job.state == "trained"]
        if not done:
            return  # another process has released them
        command = [sys.executable, "-m", "train", "release", "--workdir", *done]
        command += ["--tag", entry.tag, "--recipe", entry.recipe]
        command += ["--output", str(self.options.directory)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            self.failed.append(f"{entry.name}: {result.stderr.strip()}")
        self._print((result.stdout or result.stderr).strip())

    def _stop_all(self) -> None:
        """Asks all runs to save and stop, once."""
        if self._asked:
            return
        self._asked = True
        for job, process, _ in self._running.values():
            _hang_up(process)
            self._say("saving and stopping", job)

    def _now(self, job: Job) -> Job:
        """Returns the current state of a run."""
        jobs = look([job.entry], self.options)
        return next(new for new in jobs if new.seed == job.seed)

    def _tell(self) -> None:
        """Prints the progress of the running jobs."""
        for job, *_ in self._running.values():
            now = self._now(job)
            self._say(f"epoch {now.epoch:.1f} of {now.epochs:.0f}{_top1(now)}", job)

    def _say(self, text: str, job: Job) -> None:
        clock = time.strftime("%H:%M:%S")
        self._print(f"{clock}  {job.entry.name} seed {job.seed}: {text}")

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)


def _hang_up(process: subprocess.Popen) -> None:
    """Closes the pipe to a run, which makes it save and stop."""
    if process.stdin is not None:
        process.stdin.close()


def _top1(job: Job) -> str:
    return "" if job.top1 is None else f", top-1 {100 * job.top1:.2f}%"
