"""Estimates the cost of shift nets on a TPU: `python -m benchmarks.tpu`.

The command compiles for a v5e, which need not be there, with libtpu (`pip install
libtpu`). The cases are single shift blocks, several blocks, stages of blocks as wide as
a ShiftNet's, and a whole training step of ShiftResNet-20, all in bfloat16. The rows are
no shift at all (K = 1), which is the lower bound; the reference, whose shifts are
masked selects; and the kernel, if it is faster. The numbers are estimates that rank
implementations; see benchmarks/tpu_costs.py for what they leave out. The command prints
tables and writes them to benchmarks/results/tpu.json, where those of other cases stay.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import tyro
from rich.console import Console

from benchmarks.tpu_costs import CHIP, TPUCost, compile_for_tpu, on_cores  # before jax

# isort: split
import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks import RESULTS
from benchmarks.console import print_table
from benchmarks.jax_blocks import applied, trained
from shiftjax.layers import ShiftConv
from shiftjax.models.resnet import ShiftResNet
from shiftjax.module import Activations
from train import experiments
from train.data.resident import Resident
from train.machine import machine
from train.optimizer import learning_rate, make_optimizer
from train.parallel import AXIS, Replicas
from train.state import create_state
from train.steps import Trainer
from train.tasks.classification import Classification

EXAMPLES = 50_000
HEADINGS = [
    "implementation",
    "us",
    "over no shift",
    "HBM, MB",
    "cycles, us",
    "temporary, MB",
]

# images, side, channels of the input; stages of blocks: features, expansion,
# kernel_size, strides of the first, number of blocks
STAGES = {
    "256 x 32 x 32 x 16, E 3": ((256, 32, 16), [(16, 3, 3, 1, 1)]),
    "256 x 16 x 16 x 32, E 3": ((256, 16, 32), [(32, 3, 3, 1, 1)]),
    "256 x 8 x 8 x 64, E 3": ((256, 8, 64), [(64, 3, 3, 1, 1)]),
    "256 x 32 x 32 x 16, E 9": ((256, 32, 16), [(16, 9, 3, 1, 1)]),
    "256 x 32 x 32 x 16 to 32, E 3, stride 2": ((256, 32, 16), [(32, 3, 3, 2, 1)]),
    "128 x 56 x 56 x 64, E 4, K 5": ((128, 56, 64), [(64, 4, 5, 1, 1)]),
    "128 x 28 x 28 x 128, E 3, K 5": ((128, 28, 128), [(128, 3, 5, 1, 1)]),
    "128 x 28 x 28 x 128, E 3, K 5, three in a row": (
        (128, 28, 128),
        [(128, 3, 5, 1, 3)],
    ),
    "128 x 14 x 14 x 256, E 2": ((128, 14, 256), [(256, 2, 3, 1, 1)]),
    "128 x 14 x 14 x 256, E 2, three in a row": ((128, 14, 256), [(256, 2, 3, 1, 3)]),
    "128 x 7 x 7 x 512, E 1": ((128, 7, 512), [(512, 1, 3, 1, 1)]),
    "as wide as ShiftNet-A, 128 images": (
        (128, 112, 32),
        [(64, 4, 5, 2, 2), (128, 3, 5, 2, 2), (256, 2, 3, 2, 2), (512, 1, 3, 2, 2)],
    ),
    "as wide as ShiftNet-B, 128 images": (
        (128, 112, 32),
        [(32, 4, 5, 2, 2), (64, 3, 5, 2, 2), (128, 2, 3, 2, 2), (256, 1, 3, 2, 2)],
    ),
    "as wide as ShiftNet-C, 128 images": (
        (128, 112, 32),
        [(32, 1, 5, 2, 2), (64, 1, 5, 2, 2), (128, 1, 3, 2, 2), (256, 1, 3, 2, 2)],
    ),
}


@dataclasses.dataclass(frozen=True)
class TPUOptions:
    """The options of the estimate."""

    stages: tuple[str, ...] = tuple(STAGES)
    """Blocks and stages of blocks."""
    batch_size: int = 256
    """Images in a training step of ShiftResNet-20; 0 for none."""


class Stages(nn.Module):
    """Stages of shift blocks, as STAGES describes them."""

    stages: tuple[tuple[int, float, int, int, int], ...]
    implementation: str
    shifts: bool

    @nn.compact
    def __call__(self, x: Activations, train: bool = False) -> Activations:
        """Applies the blocks."""
        for features, expansion, kernel_size, strides, count in self.stages:
            for i in range(count):
                x = ShiftConv(
                    features,
                    kernel_size if self.shifts else 1,
                    strides if i == 0 else 1,
                    expansion=expansion,
                    dtype=jnp.bfloat16,
                    implementation=self.implementation,
                )(x, train)
        return x


# The implementation, and True if channels are shifted.
ROWS = {
    "no shift": ("reference", False),
    "reference": ("reference", True),
    "tpu": ("tpu", True),
}


def _stages_cost(row: str, name: str) -> TPUCost:
    """Estimates the cost of output, gradients and statistics of stages of blocks."""
    (images, side, channels), shapes = STAGES[name]
    module = Stages(tuple(shapes), *ROWS[row])
    x = jax.ShapeDtypeStruct((images, side, side, channels), jnp.bfloat16)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    y = jax.eval_shape(module.apply, variables, x)

    both, core = trained(applied(module)), on_cores(1)
    return compile_for_tpu(
        jax.jit(both, in_shardings=core, out_shardings=core), variables, x, y
    )


def _training_step_cost(row: str, batch_size: int) -> TPUCost:
    """Estimates a step of `python -m train cifar10`, with resident images."""
    implementation, shifts = ROWS[row]
    network = ShiftResNet(
        depth=20,
        expansion=3,
        kernel_size=3 if shifts else 1,
        axis_name=AXIS,
        dtype=jnp.bfloat16,
        implementation=implementation,
    )
    config = experiments.load("cifar10")
    data = config.data
    task = Classification(network, 10, data.mean, data.std, config.augment)
    rate = learning_rate(config.schedule, 10_000, 400)
    optimizer = make_optimizer(config.optimizer, rate)
    program = Trainer(task, optimizer).train_steps
    replicas = Replicas(tuple(on_cores(1).device_set), backend="shard_map")
    shape = jax.ShapeDtypeStruct
    image = (32, 32, 3)
    state = jax.eval_shape(lambda: create_state(network, optimizer, 0, image))
    images = jax.eval_shape(
        lambda: Resident(
            jnp.zeros((EXAMPLES, math.prod(image)), jnp.uint8),
            jnp.zeros((EXAMPLES,), jnp.int32),
            image,
        )
    )
    items = {"index": shape((1, batch_size), jnp.int32)}
    return compile_for_tpu(
        replicas.parallelize(program, donate_state=True),
        state,
        images,
        items,
        shape((), jnp.int32),
    )


def _cost_cells(costs: dict[str, TPUCost]) -> list[list[str]]:
    """Returns the rows of a table."""
    base = costs["no shift"]
    return [
        [
            name,
            f"{1e6 * cost.seconds:.0f}",
            f"{cost.seconds / base.seconds:.2f}",
            f"{cost.hbm_bytes / 1e6:.0f}",
            f"{1e6 * cost.cycle_seconds:.0f}",
            f"{cost.temporary_bytes / 1e6:.0f}",
        ]
        for name, cost in costs.items()
    ]


def _write_table(table: dict[str, Any]) -> None:
    """Writes a table, which replaces the one with its title."""
    path = RESULTS / "tpu.json"
    tables = json.loads(path.read_text())["tables"] if path.exists() else []
    others = [old for old in tables if old["title"] != table["title"]]
    report = {"command": "python -m benchmarks.tpu", "compiled for": CHIP}
    path.write_text(json.dumps(report | {"tables": [*others, table]}, indent=1) + "\n")


def _main() -> int:
    """Estimates the cost of every case in every implementation."""
    options = tyro.cli(TPUOptions, prog="python -m benchmarks.tpu", description=__doc__)
    console, facts = Console(), machine()
    cases: list[tuple[str, Callable[[str, Any], TPUCost], Any]]
    cases = [(f"blocks {name}", _stages_cost, name) for name in options.stages]
    if options.batch_size:
        title = f"training step, ShiftResNet-20, E = 3, {options.batch_size} images"
        cases.append((title, _training_step_cost, options.batch_size))
    for title, function, argument in cases:
        costs = {}
        for row in ROWS:
            start = time.perf_counter()
            costs[row] = function(row, argument)
            console.log(f"{title}, {row}: {time.perf_counter() - start:.0f} s")
        print_table(console, title, HEADINGS, _cost_cells(costs))
        rows = [
            {"implementation": row, **dataclasses.asdict(costs[row])} for row in costs
        ]
        _write_table({"title": title, "machine": facts, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(_main())
