"""Restyling of one large image, compared with PyTorch and with the plain stylizer."""

from typing import Any

import jax

from benchmarks import jax_programs
from benchmarks.cases import Case, Options, Program, Table
from shiftjax import create_model

SIDE = 1024  # of the image, in pixels: about one megapixel
QUICK_SIDE = 64
NETWORKS = ("shift_stylizer", "stylizer")


def style_tables(options: Options, machine: dict[str, Any]) -> list[Table]:
    """Returns a table of both stylizers."""
    side = QUICK_SIDE if options.quick else SIDE
    cases = []
    for name in NETWORKS:
        own = {"name": name, "side": side}
        cases.append(Case(name, "jax", "benchmarks.style:jax_stylizer", own))
        reference = own | {"implementation": "reference"}
        row = f"{name}, reference"
        cases.append(Case(row, "jax", "benchmarks.style:jax_stylizer", reference))
        if machine.get("torch"):
            compiled = [False, True] if options.compile_torch else [False]
            for chosen in compiled:
                row = f"{name}, PyTorch{' compiled' if chosen else ''}"
                build = "benchmarks.torch_style:torch_stylizer"
                cases.append(Case(row, "torch", build, own | {"compiled": chosen}))
    title = f"restyling of an image of {side} x {side}"
    return [Table(title, NETWORKS[0], tuple(cases), {"side": side})]


def jax_stylizer(name: str, side: int, implementation: str | None = None) -> Program:
    """Makes the program of a stylizer with random weights."""
    model = create_model(name, implementation=implementation)

    def arguments() -> tuple[Any, jax.Array]:
        images = jax_programs.random((1, side, side, 3), "float32")
        return model.init(jax.random.key(0), images[:, :16, :16]), images

    return jax_programs.make_program((model.apply, arguments))
