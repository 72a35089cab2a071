"""The benchmarks as data: what is measured on each platform."""

import json
import shutil

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.block import MEMORY, SIZES, Shape
from benchmarks.cases import Options
from shiftjax.errors import InputError, UnknownNameError
from shiftjax.lowerings import DEFAULT_LOWERING, LOWERINGS

MACHINES = [
    {"platform": "cpu", "torch": "2.13.0"},
    {"platform": "cpu"},
    {"platform": "gpu", "torch": "2.13.0"},
    {"platform": "tpu"},
]


@pytest.mark.parametrize("machine", MACHINES, ids=str)
@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_tables_are_whole(name, machine):
    tables = BENCHMARKS[name](Options((name,), compile_torch=True), machine)
    titles = [table.title for table in tables]
    assert len(set(titles)) == len(titles) > 0
    for table in tables:
        names = [case.name for case in table.cases]
        assert len(set(names)) == len(names) > (1 if machine.get("torch") else 0)
        assert table.base in names
        json.dumps([dict(case.options) for case in table.cases])
        libraries = {case.library for case in table.cases}
        assert libraries == ({"jax", "torch"} if machine.get("torch") else {"jax"})
        if machine["platform"] == "tpu":  # which only one process can hold
            assert table.processes in ("library", "alone")


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_every_lowering_and_kernel_size_is_measured(platform):
    tables = BENCHMARKS["shift"](Options(("shift",)), {"platform": platform})
    shapes = 3 if platform == "gpu" else 1
    assert len(tables) == 4 * shapes  # two dtypes, with and without gradients
    default = DEFAULT_LOWERING.get(platform, "select")
    for table in tables:
        names = [case.name for case in table.cases]
        for kernel_size in (3, 5, 7):
            for lowering in LOWERINGS:
                mark = " (default)" if lowering == default else ""
                assert f"K = {kernel_size}, {lowering}{mark}" in names


def test_models_are_chosen_by_wildcards_and_expansions():
    options = Options(
        ("training",), models=("shiftresnet*_e*", "shiftnet_b"), expansions=(3,)
    )
    tables = BENCHMARKS["training"](options, {"platform": "cpu"})
    assert [table.facts["model"] for table in tables] == [
        "shiftresnet110_e3",
        "shiftresnet20_e3",
        "shiftresnet56_e3",
        "shiftnet_b",
    ]


def test_an_unknown_model_names_the_nearest():
    options = Options(("training",), models=("shiftresnet20_e4",))
    with pytest.raises(UnknownNameError, match="shiftresnet20_e"):
        BENCHMARKS["training"](options, {"platform": "cpu"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expansions": (4,)}, "expansions 4: it must be one of 1, 3, 6, 9"),
        ({"models": ("*_e1",), "expansions": (9,)}, "none of the models"),
    ],
)
def test_expansions_that_there_are_not(options, message):
    with pytest.raises(InputError, match=message):
        BENCHMARKS["training"](Options(("training",), **options), {"platform": "cpu"})


def test_inference_has_whole_batches_and_single_images():
    options = Options(("inference",), models=("shiftresnet20_e3",))
    tables = BENCHMARKS["inference"](options, {"platform": "cpu"})
    assert [table.facts["batch_size"] for table in tables] == [128, 1]


def test_torch_compile_is_measured_where_it_can_be():
    machine = {"platform": "cpu", "torch": "cpu"}
    names = {}
    for compiled in (False, True):
        options = Options(
            ("training",), models=("shiftresnet20_e3",), compile_torch=compiled
        )
        for name in ("training", "inference"):
            for table in BENCHMARKS[name](options, machine):
                names.setdefault(compiled, []).extend(case.name for case in table.cases)
    assert "the same in PyTorch, compiled" not in names[False]
    assert names[True].count("the same in PyTorch, compiled") == 3
    assert names[True].count("ResNet-20 in PyTorch, compiled") == 3
    assert Options(()).compile_torch == (shutil.which("c++") is not None)


def test_floors_by_hand():
    """128 x 32 x 32 x 16 are 2 Mi numbers; one product is 2 x 16 x 48 a pixel."""
    shape = Shape(128, 32, 16, 3)
    assert shape.floor_numbers(train=False, backward=False) == 2 * 2**21
    assert shape.floor_numbers(train=True, backward=False) == 6 * 2**21
    assert shape.floor_numbers(train=True, backward=True) == 16 * 2**21
    pixels = 128 * 32 * 32
    assert shape.flops(backward=False) == pixels * 2 * 2 * 16 * 48
    assert shape.flops(backward=True) == pixels * 7 * 2 * 16 * 48
    strided = Shape(128, 32, 16, 3, 3, 2)  # to half as many numbers
    assert strided.narrow_sizes == (2**21, 2**20)


def test_blocks_of_a_gpu_have_a_floor_and_all_implementations():
    options = Options(("block",), tflops=500, compile_torch=True)
    tables = BENCHMARKS["block"](options, {"platform": "gpu", "torch": "gpu"})
    assert len(tables) == 6  # three shapes, forward and backward
    forward, backward = tables[:2]
    assert forward.facts["floor_bytes"] == 2 * 2 * 1024 * 32 * 32 * 16
    assert backward.facts["floor_bytes"] == 2 * 16 * 1024 * 32 * 32 * 16
    assert backward.facts["tflops"] == 500
    cases = {case.name: case.options for case in backward.cases}
    assert cases["copy of memory"]["shape"] == MEMORY
    assert {f"implementation gpu, {name}" for name in SIZES} < set(cases)
    names = {"reference", "narrow, pad", "narrow, folded", "gpu"}
    assert {f"implementation {name}" for name in names} < set(cases)
    for name in ("shift", "shift by slices"):
        assert {f"{name}, PyTorch", f"{name}, compiled, PyTorch"} < set(cases)
    for sizes in SIZES.values():  # powers of two where they must be
        pixels = [sizes.get(name, 1) for name in ("pixels", "back_pixels")]
        assert all(count & (count - 1) == 0 for count in pixels)


def test_blocks_are_chosen_by_wildcards():
    options = Options(("block",), blocks=("1024*E = 3*",))
    tables = BENCHMARKS["block"](options, {"platform": "gpu"})
    shapes = dict.fromkeys(table.facts["shape"] for table in tables)
    assert [*shapes] == [
        "1024 x 32 x 32 x 16, E = 3, K = 3",
        "1024 x 16 x 16 x 32, E = 3, K = 3",
        "1024 x 8 x 8 x 64, E = 3, K = 3",
        "1024 x 32 x 32 x 16, E = 3, K = 3, stride 2",
    ]
    with pytest.raises(UnknownNameError, match="2048"):
        BENCHMARKS["block"](Options((), blocks=("2048*",)), {"platform": "gpu"})
