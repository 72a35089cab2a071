"""The block around the shift: 1x1, BatchNorm, ReLU, shift, 1x1, BatchNorm, ReLU."""

import dataclasses
from typing import Any

from benchmarks.cases import Case, Options, Table
from shiftjax.shift import LOWERINGS

JAX, TORCH = "benchmarks.jax_operations:block", "benchmarks.torch_programs:block"


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of a block; the batch is `images` on a CPU, more elsewhere."""

    images: int
    side: int
    channels: int
    expansion: int
    kernel_size: int

    def __str__(self) -> str:
        size = f"{self.side} x {self.side} x {self.channels}"
        return f"{size}, E = {self.expansion}, K = {self.kernel_size}"


SHAPES = (
    Shape(128, 32, 16, 3, 3),  # ShiftResNet-20
    Shape(128, 32, 16, 9, 3),
    Shape(128, 16, 32, 6, 7),
    Shape(8, 56, 64, 4, 5),  # ShiftNet-A
    Shape(16, 14, 256, 2, 3),
)
TIMES_IMAGES = 8  # where memory is fast, and calls must not be too short


def tables(options: Options, machine: dict[str, Any]) -> list[Table]:
    """One table for each shape and dtype: evaluated, and trained."""
    shapes = SHAPES[:1] if options.quick else SHAPES
    found = []
    for shape in shapes:
        images = shape.images * (1 if machine["platform"] == "cpu" else TIMES_IMAGES)
        images = 4 if options.quick else options.batch_size or images
        for dtype in options.dtypes or ("float32", "bfloat16"):
            for passes in ("forward", "forward + backward"):
                size = [images, shape.side, shape.side, shape.channels]
                common = {
                    "shape": size,
                    "expansion": shape.expansion,
                    "kernel_size": shape.kernel_size,
                    "dtype": dtype,
                    "backward": passes != "forward",
                }
                found.append(
                    Table(
                        title=f"block of {images} x {shape}, {dtype}, {passes}",
                        base="without its shift",
                        cases=tuple(cases(common, options, machine)),
                        facts={
                            "shape": str(shape),
                            "images": images,
                            "dtype": dtype,
                            "passes": passes,
                        },
                    )
                )
    return found


def cases(
    common: dict[str, Any], options: Options, machine: dict[str, Any]
) -> list[Case]:
    """The block with and without its shift, its forms, and its competitors."""

    def jax(name: str, middle: str, **own: Any) -> Case:
        return Case(name, "jax", JAX, common | own | {"middle": middle})

    def torch(name: str, middle: str, **own: Any) -> Case:
        return Case(
            f"{name}, PyTorch", "torch", TORCH, common | own | {"middle": middle}
        )

    found = [jax("copy of the input", "copy"), jax("without its shift", "nothing")]
    found += [jax(f"shift by {name}", "shift", lowering=name) for name in LOWERINGS]
    found += [
        jax(f"shiftjax, form {name}", name)
        for name in FORMS.get(machine["platform"], ())
    ]
    found += [
        jax("depthwise 3x3 convolution", "depthwise", kernel_size=3),
        jax("one dense 3x3 convolution", "dense", kernel_size=3),
    ]
    if machine.get("torch"):
        found += [
            torch("without its shift", "nothing"),
            torch("shift", "shift"),
            torch("depthwise 3x3 convolution", "depthwise", kernel_size=3),
            torch("one dense 3x3 convolution", "dense", kernel_size=3),
        ]
        if options.compile_torch:
            found.append(torch("shift, compiled", "shift", compile=True))
    return found


# The forms of the library's own block that may be fast, by platform.
FORMS = {"cpu": ("planes",), "gpu": ("kernel",), "tpu": ("kernel",)}
