"""Works off the list of the zoo: what is done, running and missing, and training it.

A run is a process of its own, `python -m train resume`, which holds a lock on its
folder: none is started twice, from whatever machine shares the folder. What is stopped
goes on where it was; what is finished is released at once. It ends with this process,
whose pipe is its standard input: when that is closed, it saves its state and stops.
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
from train.logging.records import METRICS_FILE, read_metrics
from train.machine import cores
from train.stopping import StopRequest
from train.workdir import CHECKPOINTS, LOCK, holder
from train.zoo.entries import Entry

State = Literal["released", "trained", "running", "stopped", "missing"]
STATES: tuple[State, ...] = ("released", "trained", "running", "stopped", "missing")
LOG = "log.txt"
POLL_SECONDS = 0.5
SHOW_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Options:
    """How to work.

    Attributes:
      root: folder of the runs.
      directory: folder of the releases.
      data_dir: where TFDS data sets are; None for where TFDS looks itself.
      minutes: how long to work; None for as long as something is missing.
      jobs: runs side by side.
    """

    root: Path
    directory: Path
    data_dir: str | None = None
    minutes: float | None = None
    jobs: int = 1


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of the zoo.

    Attributes:
      entry: the network.
      seed: of the run.
      state: how far it is.
      epoch: epochs done.
      epochs: epochs in all.
      top1: on the test set if it is finished, else of the last steps of training.
    """

    entry: Entry
    seed: int
    state: State
    epoch: float
    epochs: float
    top1: float | None


def look(entries: Sequence[Entry], options: Options) -> list[Job]:
    """Returns all runs of some entries, in the order of training: each seed in turn."""
    there = (options.directory / manifest.FILE).exists()
    releases = manifest.read(options.directory) if there else {}
    ranks = range(max(len(entry.seeds) for entry in entries))
    pairs = [(e, e.seeds[i]) for i in ranks for e in entries if i < len(e.seeds)]
    return [
        _look(entry, seed, releases.get(entry.name), options) for entry, seed in pairs
    ]


def _look(
    entry: Entry, seed: int, release: manifest.Release | None, options: Options
) -> Job:
    """Finds out how far one run is."""
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
    """Prints how far the zoo is, a line for each run."""
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
    """Starts processes on one run's share of the cores, where the system can.

    Runs that share all cores wait for each other's threads.

    Args:
      place: of the run, from 0.
      jobs: how many runs there are side by side.
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


class Worker:
    """Trains what is missing.

    Args:
      entries: what to train, in order.
      options: how.
      console: what it is shown on.
    """

    def __init__(
        self, entries: Sequence[Entry], options: Options, console: Console
    ) -> None:
        self.entries = entries
        self.options = options
        self.console = console
        self.failed: list[str] = []
        self._running: dict[Path, tuple[Job, subprocess.Popen]] = {}
        self._places: dict[Path, int] = {}  # of runs, from 0
        self._awaited: set[Path] = set()  # runs of a worker that was killed
        self._tried: set[Path] = set()
        self._asked = False

    def work(self) -> None:
        """Trains until nothing is missing, the time is over, or a signal comes.

        Raises:
          InputError: after the last run, if one of them failed.
        """
        minutes = self.options.minutes
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
                time.sleep(POLL_SECONDS)
        if self.failed:
            raise InputError(f"not trained: {'; '.join(self.failed)}")

    def _start_some(self) -> None:
        """Starts runs, as many as are allowed, those that were under way first."""
        orphans = self._orphans()
        for workdir in orphans - self._awaited:
            self._print(f"{workdir}: its worker has ended, and it will soon")
        ended, self._awaited = self._awaited - orphans, orphans
        if ended:
            self._release_trained()
        todo = [
            job
            for job in look(self.entries, self.options)
            if job.state in ("stopped", "missing")
            and self._workdir(job) not in self._tried
        ]
        free = self.options.jobs - len(self._running) - len(orphans)
        for job in sorted(todo, key=lambda job: job.state == "missing"):
            if free <= 0:
                return
            workdir = self._workdir(job)
            self._tried.add(workdir)
            try:
                self._running[workdir] = (job, self._start(job))
                free -= 1
            except InputError as error:
                self._fail(job, str(error))

    def _orphans(self) -> set[Path]:
        """Returns the folders of runs whose worker was killed and that still save."""
        folders = {lock.parent for lock in self.options.root.glob(f"*/*/{LOCK}")}
        holders = {folder: holder(folder) for folder in folders}
        return {folder for folder, by in holders.items() if by and by.is_orphan()}

    def _workdir(self, job: Job) -> Path:
        return job.entry.workdir(job.seed, self.options.root)

    def _start(self, job: Job) -> subprocess.Popen:
        """Starts one run."""
        from train import release

        workdir = self._workdir(job)
        config = job.entry.config(job.seed, self.options.root)
        release.check(
            config, job.entry.tag, self.options.directory, recipe=job.entry.recipe
        )
        workdir.mkdir(parents=True, exist_ok=True)
        data = dataclasses.replace(config.data, data_dir=self.options.data_dir)
        config = dataclasses.replace(config, data=data)
        if (workdir / config_file.FILE).exists():
            changed = config_file.differences(config_file.load(workdir), config)
            if changed:
                raise InputError(f"{workdir} holds another run: {'; '.join(changed)}")
        config_file.save(config, workdir)
        self._say(f"{job.state} at epoch {job.epoch:.0f}: training", job)
        command = [sys.executable, "-m", "train", "resume", "--attached"]
        command += ["--workdir", str(workdir)]
        environment = dict(os.environ)
        if self.options.jobs > 1:  # else the first would take all of a GPU's memory
            environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        taken = {self._places[other] for other in self._running}
        place = min(set(range(self.options.jobs)) - taken)
        self._places[workdir] = place
        with (workdir / LOG).open("a") as log, on_share(place, self.options.jobs):
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # a signal to all would stop it twice
            )

    def _collect(self) -> None:
        """Notes which runs have ended, and releases those that are finished."""
        for workdir, (job, process) in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[workdir]
            _hang_up(process)
            if code < 0 and not self._asked:
                self._fail(job, f"killed by {signal.Signals(-code).name}")
                continue
            if code > 0:
                lines = (workdir / LOG).read_text().strip().splitlines() or [""]
                self._fail(job, lines[-1])
                continue
            now = self._now(job)
            self._say(f"{now.state} at epoch {now.epoch:.0f}{_top1(now)}", job)
            if now.state == "trained":
                self._release(job.entry)

    def _fail(self, job: Job, why: str) -> None:
        """Notes that a run could not be trained; the others go on."""
        self.failed.append(f"{job.entry.name} seed {job.seed}: {why}")
        self._say(f"failed: {why}", job)

    def _release_trained(self) -> None:
        """Releases what was trained before and not released."""
        jobs = look(self.entries, self.options)
        for entry in dict.fromkeys(j.entry.name for j in jobs if j.state == "trained"):
            self._release(next(e for e in self.entries if e.name == entry))

    def _release(self, entry: Entry) -> None:
        """Releases finished runs, in a process of its own, which loads JAX."""
        jobs = look([entry], self.options)
        done = [str(self._workdir(job)) for job in jobs if job.state == "trained"]
        if not done:
            return  # another process has done it
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
        for job, process in self._running.values():
            _hang_up(process)
            self._say("asked to save and stop", job)

    def _now(self, job: Job) -> Job:
        """Looks how far a run is now."""
        jobs = look([job.entry], self.options)
        return next(new for new in jobs if new.seed == job.seed)

    def _tell(self) -> None:
        """Prints how far the running ones are."""
        for job, _ in self._running.values():
            now = self._now(job)
            self._say(f"epoch {now.epoch:.1f} of {now.epochs:.0f}{_top1(now)}", job)

    def _say(self, text: str, job: Job) -> None:
        clock = time.strftime("%H:%M:%S")
        self._print(f"{clock}  {job.entry.name} seed {job.seed}: {text}")

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)


def _hang_up(process: subprocess.Popen) -> None:
    """Closes the pipe to a run, which then saves and stops."""
    if process.stdin is not None:
        process.stdin.close()


def _top1(job: Job) -> str:
    return "" if job.top1 is None else f", top-1 {100 * job.top1:.2f}%"
