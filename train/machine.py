"""The provenance of a run: machine, commit and versions at each of its starts."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from train import files

ROOT = Path(__file__).parents[1]
STARTS = "starts.jsonl"
SOURCES = ("shiftjax", "train", "benchmarks/*.py")


def machine() -> dict[str, Any]:
    """Returns the commit, the processor and the versions, without starting JAX."""
    versions = {}
    for package in ("jax", "flax", "torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "commit": commit(),
        "cpu": processor(),
        "cores": len(cores()),
        "python": platform.python_version(),
        **versions,
    }


def cores() -> list[int]:
    """Returns the numbers of the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def processor() -> str:
    """Returns the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def is_running(process: int) -> bool:
    """Returns True if a process of this machine has not ended.

    Args:
      process: its number.
    """
    try:
        os.kill(process, 0)  # signal 0 only checks that the process exists
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user
    return True


def commit() -> str | None:
    """Returns the commit, which ends in "-dirty" if the sources have changed since."""
    if git("ls-files", "shiftjax/shift.py") is None:
        return None  # an installed package, perhaps within somebody's repository
    head = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *SOURCES)
    return f"{head}-dirty" if head and changed else head


def git(*arguments: str) -> str | None:
    """Returns the output of a git command; None if it is empty or git fails."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def note_start(workdir: files.Folder, step: int, devices: Sequence[Any]) -> None:
    """Appends time, step, devices and versions of a start to a run's folder.

    Args:
      workdir: the folder of the run.
      step: the step at which the run starts or resumes.
      devices: the devices of all hosts.
    """
    facts = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "devices": [device.device_kind for device in devices],
        **machine(),
    }
    lines = [json.dumps(start) for start in [*starts(workdir), facts]]
    files.write(workdir / STARTS, "".join(f"{line}\n" for line in lines).encode())


def starts(workdir: files.Folder) -> list[dict[str, Any]]:
    """Returns the starts of a run, oldest first; empty for runs without a file."""
    path = workdir / STARTS
    if not path.exists():
        return []
    return [start for _, start in files.json_lines(path)]


def hardware(workdir: files.Folder) -> list[str]:
    """Lists the devices that a run was trained on, in words, each once, in order."""
    return list(dict.fromkeys(_words(start) for start in starts(workdir)))


def trained_by(workdir: files.Folder) -> str:
    """Returns the commit of a run's last start; "" if it is not known."""
    commits = [start["commit"] or "" for start in starts(workdir)]
    return commits[-1] if commits else ""


def _words(start: dict[str, Any]) -> str:
    """Names the devices of a start: "1 NVIDIA H200", "2 cores of AMD EPYC ..."."""
    count, kinds = len(start["devices"]), sorted(set(start["devices"]))
    if kinds == ["cpu"]:
        cores = "1 core" if start["cores"] == 1 else f"{start['cores']} cores"
        return f"{cores} of {start['cpu']}"
    return f"{count} {' and '.join(kinds)}"
