"""Compiles a training step for TPUs that need not be there.

libtpu compiles ahead of time for a described slice, and tells the memory, the traffic
and the operations of one chip. The time is a lower bound: the largest of the times of
products, of memory traffic and of sums over chips, at the speeds of `CHIPS`. It leaves
out everything else, above all the latency of the sums. XLA does not count what Pallas
kernels do, which the CIFAR networks have on a TPU.
"""

import dataclasses
import math
import os
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from shiftjax.errors import InputError, unknown_name
from shiftjax.image_sizes import Size, extent
from train import memory
from train.assemble import Setup, set_up
from train.config import Config
from train.data.image_set import ImageSet
from train.data.placement import is_resident
from train.data.resident import Resident
from train.parallel import Replicas
from train.steps import check_share

HEADINGS = (
    "chips", "images a chip", "memory, GB", "traffic, GB", "GFLOP", "sums", "sums, MB",
    "ms", "images/s", "compiled in, s",
)  # fmt: skip
# Read by libtpu when it is loaded: to look for no TPU on this machine.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
BITS = {"pred": 8, "bf16": 16}  # others have their number of bits in the name

_SUM = re.compile(r" = (\(.*?\)|\S+) all-reduce(?:-start)?\(")
_SHAPE = re.compile(r"(pred|bf16|[a-z]+(\d+))\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Chip:
    """The speeds of a TPU chip.

    Source: https://cloud.google.com/tpu/docs/v5e, .../v5p and .../v6e

    Attributes:
      flops: operations per second of bfloat16 products.
      bandwidth: bytes per second between the chip and its memory.
      links: bytes per second that it can send to all neighboring chips together.
    """

    flops: float
    bandwidth: float
    links: float

    def bound(self, flops: float, traffic: float, summed: float) -> float:
        """Returns the least seconds of a step.

        Args:
          flops: floating point operations.
          traffic: bytes moved between the chip and its memory.
          summed: bytes of sums over all chips.
        """
        # A sum passes twice through the links: to be added, and to be handed out.
        times = flops / self.flops, traffic / self.bandwidth, 2 * summed / self.links
        return max(times)


CHIPS: Mapping[str, Chip] = {
    "v5e": Chip(197e12, 819e9, 200e9),
    "v5p": Chip(459e12, 2765e9, 600e9),
    "v6e": Chip(918e12, 1640e9, 448e9),
}


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The cost of a training step on one chip of a slice.

    Attributes:
      chips: number of chips.
      share: images of a step on one chip.
      memory: bytes of arguments, results, temporary arrays and the program.
      traffic: bytes moved between the chip and its memory.
      flops: floating point operations.
      sums: number of sums over all chips.
      summed: bytes of these sums.
      seconds: lower bound of the time of a step.
      compile_seconds: time of the compilation on this machine.
    """

    chips: int
    share: int
    memory: int
    traffic: float
    flops: float
    sums: int
    summed: int
    seconds: float
    compile_seconds: float

    def cells(self) -> list[str]:
        """Returns the row of a table under `HEADINGS`."""
        return [
            f"{self.chips}",
            f"{self.share}",
            f"{self.memory / 1e9:.2f}",
            f"{self.traffic / 1e9:.2f}",
            f"{self.flops / 1e9:,.0f}",
            f"{self.sums}",
            f"{self.summed / 1e6:.1f}",
            f"{1e3 * self.seconds:.2f}",
            f"{self.chips * self.share / self.seconds:,.0f}",
            f"{self.compile_seconds:.0f}",
        ]


def sums(program: str) -> tuple[int, int]:
    """Returns the number of sums over devices in a compiled program, and their bytes.

    Args:
      program: the text of the program, in HLO.

    Example:
      >>> sums("%s = (f32[2,3]{1,0}, bf16[4]{0}) all-reduce-start(%a, %b)")
      (1, 32)
    """
    results = _SUM.findall(program)
    size = 0
    for kind, bits, shape in _SHAPE.findall(" ".join(results)):
        count = math.prod(int(length) for length in shape.split(",") if length)
        size += count * (BITS.get(kind) or int(bits)) // 8
    return len(results), size


def chip_of(topology: str) -> Chip:
    """Returns the chip of a topology's name, such as "v5e:4x4".

    Raises:
      UnknownNameError: for another kind of chip.
    """
    kind, _, layout = topology.partition(":")
    if kind not in CHIPS:
        raise unknown_name("kind of TPU", kind, CHIPS)
    if not re.fullmatch(r"\d+(x\d+)*", layout):
        raise InputError(
            f"--topology {topology}: it must be a kind and a layout, as v5e:4x4"
        )
    return CHIPS[kind]


def devices_of(topology: str) -> tuple[Any, ...]:
    """Describes the devices of a slice, which need not be there.

    Raises:
      InputError: if libtpu is missing, or knows no such slice.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return tuple(topologies.get_topology_desc(topology, platform="tpu").devices)
    except Exception as error:  # of JAX, or of libtpu through it
        reason = str(error).splitlines()[0]
        if "not installed" in reason:
            reason = 'it needs libtpu: pip install "shiftjax[tpu]"'
        raise InputError(f"--topology {topology}: {reason}") from error


def blank(examples: int, classes: int, image_size: Size) -> ImageSet:
    """Makes black images, which take no memory."""
    shape = (examples, *extent(image_size), 3)
    return ImageSet(
        np.broadcast_to(np.uint8(0), shape),
        np.broadcast_to(np.int32(0), shape[:1]),
        tuple(map(str, range(classes))),
    )


def item_shapes(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of the input of a dispatch, as `train.data.stream.items`."""
    batch = (setup.steps_per_dispatch, setup.config.batch_size)
    shapes = {"index": jax.ShapeDtypeStruct(batch, jnp.int32)}
    if not is_resident(setup.train_set, setup.config.data):
        image = (*batch, *setup.train_set.image_shape)
        shapes["images"] = jax.ShapeDtypeStruct(image, jnp.uint8)
        shapes["labels"] = jax.ShapeDtypeStruct(batch, jnp.int32)
    return shapes


def _resident(setup: Setup) -> Resident | None:
    """Returns the training set as it lies on a device, or None if it is fed."""
    examples = setup.train_set
    if is_resident(examples, setup.config.data):
        return Resident.of(examples)
    return None


def compile_step(
    config: Config,
    topology: str,
    examples: int,
    classes: int,
    per_chip: int | None = None,
) -> StepCost:
    """Compiles the training program of a run for a slice.

    Args:
      config: the configuration of the run.
      topology: the kind and the layout of the chips, such as "v5e:4x4".
      examples: number of training examples, whose images are not read.
      classes: number of classes.
      per_chip: images of a step on each chip; None to split the run's batch.

    Raises:
      InputError: if the slice does not exist, the batch cannot be split evenly, or a
        chip has too little memory.
    """
    chip, devices = chip_of(topology), devices_of(topology)
    replicas = Replicas(devices, config.backend)
    if per_chip is not None:
        config = dataclasses.replace(config, batch_size=per_chip * replicas.count)
    share = replicas.per_device(config.batch_size)
    check_share(config, share)
    config = dataclasses.replace(config, devices=1, init=None)
    setup = set_up(config, blank(examples, classes, config.data.image_size))
    setup = dataclasses.replace(setup, replicas=replicas)
    arguments = (
        jax.eval_shape(setup.initial_state),
        jax.eval_shape(lambda: setup.trainer.task.data(_resident(setup))),
        replicas.split_shapes(item_shapes(setup)),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    start = time.perf_counter()
    with memory.explained():
        compiled = replicas.lower(setup.train_steps, *arguments).compile()
    seconds = time.perf_counter() - start
    needed, cost = compiled.memory_analysis(), compiled.cost_analysis()
    number, summed = sums(compiled.as_text())
    return StepCost(
        len(devices),
        share,
        needed.argument_size_in_bytes
        + needed.output_size_in_bytes
        - needed.alias_size_in_bytes
        + needed.temp_size_in_bytes
        + needed.generated_code_size_in_bytes,
        cost["bytes accessed"],
        cost["flops"],
        number,
        summed,
        chip.bound(cost["flops"], cost["bytes accessed"], summed),
        seconds,
    )
