"""The benchmarks as data: what is measured on each platform."""

import json

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.cases import Options
from shiftjax.errors import InputError, UnknownNameError
from shiftjax.shift import DEFAULT_LOWERING, LOWERINGS

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
    assert len(set(titles)) == len(titles) > 1
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
    assert len(tables) == 4  # two dtypes, with and without gradients
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
