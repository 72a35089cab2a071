"""Estimates the cost of programs on a TPU from its compiler, without a TPU.

libtpu compiles ahead of time, and writes the final instruction bundles of each
operation, of which a core issues one per cycle. The estimate of an operation is the
larger of the times of its bundles and of its memory traffic; operations run one after
another. The estimate leaves out stalls on memory within an operation, and overlapping
transfers.
"""

import dataclasses
import math
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLOCK, BANDWIDTH = 1.5e9, 819e9  # a v5e: bundles a second, bytes a second
CHIP, TOPOLOGY = "v5litepod-8", "v5e:2x2"

DUMPS = Path(tempfile.mkdtemp(prefix="tpu-costs-"))

# Read when libtpu is loaded.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": CHIP,
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
    "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={DUMPS} --xla_jf_dump_llo_text=true "
    "--xla_jf_dump_llo_pass_label_regex=^final_bundles",
}
os.environ.update(ENVIRONMENT)

import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

BITS = {"pred": 8, "bf16": 16}  # others have their number of bits in the name
SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\](?:\{([^}]*)\})?")
INSTRUCTION = re.compile(
    r"(?:ROOT )?%?(?P<name>\S+) = (?P<shape>\(.*?\)(?= [a-z])|\S+) "
    r"(?P<opcode>[a-z][\w-]*)\((?P<operands>.*?)\)(?:, |$)"
)
FREE = {  # these move nothing, or are counted at their start
    "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all",
    "copy-done", "slice-done", "async-done", "async-update", "opt-barrier",
    "partition-id", "replica-id", "iota",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TPUCost:
    """The cost of a program.

    Attributes:
      hbm_bytes: bytes moved between the chip and its memory, with padding of tiles.
      cycles: number of instruction bundles.
      seconds: the estimated time.
      temporary_bytes: memory besides arguments and results.
      unknown: number of operations above 1 MB of traffic without known bundles.
      open_loops: number of loops of unknown length, which count as one turn each.
    """

    hbm_bytes: int
    cycles: int
    seconds: float
    temporary_bytes: int
    unknown: int
    open_loops: int

    @property
    def cycle_seconds(self) -> float:
        """The time of the instructions alone."""
        return self.cycles / CLOCK


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction of the scheduled program.

    Attributes:
      name: a unique name.
      kind: equal for operations that are compiled once.
      times: number of times that it runs.
      hbm_bytes: bytes that it moves each time.
    """

    name: str
    kind: str
    times: int
    hbm_bytes: int


def on_cores(count: int) -> NamedSharding:
    """Returns a placement with a copy on each of a number of cores."""
    topology = topologies.get_topology_desc(TOPOLOGY, platform="tpu")
    mesh = Mesh(np.array(topology.devices[:count]), ("core",))
    return NamedSharding(mesh, PartitionSpec())


def compile_for_tpu(function: Any, *shapes: Any) -> TPUCost:
    """Compiles a jitted function, placed on `on_cores`, and estimates its cost.

    Args:
      function: the result of `jax.jit`.
      shapes: trees of `jax.ShapeDtypeStruct`, its arguments.

    Returns:
      The cost of one call.
    """
    for file in DUMPS.iterdir():
        file.unlink()
    traced = function.trace(*shapes)
    compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    return total_cost(list(operations(text)), read_bundles(), memory.temp_size_in_bytes)


def total_cost(
    program: list[Operation], bundles: dict[str, tuple[int, int]], temporary: int
) -> TPUCost:
    """Adds the costs of operations, from their (cycles, open loops) by name."""
    by_kind = {op.kind: bundles[op.name] for op in program if op.name in bundles}
    hbm_bytes = cycles = unknown = open_loops = 0
    seconds = 0.0
    for op in program:
        found = bundles.get(op.name) or by_kind.get(op.kind)
        unknown += found is None and op.hbm_bytes > 1e6 and "copy-start" not in op.kind
        own, loops = found or (0, 0)
        hbm_bytes += op.times * op.hbm_bytes
        cycles += op.times * own
        open_loops += loops
        if "-start" not in op.kind:  # a copy in the background
            seconds += op.times * max(own / CLOCK, op.hbm_bytes / BANDWIDTH)
    seconds = max(seconds, hbm_bytes / BANDWIDTH)
    return TPUCost(hbm_bytes, cycles, seconds, temporary, unknown, open_loops)


# The scheduled program, as text.


def operations(text: str) -> Iterator[Operation]:
    """Yields the operations of a program."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        opening = re.match(r"(ENTRY )?%?([^\s(]+) .*\{$", line)
        if opening and not line.startswith("HloModule"):
            lines = computations.setdefault(opening.group(2), [])
            entry = opening.group(2) if opening.group(1) else entry
        elif " = " in line:
            lines.append(re.sub(r"/\*.*?\*/", "", line.strip()))
    yield from within(computations, entry, 1)


def within(
    computations: dict[str, list[str]], name: str, times: int
) -> Iterator[Operation]:
    """Yields the operations of a computation, and of its loops and calls."""
    shapes: dict[str, str] = {}
    for line in computations[name]:
        match = INSTRUCTION.match(line)
        if not match:
            raise ValueError(f"cannot read {line[:200]!r}")
        shapes[match["name"]] = match["shape"]
        opcode = match["opcode"]
        if opcode in ("while", "call", "conditional"):
            turns = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            inner = times * (int(turns.group(1)) if turns else 1)
            bodies = r"(?:body|to_apply|(?:true|false)_computation)=%?([\w.\-]+)"
            for body in re.findall(bodies, line):
                yield from within(computations, body, inner)
        elif opcode not in FREE:
            read = dict.fromkeys(re.findall(r"%([\w.\-]+)", match["operands"]))
            sources = [shapes.get(operand, "") for operand in read]
            yield Operation(
                match["name"],
                f"{opcode} {match['shape']} {sources}",
                times,
                traffic(opcode, match["shape"], sources),
            )


def traffic(opcode: str, result: str, sources: list[str]) -> int:
    """Returns the bytes that an instruction moves to and from memory."""
    if opcode == "copy-start":
        result = result.split("}")[0] + "}"  # the source and a token follow
    if opcode == "slice-start":
        return sum(hbm_bytes(result)[:1]) or hbm_bytes(result.replace(":S(1)", ""))[0]
    return sum(sum(hbm_bytes(text)) for text in (result, *sources))


def hbm_bytes(text: str) -> list[int]:
    """Returns the bytes of each array in a shape, with padding; 0 on the chip."""
    sizes = []
    for dtype, dims, layout in SHAPE.findall(text):
        bits = BITS.get(dtype) or int(re.sub(r"\D", "", dtype) or 0)
        order, _, tiling = layout.partition(":")
        shape = [int(n) for n in dims.split(",") if n]
        minor_first = [shape[int(i)] for i in order.split(",") if i] or shape[::-1]
        tile = re.search(r"T\(([\d,]+)\)", tiling)
        for i, n in enumerate(reversed(tile.group(1).split(",")) if tile else ()):
            if i < len(minor_first):
                minor_first[i] = -(-minor_first[i] // int(n)) * int(n)
        on_chip = re.search(r"S\([1-9]", tiling)
        sizes.append(0 if on_chip else math.prod(minor_first) * bits // 8)
    return sizes


# The bundles, as text.


def read_bundles() -> dict[str, tuple[int, int]]:
    """Returns (cycles, open loops) of each operation in the dump of the compiler."""
    costs = {}
    for file in DUMPS.glob("*-final_bundles.txt"):
        name = re.fullmatch(r"\d+-(.*)-\d+-final_bundles\.txt", file.name)
        if name and "schedule-analysis" not in file.name:
            costs[name.group(1)] = Bundles(file.read_text(errors="replace")).count()
    return costs


class Bundles:
    """The bundles of one operation: straight code and counted loops."""

    def __init__(self, text: str) -> None:
        pattern = re.compile(r"^\s*0x[0-9a-f]+\s*([A-Z]{2})?\s*: ?(>*) ?\{.*", re.M)
        self._rows = [
            (row.group(1) == "LB", len(row.group(2)), row.group())
            for row in pattern.finditer(text)
        ]
        self._open_loops = 0

    def count(self) -> tuple[int, int]:
        """Returns the cycles, and the number of loops of unknown length."""
        cycles = i = 0
        while i < len(self._rows):
            if self._rows[i][0]:
                own, i = self._loop(i)
                cycles += own
            else:
                cycles, i = cycles + 1, i + 1
        return cycles, self._open_loops

    def _loop(self, start: int) -> tuple[int, int]:
        """Returns the cycles of the loop that begins at a row, and the row after it."""
        _, depth, head = self._rows[start]
        body, i, turns = 0, start, None
        limits: dict[str, tuple[str, int]] = {}
        steps: dict[str, int] = {}
        while i < len(self._rows) and turns is None:
            begins, inner_depth, text = self._rows[i]
            if i > start and begins:
                if inner_depth <= depth:
                    break
                cycles, i = self._loop(i)
                body += cycles
                continue
            for predicate, counter, limit in re.findall(
                r"%(p\w+) = scmp\.ge\.s32\.totalorder %(\w+), (\d+)", text
            ):
                limits[predicate] = (counter, int(limit))
            steps |= {
                counter: int(step)
                for counter, step in re.findall(r"%(s\w+) = sadd\.s32 (\d+), %", text)
            }
            body, i = body + 1, i + 1
            back = re.search(r"sbr\.rel \(!%(p\w+)\) target = \$region(\d+)", text)
            if back and re.search(rf"Start region {back.group(2)}\b", head):
                turns = self._turns(limits.get(back.group(1)), steps, start, i)
                break
        if turns is None:
            self._open_loops += 1
        return body * (turns or 1), i

    def _turns(
        self,
        limit: tuple[str, int] | None,
        steps: dict[str, int],
        start: int,
        end: int,
    ) -> int | None:
        """Returns the number of turns of a loop, if its limit is a constant."""
        if limit is None:
            return None
        counter, turns = limit
        step = steps.get(counter, 1)
        if 1 < step <= turns:
            turns = -(-turns // step)
        tail = "".join(text for *_, text in self._rows[max(start, end - 30) : end])
        if "loop exit test" in tail and turns > 2:
            turns -= 2  # without the first and the last stage of the pipeline
        return turns
