"""The cases to measure, as tables, and the options that choose them."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import tyro

Name = Literal[
    "shift", "block", "training", "inference", "memory", "input", "style", "report"
]
Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the benchmarks."""

    names: tyro.conf.Positional[tuple[Name, ...]]
    """The benchmarks to run; `report` writes the results into README.md and docs/."""
    models: tuple[str, ...] = ("shiftresnet20_e*", "shiftnet_*")
    """Shift nets, by wildcards; each is compared with other networks."""
    expansions: tuple[int, ...] = (1, 3, 6, 9)
    """Expansions E of the shift nets."""
    dtypes: tuple[Dtype, ...] = ()
    """Dtypes; by default float32 on a CPU, else bfloat16; both for `shift`, and for
    `block` on a CPU."""
    batch_size: int | None = None
    """Images in a step; by default 128, or 8 for 224 x 224 images on a CPU."""
    rounds: int = 7
    """Number of rounds, in each of which every case has a turn."""
    minutes: float | None = None
    """Time limit, which can reduce the number of rounds, but not of cases."""
    compile_torch: bool = shutil.which("c++") is not None
    """Also time torch.compile; by default if there is a C++ compiler, c++."""
    blocks: tuple[str, ...] = ()
    """Shapes of `block`, by wildcards, as "1024*E = 3*"; by default a few."""
    tflops: float = 790
    """Speed of large bfloat16 products on the GPU, for the floor of a block."""
    quick: bool = False
    """Use tiny shapes and two rounds, to check that everything runs."""
    results: Path | None = None
    """Folder of the results; by default benchmarks/results, or runs/quick if quick."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A case to time.

    Attributes:
      name: name of its row.
      library: "jax", "torch" or "tensorflow".
      build: "module:function" that makes a `Program`.
      options: arguments of the function, as JSON.
    """

    name: str
    library: str
    build: str
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
    """Cases that take turns, and are compared.

    Attributes:
      title: description of the table.
      base: name of the case that the others are compared with.
      cases: the cases, in the order of the rows.
      facts: facts by which the report finds the table.
      processes: "library" for one process per library; "case" for one per case; "alone"
        for one per case and no other at the same time, to measure its memory.
    """

    title: str
    base: str
    cases: tuple[Case, ...]
    facts: Mapping[str, Any]
    processes: Literal["library", "case", "alone"] = "library"


@dataclasses.dataclass(frozen=True)
class Program:
    """A built case.

    Attributes:
      call: starts one computation, and returns its result.
      wait: waits for a result.
      steps: number of timed steps in a call.
      queued: True if calls are asynchronous, so that several can be queued.
      memory_bytes: memory that a call needs besides its arguments; None if it is only
        known from the growth of the process.
      peak_bytes: returns the peak memory of the device, or None.
      facts: facts about the case, for its row.
    """

    call: Callable[[], Any]
    wait: Callable[[Any], Any]
    steps: int = 1
    queued: bool = False
    memory_bytes: int | None = None
    peak_bytes: Callable[[], int | None] = lambda: None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


COLD = 200_000_000  # bytes, more than any cache of a GPU holds
MOST_COPIES = 4  # each of which is compiled


def copies(size: int) -> int:
    """Returns the number of inputs of a size in bytes that exceeds a GPU's caches.

    Example:
      >>> copies(8_000_000), copies(80_000_000), copies(800_000_000)
      (4, 2, 2)
    """
    return min(max(COLD // size, 2), MOST_COPIES)
