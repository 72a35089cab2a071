"""The operation: every lowering of the shift, a copy and convolutions."""

from typing import Any

from benchmarks.cases import Case, Options, Table
from shiftjax.lowerings import DEFAULT_LOWERING, LOWERINGS

KERNEL_SIZES = (3, 5, 7)
SHAPES = {
    "cpu": [(48, 32, 32, 144)],  # 28 MB in float32
    "gpu": [(1024, 32, 32, 144), (1024, 32, 32, 48), (128, 56, 56, 256)],
    "tpu": [(512, 32, 32, 144)],  # 302 MB
}
TORCH_LOWERINGS = ("one-hot", "slices")
BUILD = {
    "jax": "benchmarks.jax_operations:jax_operation",
    "torch": "benchmarks.torch_programs:torch_operation",
}


def shift_tables(options: Options, machine: dict[str, Any]) -> list[Table]:
    """Returns a table for each shape, dtype and pass."""
    shapes = [
        [options.batch_size or images, *shape]
        for images, *shape in SHAPES[machine["platform"]]
    ]
    if options.quick:
        shapes = [[2, 8, 8, 144]]
    return [
        Table(
            title=f"shift of {' x '.join(map(str, shape))}, {dtype}, {passes}",
            base="copy",
            cases=tuple(_shift_cases(shape, dtype, passes != "forward", machine)),
            facts={"shape": shape, "dtype": dtype, "passes": passes},
        )
        for shape in shapes
        for dtype in options.dtypes or ("float32", "bfloat16")
        for passes in ("forward", "forward + backward")
    ]


def _shift_cases(
    shape: list[int], dtype: str, backward: bool, machine: dict[str, Any]
) -> list[Case]:
    """Returns a copy, every lowering for each K, and convolutions, in each library."""
    default = DEFAULT_LOWERING.get(machine["platform"], "select")
    many = {"copies": 2} if machine["platform"] == "gpu" else {}  # which no cache holds
    found = []
    for library in ("jax", "torch") if machine.get("torch") else ("jax",):
        of_torch = ", PyTorch" if library == "torch" else ""

        def case(
            name: str, library: str = library, end: str = of_torch, **own: Any
        ) -> Case:
            own |= many | {"shape": shape, "dtype": dtype, "backward": backward}
            return Case(name + end, library, BUILD[library], own)

        found.append(case("copy", kind="copy"))
        for kernel_size in KERNEL_SIZES:
            for lowering in TORCH_LOWERINGS if of_torch else LOWERINGS:
                mark = " (default)" if not of_torch and lowering == default else ""
                found.append(
                    case(
                        f"K = {kernel_size}, {lowering}{mark}",
                        kind="shift",
                        kernel_size=kernel_size,
                        lowering=lowering,
                    )
                )
        found.append(case("depthwise 3x3 convolution", kind="depthwise"))
        found.append(case("dense 3x3 convolution", kind="dense"))
    return found
