"""What the numbers depend on: machine, commit and versions."""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from benchmarks import ROOT

MEASURED = ("shiftjax", "train", "benchmarks/*.py")


def machine() -> dict[str, Any]:
    """Returns commit, processor and versions, without starting JAX."""
    versions = {}
    for package in ("jax", "flax", "torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    count = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return {
        "commit": commit(),
        "cpu": processor(),
        "cores": len(count(0)),
        "python": platform.python_version(),
        **versions,
    }


def devices() -> dict[str, Any]:
    """Returns what JAX and PyTorch would run on; starts both.

    Returns:
      "platform" and "device" of JAX; "torch", PyTorch's platform, if it is installed.
    """
    import jax

    device = jax.devices()[0]
    found = {"platform": device.platform, "device": device.device_kind}
    if importlib.util.find_spec("torch"):
        import torch

        found["torch"] = "gpu" if torch.cuda.is_available() else "cpu"
    return found


def processor() -> str:
    """Returns the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """Returns the commit, marked if what is measured has been changed since."""
    head = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *MEASURED)
    return f"{head}-dirty" if head and changed else head


def git(*arguments: str) -> str | None:
    """Returns what git says, or None."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
