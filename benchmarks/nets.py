"""Whole networks: training steps, inference, and the memory of a training step.

Each shift net is compared with its reference implementation, itself in PyTorch, the
ResNet that it replaces, and the depthwise ResNet of its size. A ShiftNet is compared
with itself without shifts, and with depthwise convolutions in their place.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.cases import Case, Options, Table
from shiftjax.errors import InputError, unknown_name
from shiftjax.registry import list_models

# The builders, by library and program.
BUILD = {
    ("jax", "training"): "benchmarks.jax_nets:jax_training_step",
    ("jax", "inference"): "benchmarks.jax_nets:jax_inference",
    ("torch", "training"): "benchmarks.torch_programs:torch_training_step",
    ("torch", "inference"): "benchmarks.torch_programs:torch_inference",
}

# Options of the library's networks.
REFERENCE, KERNELS = {"implementation": "reference"}, {"implementation": "gpu"}

# Reductions of the depthwise ResNet of the size of E (the paper's table 5).
REDUCTIONS = {1: 1.12, 3: 0.38, 6: 0.19, 9: 0.125}

# The paper's ImageNet networks: features of the stem; kernel size, features and the
# modules' expansions of each group. (In the paper, C has these shapes, but other
# modules.)
SHIFTNETS: Mapping[str, dict[str, Any]] = {
    "shiftnet_a": {
        "stem": 32,
        "groups": [
            [5, 64, [4] * 5],
            [5, 128, [4, *[3] * 5]],
            [3, 256, [3, *[2] * 6]],
            [3, 512, [2, 1, 1]],
        ],
    },
    "shiftnet_b": {
        "stem": 16,
        "groups": [
            [5, 32, [4] * 5],
            [5, 64, [4, *[3] * 5]],
            [3, 128, [3, *[2] * 6]],
            [3, 256, [2, 1, 1]],
        ],
    },
    "shiftnet_c": {
        "stem": 16,
        "groups": [
            [3, 32, [1]],
            [3, 64, [1] * 4],
            [3, 128, [1] * 4],
            [3, 256, [1] * 3],
        ],
    },
}


@dataclasses.dataclass(frozen=True)
class Net:
    """A network in one of the libraries.

    Attributes:
      name: name of its row.
      library: "jax" or "torch".
      options: options of the builders in `jax_nets` or `torch_programs`.
    """

    name: str
    library: str
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Group:
    """A shift net and the networks to compare with.

    Attributes:
      title: title of the shift net.
      nets: the networks, in the order of the rows.
      facts: facts by which the report finds them.
      image_size: side of the images.
      batch_size: images in a step.
    """

    title: str
    nets: tuple[Net, ...]
    facts: dict[str, Any]
    image_size: int
    batch_size: int


def training_tables(options: Options, machine: dict[str, Any]) -> list[Table]:
    """Returns a table of training steps per shift net and dtype."""
    return [
        _network_table("training", group, dtype, group.batch_size, machine)
        for dtype in dtypes(options, machine)
        for group in groups(options, machine)
    ]


def inference_tables(options: Options, machine: dict[str, Any]) -> list[Table]:
    """Returns a table of inference per shift net, dtype and batch size."""
    return [
        _network_table("inference", group, dtype, batch_size, machine)
        for dtype in dtypes(options, machine)
        for group in groups(options, machine)
        for batch_size in (group.batch_size, 1)
    ]


def memory_tables(options: Options, machine: dict[str, Any]) -> list[Table]:
    """Returns tables of the deepest network, whose memory should not grow with E."""
    depth = 20 if options.quick else 110
    found = []
    for expansion in expansions(options):
        model = f"shiftresnet{depth}_e{expansion}"
        shift = {"family": "cifar", "kind": "shift", "depth": depth}
        nets = [Net("shiftjax", "jax", {"model": model})]
        if machine.get("torch"):
            nets.append(
                Net("the same in PyTorch", "torch", shift | {"expansion": expansion})
            )
        facts = {"model": model, "depth": depth, "expansion": expansion}
        group = Group(
            f"ShiftResNet-{depth}, E = {expansion}",
            tuple(nets),
            facts,
            32,
            4 if options.quick else options.batch_size or 128,
        )
        for dtype in dtypes(options, machine):
            found.append(
                _network_table("training", group, dtype, group.batch_size, machine)
            )
    return [dataclasses.replace(each, processes="alone") for each in found]


def expansions(options: Options) -> tuple[int, ...]:
    """Returns the chosen expansions.

    Raises:
      InputError: if the paper has no such network.
    """
    for expansion in options.expansions:
        if expansion not in REDUCTIONS:
            known = ", ".join(map(str, REDUCTIONS))
            raise InputError(f"--expansions {expansion}: it must be one of {known}")
    return options.expansions


def dtypes(options: Options, machine: dict[str, Any]) -> tuple[str, ...]:
    """Returns the chosen dtypes, or the default one of the platform."""
    default = "float32" if machine["platform"] == "cpu" else "bfloat16"
    return options.dtypes or (default,)


def _network_table(
    program: str, group: Group, dtype: str, batch_size: int, machine: dict[str, Any]
) -> Table:
    """Returns the table of the networks of a group, in training or inference."""
    common = {
        "batch_size": batch_size,
        "dtype": dtype,
        "image_size": group.image_size,
    }
    images = "1 image" if batch_size == 1 else f"{batch_size} images"
    what = "training step" if program == "training" else "inference"
    return Table(
        title=f"{what} of {group.title}, {images}, {dtype}",
        base=group.nets[0].name,
        cases=tuple(
            Case(
                net.name,
                net.library,
                BUILD[net.library, program],
                net.options | common,
            )
            for net in group.nets
        ),
        facts=group.facts | {"batch_size": batch_size, "dtype": dtype},
        # On a CPU, cases of one process would share an allocator. Only one process can
        # hold a TPU.
        processes="case" if machine["platform"] == "cpu" else "library",
    )


def groups(options: Options, machine: dict[str, Any]) -> list[Group]:
    """Returns the chosen shift nets, each with the networks to compare with.

    Raises:
      UnknownNameError: if a pattern matches no network.
      InputError: if no network has the chosen expansions.
    """
    known = [*list_models("shiftresnet*"), *SHIFTNETS]
    models = []
    for pattern in options.models:
        found = fnmatch.filter(known, pattern)
        if not found:
            raise unknown_name("shift net", pattern, known)
        models += [name for name in found if name not in models]
    chosen = []
    for model in models:
        match = re.fullmatch(r"shiftresnet(\d+)_e(\d+)", model)
        if match is None:
            chosen.append(shiftnet_group(model, options, machine))
        elif int(match[2]) in expansions(options):
            depth, expansion = int(match[1]), int(match[2])
            chosen.append(cifar_group(model, depth, expansion, options, machine))
    if not chosen:
        raise InputError(
            f"--expansions {options.expansions}: none of the models {options.models}"
        )
    return chosen


def cifar_group(
    model: str, depth: int, expansion: int, options: Options, machine: dict[str, Any]
) -> Group:
    """Returns a ShiftResNet, and the ResNet and depthwise ResNet to compare with."""
    reduction = REDUCTIONS[expansion]
    resnet, depthwise = f"ResNet-{depth}", f"depthwise ResNet-{depth}"
    jax, torch = adders()
    found = [
        jax("shiftjax", model),
        jax("the same, reference implementation", model, **REFERENCE),
        jax(resnet, f"resnet{depth}"),
        jax(f"{resnet}, reference implementation", f"resnet{depth}", **REFERENCE),
        jax(depthwise, f"depthwise_resnet{depth}", reduction=reduction),
    ]
    if machine["platform"] == "gpu":  # where the kernels are not the default
        found.insert(2, jax("the same, kernels", model, **KERNELS))
    if machine.get("torch"):
        cifar = {"family": "cifar", "depth": depth}
        shift = cifar | {"kind": "shift", "expansion": expansion}
        narrow = cifar | {"kind": "depthwise", "expansion": 1 / reduction}
        found += [
            torch("the same in PyTorch", **shift),
            torch(f"{resnet} in PyTorch", **cifar, kind="dense"),
            torch(f"{depthwise} in PyTorch", **narrow),
        ]
        if machine["platform"] == "gpu":  # torch.compile can fuse slices
            slices = shift | {"kind": "slices"}
            found.append(torch("the same in PyTorch, by slices", **slices))
        if options.compile_torch:
            found += with_compile(found)
    return Group(
        f"ShiftResNet-{depth}, E = {expansion}",
        tuple(found),
        {"model": model, "depth": depth, "expansion": expansion},
        32,
        4 if options.quick else options.batch_size or 128,
    )


def shiftnet_group(model: str, options: Options, machine: dict[str, Any]) -> Group:
    """Returns a ShiftNet, also without shifts, and with convolutions for them."""
    shape = SHIFTNETS[model]
    pointwise = shape | {"groups": [[1, *rest] for _, *rest in shape["groups"]]}
    jax, torch = adders()
    found = [
        jax("shiftjax", "shiftnet", **shape),
        jax("without its shifts", "shiftnet", **pointwise),
    ]
    if machine.get("torch"):
        shift = {"family": "shiftnet", "kind": "shift"} | shape
        found += [
            torch("the same in PyTorch", **shift),
            torch(
                "with depthwise convolutions in PyTorch",
                **shift | {"kind": "depthwise"},
            ),
        ]
        if options.compile_torch:
            found += with_compile(found)
    batch_size = 8 if machine["platform"] == "cpu" else 128
    return Group(
        model.replace("shiftnet_", "ShiftNet-").upper().replace("SHIFTNET", "ShiftNet"),
        tuple(found),
        {"model": model},
        32 if options.quick else 224,
        2 if options.quick else options.batch_size or batch_size,
    )


def with_compile(nets: list[Net]) -> list[Net]:
    """Returns the networks of PyTorch, with torch.compile."""
    return [
        Net(f"{net.name}, compiled", net.library, net.options | {"compile": True})
        for net in nets
        if net.library == "torch"
    ]


def adders() -> tuple[Callable[..., Net], Callable[..., Net]]:
    """Returns functions that make networks of JAX and of PyTorch."""

    def jax(name: str, model: str, **overrides: Any) -> Net:
        return Net(name, "jax", {"model": model, "overrides": overrides})

    def torch(name: str, **options: Any) -> Net:
        return Net(name, "torch", options)

    return jax, torch
