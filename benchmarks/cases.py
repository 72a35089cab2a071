"""What is measured, as data: tables of cases, and the options that choose them."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import tyro

Name = Literal["shift", "block", "training", "inference", "memory", "report"]
Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    names: tyro.conf.Positional[tuple[Name, ...]]
    """Which benchmarks; and `report`, which writes results into README.md and docs/."""
    models: tuple[str, ...] = ("shiftresnet20_e*", "shiftnet_*")
    """Shift nets, by wildcards; each is measured beside its competitors."""
    expansions: tuple[int, ...] = (1, 3, 6, 9)
    """Expansions E of the shift nets."""
    dtypes: tuple[Dtype, ...] = ()
    """By default float32 on a CPU, else bfloat16; `shift`, and `block` on a CPU, have
    both."""
    batch_size: int | None = None
    """Images in a step; by default 128, of 224 x 224 on a CPU 8."""
    rounds: int = 7
    """Turns that each case has."""
    minutes: float | None = None
    """Time for everything: rounds are dropped, cases never, to keep to it."""
    compile_torch: bool = shutil.which("c++") is not None
    """Also time torch.compile; by default where there is a C++ compiler, c++."""
    blocks: tuple[str, ...] = ()
    """Shapes of `block`, by wildcards, as "1024*E = 3*"; by default a few."""
    tflops: float = 790
    """Of a large bfloat16 product on the GPU: what the floor of a block counts with."""
    quick: bool = False
    """Tiny shapes and two rounds, to see that everything runs."""
    results: Path | None = None
    """Folder of the results: by default benchmarks/results, quick ones runs/quick."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
      name: of its row.
      library: "jax" or "torch".
      build: "module:function" that makes a `Program`.
      options: the function's arguments, which JSON can hold.
    """

    name: str
    library: str
    build: str
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
    """Cases that take turns, and are compared.

    Attributes:
      title: what all cases have in common.
      base: name of the case that the others are compared with.
      cases: in the order of the rows.
      facts: by which the report finds the table.
      processes: "library" for one process a library; "case" for one a case; "alone" for
        one a case, with no other at the same time, so that its memory can be measured.
    """

    title: str
    base: str
    cases: tuple[Case, ...]
    facts: Mapping[str, Any]
    processes: Literal["library", "case", "alone"] = "library"


@dataclasses.dataclass(frozen=True)
class Program:
    """A case, built.

    Attributes:
      call: starts one computation, and returns its result.
      wait: returns when a result is there.
      steps: how many of what is timed a call does.
      queued: whether calls may be queued before the last is waited for, as on a device
        that works while Python goes on.
      memory_bytes: what a call needs beside its arguments; None if only the growth of
        the process tells.
      peak_bytes: tells the most memory that the device has given out, if it knows.
      facts: about the case, for its row.
    """

    call: Callable[[], Any]
    wait: Callable[[Any], Any]
    steps: int = 1
    queued: bool = False
    memory_bytes: int | None = None
    peak_bytes: Callable[[], int | None] = lambda: None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


COLD = 200_000_000  # bytes that no cache of a GPU holds
MOST_COPIES = 4  # each of which is compiled


def copies(size: int) -> int:
    """Returns how many inputs of so many bytes are more than the caches of a GPU.

    Example:
      >>> copies(8_000_000), copies(80_000_000), copies(800_000_000)
      (4, 2, 2)
    """
    return min(max(COLD // size, 2), MOST_COPIES)
