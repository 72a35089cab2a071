"""The cost of networks, against counts by hand."""

import io

import flax.linen as nn
import jax.numpy as jnp
import pytest
from rich.console import Console

from shiftjax import ConvNorm, InputError, ShiftConv, UnknownNameError, summarize
from shiftjax.models.resnet import ShiftResNet

# Layers of a shift block of stride 2, from 4 to 6 channels with E = 2, on 5x5 pixels:
# path, kind, output, params, multiply-adds; four bytes a number.
BLOCK = [
    ("expand/conv", "Dense", (5, 5, 12), 4 * 12, 4 * 12 * 25),
    ("expand/norm", "BatchNorm", (5, 5, 12), 24, 0),
    ("shift", "Shift", (3, 3, 12), 0, 0),
    ("project/conv", "Dense", (3, 3, 6), 12 * 6, 12 * 6 * 9),
    ("project/norm", "BatchNorm", (3, 3, 6), 12, 0),
    ("shortcut/conv", "Dense", (3, 3, 6), 4 * 6, 4 * 6 * 9),
    ("shortcut/norm", "BatchNorm", (3, 3, 6), 12, 0),
]


def test_every_row_by_hand():
    summary = summarize(ShiftConv(6, strides=2, expansion=2), 5, channels=4)
    assert summary.name == "ShiftConv"
    assert summary.image == (5, 5, 4)
    rows = [(r.path, r.kind, r.output, r.params, r.macs) for r in summary.layers]
    assert rows == BLOCK
    sizes = [4 * 300, 4 * 300, 4 * 108, 4 * 54, 4 * 54, 4 * 54, 4 * 54]
    assert [row.bytes for row in summary.layers] == sizes
    assert summary.params == 192
    assert summary.macs == 1200 + 648 + 216
    assert summary.bytes == sum(sizes)


CONVOLUTIONS = {
    "3x3": (ConvNorm(8, 3), 216 + 16, 216 * 25),
    "3x3, stride 2": (ConvNorm(8, 3, 2), 216 + 16, 216 * 9),
    "depthwise": (ConvNorm(3, 5, depthwise=True), 75 + 6, 75 * 25),
    "dense": (nn.Dense(7), 3 * 7 + 7, 3 * 7 * 25),
    "valid": (nn.Conv(7, (3, 3), padding="VALID"), 27 * 7 + 7, 27 * 7 * 9),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_on_five_by_five_pixels(name):
    module, params, macs = CONVOLUTIONS[name]
    summary = summarize(module, image_size=5)
    assert (summary.params, summary.macs) == (params, macs)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_kernels_may_have_names_of_axes(name):
    module, params, macs = CONVOLUTIONS[name]
    init = nn.with_partitioning(nn.initializers.he_normal(), (None, "model"))
    summary = summarize(module.clone(kernel_init=init), image_size=5)
    assert (summary.params, summary.macs) == (params, macs)


def test_rows_of_a_network_are_in_the_order_of_computation():
    summary = summarize("shiftresnet20_e3")
    assert summary.name == "shiftresnet20_e3"
    assert summary.image == (32, 32, 3)
    paths = [row.path for row in summary.layers]
    assert paths[:3] == ["stem/conv", "stem/norm", "stage1_block01/expand/conv"]
    assert paths[-1] == "head"
    assert len(set(paths)) == len(paths)
    assert sum(path.endswith("/shift") for path in paths) == 9
    assert summary.params == sum(row.params for row in summary.layers) == 95_642


def test_cost_grows_with_the_pixels_and_params_do_not():
    small, large = (summarize("shiftresnet20_e1", size) for size in (32, 64))
    assert large.params == small.params
    head = 64 * 10
    assert large.macs - head == 4 * (small.macs - head)


def test_no_image_is_made():
    """This one would take 12 TB."""
    side = 10**6
    assert summarize(ConvNorm(8, 3), side).macs == 216 * side**2


def test_bytes_are_those_of_the_dtype_computed_in():
    full, half = (
        summarize(ConvNorm(8, 3, dtype=dtype), 5) for dtype in (None, jnp.bfloat16)
    )
    assert half.bytes * 2 == full.bytes == 2 * 4 * 200


def test_a_module_used_twice_computes_twice_and_has_its_params_once():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.Dense(3, name="shared")
            return dense(dense(x))

    summary = summarize(Twice(), 4)
    assert summary.macs == 2 * 9 * 16
    assert summary.params == 12


def test_a_summary_prints_as_a_table():
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summarize(ShiftResNet(8), 16))
    lines = console.export_text().splitlines()
    assert "ShiftResNet, one image of 16 x 16 x 3" in lines[0]
    for word in ("layer", "kind", "output", "parameters", "multiply-adds", "bytes"):
        assert word in lines[2]
    assert any("stage2_block01/expand/conv" in line for line in lines)
    row = next(line for line in lines if "stem/conv" in line)
    for word in ("Conv", "16 x 16 x 16", "432", "110,592", "16,384"):
        assert word in row
    summary = summarize(ShiftResNet(8), 16)
    total = next(line for line in lines if "total" in line)
    for number in (summary.params, summary.macs, summary.bytes):
        assert f"{number:,}" in total


def test_a_size_is_a_pair_or_a_list_of_two():
    of_pair, of_list = (summarize("resnet20", size) for size in ((32, 16), [32, 16]))
    assert of_pair.macs == of_list.macs


INVALID = {
    "image size of three": (lambda: summarize("resnet20", (8, 8, 3)), "two numbers"),
    "image size 0": (lambda: summarize("resnet20", 0), "image_size=0"),
    "image size negative": (lambda: summarize("resnet20", -1), "image_size=-1"),
    "image size a float": (lambda: summarize("resnet20", 32.0), "image_size=32.0"),
    "no channels": (lambda: summarize("resnet20", channels=0), "channels=0"),
    "no size known": (lambda: summarize(ConvNorm(8)), "ConvNorm has no image size"),
    "no expansion": (lambda: summarize("shiftresnet20"), "needs expansion"),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_argument_is_named_with_its_value(name):
    call, message = INVALID[name]
    with pytest.raises(InputError, match=message):
        call()


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"did you mean .*'resnet20'"):
        summarize("resnet02")
