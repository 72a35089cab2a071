"""Kills a run of two processes again and again, and checks that nothing is lost.

`python -m tests.soak --kills 200` trains a small network in two processes. It kills one
of them or both, while they start, train or save, and gives the same command again. Each
start has to resume at the newest checkpoint, and each process that loses the other one
has to end in time. At the end the metrics must have each step once, and they and the
checkpoints must have the same bits as those of a run that was never killed. The exit
code is 1 if one of these does not hold.

With `--folder`, the same command continues a soak that was stopped itself.
"""

import dataclasses
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import tyro

from tests.train.processes import free_port
from tests.train.runs import EPOCH, checkpoint, lines, raw, saved_steps
from train.exits import LOST
from train.logging.records import METRICS_FILE
from train.machine import STARTS, starts
from train.workdir import CHECKPOINTS

ROOT = Path(__file__).parents[1]

CONNECT_SECONDS = 40  # that a process waits for the other one
END_SECONDS = 45  # from the loss of a process to the end of the other: docs/pods.md
MOST_SECONDS = 1200  # until a moment comes
POLL_SECONDS = 0.01

MOMENTS = ("starting", "training", "saving")
VICTIMS = {"first": (0,), "second": (1,), "both": (0, 1)}

HEADS = (
    "killed while",
    "process",
    "kills",
    "restarts",
    "seconds to the end of the other: median, most",
    "half-written checkpoints",
    "resumed at the newest checkpoint",
)

SAVE_STEPS = 5
STEPS_PER_KILL = 3 * SAVE_STEPS  # more than pass between two kills

# 40 examples in batches of 16: an epoch is 2.5 steps.
COMMAND = (
    "-m train digits --model.name shiftresnet20 --model.overrides depth 8 expansion 1 "
    "--model.no-sync-batch-norm --data.image-size 8 --data.validation-examples 1397 "
    "--batch-size 16 "
    f"--schedule.learning-rate 0.01 --log-steps 1 --save-epochs {SAVE_STEPS / EPOCH} "
    "--eval-epochs 20 --keep-last 2 --no-tensorboard "
    f"--hosts.count 2 --hosts.timeout {CONNECT_SECONDS}"
)

# The programs are compiled quickly, and once.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    "PYTHONPATH": str(ROOT),
}


@dataclasses.dataclass
class Kill:
    """A kill, planned and measured.

    Attributes:
      moment: what the run does at that time, one of `MOMENTS`.
      victims: which processes are killed, one of `VICTIMS`.
      delay: when within the moment: 0 for its begin, 1 for its end.
      ended: seconds from the kill to the end of both processes.
      torn: True if it left a checkpoint that was not completely written.
      restarts: number of starts until the run had resumed.
      resumed: True if it resumed at the newest checkpoint.
    """

    moment: str
    victims: str
    delay: float
    ended: float = 0.0
    torn: bool = False
    restarts: int = 0
    resumed: bool = False


def plan(count: int, seed: int) -> list[Kill]:
    """Returns kills, all kinds of them equally often and in random order."""
    draw = random.Random(seed)

    def endless() -> Iterator[Kill]:
        while True:
            kinds = list(itertools.product(MOMENTS, VICTIMS))
            for moment, victims in draw.sample(kinds, len(kinds)):
                yield Kill(moment, victims, draw.random())

    return list(itertools.islice(endless(), count))


class Run:
    """A run of two processes that are started again and again, and watched.

    Args:
      workdir: its folder.
      command: its command, without the options of a folder and of a host.

    Attributes:
      workdir: its folder.
      faults: what was wrong, in words.
      kills: those that were made.
    """

    def __init__(self, workdir: Path, command: list[str]) -> None:
        self.workdir = workdir
        self.faults: list[str] = []
        self.kills: list[Kill] = []
        self._command = [*command, "--workdir", str(workdir)]
        self._command += ["--hosts.coordinator", f"localhost:{free_port()}"]
        self._processes: list[subprocess.Popen] = []
        self._starts = 0  # that the run has noted before this one
        self._newest = 0  # the step of the newest checkpoint that was ever seen
        self._pending: list[Kill] = []  # those since the run was last resumed

    def start(self) -> float:
        """Gives the command on both hosts, and returns the time."""
        began, self._starts = time.monotonic(), self._noted()
        for kill in self._pending:
            kill.restarts += 1
        environment = os.environ | ENVIRONMENT
        environment["SHIFTJAX_CACHE"] = str(self.workdir.with_name("cache"))
        self._processes = []
        for index in range(2):
            with self._output(index).open("w") as output:
                process = subprocess.Popen(
                    [*self._command, "--hosts.index", str(index)],
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            self._processes.append(process)
        return began

    def until(self, moment: Callable[[], bool], seconds: float = MOST_SECONDS) -> bool:
        """Watches the run; returns False if a moment does not come before its end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.has_ended():
            self.look()
            if moment():
                return True
            time.sleep(POLL_SECONDS)
        return False

    def write_record(self) -> None:
        """Writes the kills and the faults, for a later `read_record`."""
        kills = [dataclasses.asdict(kill) for kill in self.kills]
        path = self._record()
        new = path.with_suffix(".new")
        new.write_text(json.dumps({"kills": kills, "faults": self.faults}))
        new.replace(path)

    def read_record(self) -> None:
        """Reads what `write_record` has written, if anything."""
        if self._record().exists():
            record = json.loads(self._record().read_text())
            self.kills = [Kill(**fields) for fields in record["kills"]]
            self.faults = record["faults"]
            self._pending = [kill for kill in self.kills if not kill.resumed]

    def look(self) -> None:
        """Checks that no checkpoint is lost, and where the run was resumed."""
        steps = [int(name) for name in self._checkpoints() if name.isdigit()]
        newest, before = max(steps, default=0), self._newest
        if newest < before:
            self.faults.append(f"checkpoint {before} is lost, {newest} is left")
        if self._pending and self.has_begun():
            step = starts(self.workdir)[-1]["step"]
            if step != before:
                self.faults.append(f"resumed at {step}, not at checkpoint {before}")
            for kill in self._pending:
                kill.resumed = step == before
            self._pending = []
        self._newest = newest

    def has_begun(self) -> bool:
        """Returns True if this start has begun or resumed the run."""
        return self._noted() > self._starts

    def has_ended(self) -> bool:
        """Returns True if both processes have ended."""
        return all(process.poll() is not None for process in self._processes)

    def step(self) -> int:
        """Returns the last step in the metrics; 0 without any."""
        path = self.workdir / METRICS_FILE
        data = path.read_bytes() if path.exists() else b""
        line = data[: data.rfind(b"\n") + 1].strip().rpartition(b"\n")[2]
        return json.loads(line)["step"] if line else 0

    def is_saving(self) -> bool:
        """Returns True if a checkpoint is not completely written."""
        return any("tmp" in name for name in self._checkpoints())

    def strike(self, kill: Kill, start_seconds: float) -> None:
        """Starts the run, kills processes of it and waits for the others.

        Args:
          kill: the kill that is planned. Its measurements are added to it.
          start_seconds: the time that a start takes.
        """
        began = self.start()
        if kill.moment == "starting":
            wait = kill.delay * start_seconds
            came = self.until(lambda: time.monotonic() > began + wait)
        else:
            came = self.until(self.has_begun)
            step = self.step() + 1 + int(kill.delay * SAVE_STEPS)
            came = came and self.until(lambda: self.step() >= step)
            if kill.moment == "saving":
                came = came and self.until(self.is_saving)
                time.sleep(kill.delay * 0.1)
        if not came:
            self.end(0, {})
            self.faults.append(f"the run ended before a kill while {kill.moment}")
            return
        struck = time.monotonic()
        victims = VICTIMS[kill.victims]
        for index in victims:
            self._processes[index].kill()
        # One that waits for the other to connect ends only when that is too late.
        seconds = END_SECONDS + CONNECT_SECONDS * (kill.moment == "starting")
        codes = {i: -signal.SIGKILL if i in victims else LOST for i in range(2)}
        self.end(seconds, codes)
        kill.ended = time.monotonic() - struck
        kill.torn = self.is_saving()
        self.kills.append(kill)
        self._pending.append(kill)

    def end(self, seconds: float, codes: dict[int, int]) -> None:
        """Waits for the end of both processes.

        Args:
          seconds: the time in which they have to end. Then they are killed.
          codes: the exit code that each of them must have; 0 for those not in it.
        """
        self.until(lambda: False, seconds)
        for index, process in enumerate(self._processes):
            if process.poll() is None:
                self.faults.append(f"process {index} lived for {seconds:.0f} s more")
                process.kill()
            code = process.wait()
            if code != codes.get(index, 0):
                said = self._output(index).read_text()[-2000:]
                self.faults.append(f"process {index} ended with {code}: {said}")
        self.look()

    def _noted(self) -> int:
        """Returns the number of starts that the run has noted."""
        path = self.workdir / STARTS
        return path.read_text().count("\n") if path.exists() else 0

    def _checkpoints(self) -> list[str]:
        """Returns the names in the folder of checkpoints."""
        folder = self.workdir / CHECKPOINTS
        return os.listdir(folder) if folder.exists() else []

    def _record(self) -> Path:
        return self.workdir.with_name(f"{self.workdir.name}-kills.json")

    def _output(self, index: int) -> Path:
        return self.workdir.with_name(f"{self.workdir.name}-{index}.txt")


def differences(whole: Path, killed: Path, logged: Sequence[int]) -> list[str]:
    """Compares the folder of a run that was killed with that of one that was not.

    Args:
      whole: the folder of the run that was not killed.
      killed: the folder of the other one.
      logged: the steps that the metrics of both must have, each of them once.

    Returns:
      The differences, in words.
    """
    found = []
    trained = [line["step"] for line in lines(str(killed), "train")]
    if trained != list(logged):
        found.append(f"the metrics have gaps or duplicates: {trained}")
    if lines(str(whole)) != lines(str(killed)):
        found.append("the metrics differ")
    kept, others = saved_steps(str(whole)), saved_steps(str(killed))
    if kept != others:
        found.append(f"other checkpoints are kept: {others}, not {kept}")
    for step in set(kept) & set(others):
        if raw(checkpoint(str(whole), step)) != raw(checkpoint(str(killed), step)):
            found.append(f"checkpoint {step} has other bits")
    for folder in ("", CHECKPOINTS):
        names = [set(os.listdir(run / folder)) for run in (whole, killed)]
        if remains := names[1] - names[0] - set(map(str, others)):
            found.append(f"files are left: {sorted(remains)}")
    return found


def table(kills: Iterable[Kill]) -> str:
    """Formats what happened, as Markdown."""
    rows: list[list[object]] = [[*HEADS], ["---"] * 2 + ["---:"] * 5]
    for moment, victims in itertools.product(MOMENTS, VICTIMS):
        of = [k for k in kills if (k.moment, k.victims) == (moment, victims)]
        ended = [kill.ended for kill in of] if victims != "both" else []
        row = [moment, victims, len(of), sum(kill.restarts for kill in of)]
        row += [f"{statistics.median(ended):.1f}, {max(ended):.1f}" if ended else ""]
        rows.append([*row, sum(k.torn for k in of), sum(k.resumed for k in of)])
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def soak(folder: Path, kills: int, seed: int, minutes: float) -> int:
    """Trains twice, once with kills, prints what happened and returns the exit code."""
    began, steps = time.monotonic(), STEPS_PER_KILL * (kills + 1)
    command = [sys.executable, *COMMAND.split(), "--epochs", str(steps / EPOCH)]
    whole, killed = (Run(folder / name, command) for name in ("whole", "killed"))
    started = whole.start()
    whole.until(whole.has_begun)
    start_seconds = time.monotonic() - started
    longest = MOST_SECONDS + steps  # a second for each step, on a busy machine
    whole.end(longest, {})
    killed.read_record()
    for kill in plan(kills, seed)[len(killed.kills) :]:
        if whole.faults or killed.faults or time.monotonic() > began + 60 * minutes:
            break
        killed.strike(kill, start_seconds)
        killed.write_record()
        print(
            f"{kill.moment}, {kill.victims}: step {killed.step()} of {steps}, "
            f"{(time.monotonic() - began) / 60:.1f} minutes",
            flush=True,
        )
    if not (whole.faults or killed.faults):
        killed.start()
        killed.end(longest, {})
    faults = [*whole.faults, *killed.faults]
    logged = range(1, steps + 1)
    faults = faults or differences(whole.workdir, killed.workdir, logged)
    print(table(killed.kills))
    duration = (time.monotonic() - began) / 60
    print(f"{len(killed.kills)} kills in {duration:.1f} minutes, {len(faults)} faults")
    print("\n".join(faults))
    return min(len(faults), 1)


def main(
    kills: int = 20,
    seed: int = 0,
    minutes: float = float("inf"),
    folder: Path | None = None,
) -> int:
    """Kills a run of two processes again and again, and checks that nothing is lost.

    Args:
      kills: Number of kills, for which the run is long enough.
      seed: Seed of the order of the kills, and of their moments.
      minutes: Time after which nothing is killed any more.
      folder: Folder of the runs, which is continued if it exists; a temporary one if
        it is not given.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        return soak(folder, kills, seed, minutes)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m tests.soak"))
