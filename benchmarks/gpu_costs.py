"""Estimates the cost of programs on a GPU from its compiler, without a GPU.

`python -m benchmarks.gpu_costs`, with `pip install "jax[cuda12]"`, compiles for an
H200, which need not be there. It counts the kernels of each implementation of the shift
and of the block, and the bytes that they move: each operand and each result of a kernel
once. The estimate assumes that repeated reads within a kernel hit its caches. Without
the GPU the compiler cannot autotune the tiles of products, so the number of kernels is
that of its defaults. The command prints tables and writes
benchmarks/results/gpu_costs.json.
"""

import dataclasses
import json
import math
import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any

import tyro
from rich.console import Console

from benchmarks.tpu_costs import (
    operations,
)  # first, because it sets the platform to CPU

# isort: split
import jax
from jax.experimental import topologies
from jax.sharding import (
    AbstractDevice,
    AbstractMesh,
    SingleDeviceSharding,
    use_abstract_mesh,
)

from benchmarks import RESULTS, block, jax_blocks, jax_operations
from benchmarks.cases import Options
from benchmarks.console import print_table
from benchmarks.jax_programs import Traced
from shiftjax.lowerings import LOWERINGS
from train.machine import machine

BANDWIDTH = 4.3e12  # bytes a second of a copy, measured on an H200
CHIP = "NVIDIA H200"
HEADINGS = [
    "implementation",
    "kernels",
    "MB",
    "over floor",
    "us of traffic",
    "temporary, MB",
]

# The properties of the chip that the CUDA driver reports.
DESCRIPTION = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "shared_memory_per_core": 233472,
    "shared_memory_per_block_optin": 232448,
    "threads_per_core_limit": 2048,
    "core_count": 132,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "memory_bandwidth": 4_800_000_000_000,
    "l2_cache_size": 50 * 2**20,
    "clock_rate_ghz": 1.98,
    "device_memory_size": 151_397_597_184,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "device_address_bits": 64,
}
VERSIONS = ("driver_version", "runtime_version", "compile_time_toolkit_version")


@dataclasses.dataclass(frozen=True)
class GPUCost:
    """The cost of a program.

    Attributes:
      kernels: number of kernels that it launches.
      bytes: bytes that they move.
      temporary_bytes: memory besides arguments and results.
    """

    kernels: int
    bytes: int
    temporary_bytes: int

    @property
    def seconds(self) -> float:
        """The time to move the bytes, without the launches."""
        return self.bytes / BANDWIDTH


def chip() -> SingleDeviceSharding:
    """Returns a placement on one H200."""
    numbers = "\n".join(f"{name}: {value}" for name, value in DESCRIPTION.items())
    versions = "\n".join(f'{name}: "12.9.0"' for name in VERSIONS)
    capability = "cuda_compute_capability { major: 9 }"
    config = (
        f"gpu_device_info {{\n{numbers}\n{versions}\n{capability}\n"
        f'name: "{CHIP}"\n}}\nplatform_name: "CUDA"\n'
        f"dnn_version_info {{ major: 9 minor: 10 }}\n"
        f'device_description_str: "{CHIP}"\n'
    )
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=config, topology="1x1x1"
    )
    return SingleDeviceSharding(topology.devices[0])


def compile_for_gpu(function: Any, *shapes: Any) -> GPUCost:
    """Compiles a function, and estimates its cost.

    Args:
      function: a pure function.
      shapes: trees of `jax.ShapeDtypeStruct`, its arguments.

    Returns:
      The cost of one call.
    """
    place = chip()
    placed = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes
    )
    abstract = AbstractDevice(CHIP, num_cores=132, platform="gpu")
    with use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=abstract)):
        traced = jax.jit(function).trace(*placed)
        lowered = traced.lower(lowering_platforms=("cuda",))
    compiled = lowered.compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    if text is None or memory is None:
        raise RuntimeError(f"XLA returns no program or no memory analysis for {CHIP}")
    program = list(operations(text))
    kernels = sum(op.times for op in program)
    moved = sum(op.times * op.hbm_bytes for op in program)
    return GPUCost(kernels, moved, memory.temp_size_in_bytes)


def _cost_cells(floor: int, costs: dict[str, GPUCost]) -> list[list[str]]:
    """Returns the rows of a table."""
    return [
        [
            name,
            str(cost.kernels),
            f"{cost.bytes / 1e6:.0f}",
            f"{cost.bytes / floor:.2f}",
            f"{1e6 * cost.seconds:.0f}",
            f"{cost.temporary_bytes / 1e6:.0f}",
        ]
        for name, cost in costs.items()
    ]


def _traced_programs(
    patterns: tuple[str, ...],
) -> Iterator[tuple[str, int, dict[str, Traced]]]:
    """Yields (title, floor in bytes, function and arguments by implementation)."""
    shape = (128, 32, 32, 48)
    for backward in (False, True):
        title = f"shift {shape}, {passes(backward)}"
        common = {"shape": shape, "dtype": "bfloat16", "backward": backward}
        found = {"copy": jax_operations.traced_operation("copy", **common)} | {
            name: jax_operations.traced_operation("shift", lowering=name, **common)
            for name in LOWERINGS
        }
        yield title, (2 + 2 * backward) * 2 * math.prod(shape), found
    for shape in block.shapes(Options((), blocks=patterns), "gpu"):
        for backward in (False, True):
            common = shape.options | {"dtype": "bfloat16", "backward": backward}
            found = {
                name: jax_blocks.traced_block(**common, **own, train=True)
                for name, own in block.implementations("gpu").items()
                if not own.get("sizes")
            }
            floor = 2 * shape.floor_numbers(train=True, backward=backward)
            yield f"block {shape}, {passes(backward)}", floor, found


def passes(backward: bool) -> str:
    """Returns the name of the passes that are computed."""
    return f"forward{' and backward' * backward}"


@dataclasses.dataclass(frozen=True)
class GPUOptions:
    """The options of the estimate."""

    blocks: tuple[str, ...] = ("*",)
    """Shapes of the block, by wildcards."""


def _main() -> int:
    """Estimates the cost of every case in every implementation."""
    prog = "python -m benchmarks.gpu_costs"
    options = tyro.cli(GPUOptions, prog=prog, description=__doc__)
    console, tables = Console(), []
    for title, floor, found in _traced_programs(options.blocks):
        costs, start = {}, time.perf_counter()
        for name, (function, arguments) in found.items():
            costs[name] = compile_for_gpu(function, *jax.eval_shape(arguments))
        console.log(f"{title}: {time.perf_counter() - start:.0f} s")
        heading = f"{title}: floor {floor / 1e6:.0f} MB"
        print_table(console, heading, HEADINGS, _cost_cells(floor, costs))
        rows = [
            {"implementation": name, **dataclasses.asdict(costs[name])}
            for name in costs
        ]
        tables.append({"title": title, "floor_bytes": floor, "rows": rows})
    command = shlex.join([*prog.split(), *sys.argv[1:]])
    report = {"command": command, "compiled for": CHIP, "machine": machine()}
    path = RESULTS / "gpu_costs.json"
    path.write_text(json.dumps(report | {"tables": tables}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
