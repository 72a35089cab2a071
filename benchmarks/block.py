"""The shift block: 1x1, BatchNorm, ReLU, shift, 1x1, BatchNorm, ReLU."""

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any

from benchmarks.cases import Case, Options, Table, copies
from shiftjax.errors import unknown_name
from shiftjax.lowerings import LOWERINGS

JAX = "benchmarks.jax_blocks:jax_block"
TORCH = "benchmarks.torch_programs:torch_block"


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of a block, and the least work that it needs.

    Attributes:
      images: number of images in a batch.
      side: height and width of an image.
      channels: channels of the input.
      expansion: E.
      kernel_size: K.
      strides: strides of the shift; the output has `strides * channels` features.
    """

    images: int
    side: int
    channels: int
    expansion: int
    kernel_size: int = 3
    strides: int = 1

    def __str__(self) -> str:
        size = f"{self.images} x {self.side} x {self.side} x {self.channels}"
        stride = f", stride {self.strides}" if self.strides > 1 else ""
        return f"{size}, E = {self.expansion}, K = {self.kernel_size}{stride}"

    @property
    def options(self) -> dict[str, Any]:
        """The options of a case."""
        return {
            "shape": [self.images, self.side, self.side, self.channels],
            "expansion": self.expansion,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
        }

    @property
    def narrow_sizes(self) -> tuple[int, int]:
        """The sizes of the input and of the output."""
        x = self.images * self.side**2 * self.channels
        return x, x // self.strides

    def floor_numbers(self, *, train: bool, backward: bool) -> int:
        """Returns the count of numbers to move if the wide tensor is never stored.

        Evaluation reads x and writes the output. In training, BatchNorm needs the
        statistics of the whole batch first, so the forward pass reads x for its
        covariance; reads x and writes y; reads y and x (the skip) and writes the
        output. The backward pass reads the gradient g and y for their sums; reads g, y
        and x and writes dx; then reads dx, x and g (the skip) and writes their sum,
        when the gradients of the weights are known.
        """
        x, y = self.narrow_sizes
        if not train:
            return x + y
        forward = 3 * x + 3 * y if self.strides == 1 else 3 * x + 5 * y
        if not backward:
            return forward
        return forward + (6 * x + 4 * y if self.strides == 1 else 6 * x + 8 * y)

    def flops(self, *, backward: bool) -> int:
        """Returns the operations of both products; backward repeats the first one."""
        rows = self.images * self.side**2 // self.strides**2
        features = self.channels * self.strides
        wide = self.expansion * features
        first, second = self.channels * wide, wide * features
        once = 2 * rows * (first + second)
        return once + (2 * rows * first + 2 * once if backward else 0)


GPU_SHAPES = (
    Shape(1024, 32, 16, 3),
    Shape(128, 32, 16, 3),
    Shape(128, 56, 64, 4, 5),
    Shape(128, 16, 32, 3),
    Shape(128, 8, 64, 3),
    Shape(1024, 16, 32, 3),
    Shape(1024, 8, 64, 3),
    Shape(1024, 32, 16, 9),
    Shape(128, 28, 128, 3, 5),
    Shape(128, 14, 256, 2),
    Shape(1024, 32, 16, 3, 3, 2),
)
SHAPES = {
    "cpu": (
        Shape(128, 32, 16, 3),  # ShiftResNet-20
        Shape(128, 32, 16, 9),
        Shape(128, 16, 32, 6, 7),
        Shape(8, 56, 64, 4, 5),  # ShiftNet-A
        Shape(16, 14, 256, 2),
    ),
    "gpu": GPU_SHAPES,
    "tpu": (
        Shape(1024, 32, 16, 3),
        Shape(1024, 32, 16, 9),
        Shape(1024, 16, 32, 6, 7),
        Shape(64, 56, 64, 4, 5),
        Shape(128, 14, 256, 2),
    ),
}
DEFAULTS = {"gpu": 3}  # the first ones; each takes minutes, most of it to compile
MEMORY = [1, 1, 1, 2**29]  # shape of the copy that measures the bandwidth

# Divisions of the GPU kernel's work, besides its default.
SIZES: Mapping[str, dict[str, Any]] = {
    "8 warps": {"pixels": 256, "warps": 8, "back_pixels": 128, "back_warps": 8},
    "2 stages": {"back_stages": 2},
    "132 programs": {"programs": 132},
    "two passes, small sums": {"fused": False, "sums": 2**15},
    "large sums": {"sums": 2**19},
    "tiles of 32": {"width": 32},
}


def block_tables(options: Options, machine: dict[str, Any]) -> list[Table]:
    """Returns a table for each shape, dtype and pass."""
    platform = machine["platform"]
    both = ("float32", "bfloat16")
    return [
        _block_table(shape, dtype, passes, options, machine)
        for shape in shapes(options, platform)
        for dtype in options.dtypes or (both if platform == "cpu" else both[1:])
        for passes in ("forward", "forward + backward")
    ]


def shapes(options: Options, platform: str) -> list[Shape]:
    """Returns the chosen shapes, or the default ones of the platform.

    Raises:
      UnknownNameError: if a pattern matches no shape.
    """
    known = {str(shape): shape for shape in SHAPES[platform]}
    names = list(known)[: DEFAULTS.get(platform)]
    if options.blocks:
        names = []
    for pattern in options.blocks:
        found = fnmatch.filter(known, pattern)
        if not found:
            raise unknown_name("block", pattern, known)
        names += [name for name in found if name not in names]
    found = [known[name] for name in names]
    if options.quick:
        return [dataclasses.replace(found[0], images=2, side=8)]
    changes = {"images": options.batch_size} if options.batch_size else {}
    return [dataclasses.replace(shape, **changes) for shape in found]


def _block_table(
    shape: Shape, dtype: str, passes: str, options: Options, machine: dict[str, Any]
) -> Table:
    """Returns the table of a shape: the block, its implementations and baselines."""
    backward = passes != "forward"
    facts = {"shape": str(shape), "dtype": dtype, "passes": passes}
    common = shape.options | {"dtype": dtype, "backward": backward}
    size = 4 if dtype == "float32" else 2
    if machine["platform"] == "gpu":
        moved = shape.floor_numbers(train=backward, backward=backward)
        facts |= {
            "floor_bytes": size * moved,
            "flops": shape.flops(backward=backward),
            "tflops": options.tflops,
        }
        inputs = 2 if options.quick else copies(size * sum(shape.narrow_sizes))
        common["copies"] = inputs
    return Table(
        title=f"block of {shape}, {dtype}, {passes}",
        base="without its shift",
        cases=tuple(_block_cases(common, options, machine)),
        facts=facts,
    )


def _block_cases(
    common: dict[str, Any], options: Options, machine: dict[str, Any]
) -> list[Case]:
    """Returns the cases of a table, with their common options."""
    platform = machine["platform"]

    def case(name: str, middle: str, build: str = JAX, **own: Any) -> Case:
        library = "jax" if build == JAX else "torch"
        return Case(name, library, build, common | own | {"middle": middle})

    def torch(name: str, middle: str, **own: Any) -> Case:
        return case(f"{name}, PyTorch", middle, TORCH, **own)

    convolutions = {
        "depthwise 3x3 convolution": "depthwise",
        "one dense 3x3 convolution": "dense",
    }
    found = [case("copy of the input", "copy"), case("without its shift", "nothing")]
    if platform == "gpu" and not options.quick:
        own = {"shape": MEMORY, "dtype": "bfloat16", "copies": 1}
        found.append(case("copy of memory", "copy", **own))
    found += [case(f"shift by {name}", "shift", lowering=name) for name in LOWERINGS]
    found += [
        case(f"implementation {name}", **own)
        for name, own in implementations(platform).items()
    ]
    found += [case(name, kind, kernel_size=3) for name, kind in convolutions.items()]
    if machine.get("torch"):
        shifts = {"shift": "shift"}
        if platform == "gpu":
            shifts["shift by slices"] = "slices"
        found.append(torch("without its shift", "nothing"))
        found += [torch(name, kind) for name, kind in shifts.items()]
        found += [
            torch(name, kind, kernel_size=3) for name, kind in convolutions.items()
        ]
        if options.compile_torch:
            found += [
                torch(f"{name}, compiled", kind, compile=True)
                for name, kind in shifts.items()
            ]
    return found


def implementations(platform: str) -> dict[str, dict[str, Any]]:
    """Returns the candidate implementations of the block, as options of a case."""
    if platform != "gpu":
        return {platform: {"middle": platform}}
    found: dict[str, dict[str, Any]] = {"reference": {"middle": "reference"}}
    for name in (*LOWERINGS, "folded"):
        found[f"narrow, {name}"] = {"middle": "narrow", "lowering": name}
    found["gpu"] = {"middle": "gpu"}
    for name, sizes in SIZES.items():
        found[f"gpu, {name}"] = {"middle": "gpu", "sizes": sizes}
    return found
