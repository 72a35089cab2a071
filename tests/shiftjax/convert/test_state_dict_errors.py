"""Weights from PyTorch and to it: all mistakes."""

import functools

import numpy as np
import pytest
import safetensors.numpy

import shiftjax
from shiftjax import InputError, MissingFileError, UnknownNameError, convert
from shiftjax.cli.main import main
from shiftjax.models.resnet import CifarResNet
from tests.shiftjax.convert import torch_writer

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused(weights, value):
    weights["bn1.bias"] = np.array([0.0] * 15 + [value], np.float16)
    message = "shiftresnet20_e1: bn1.bias has values that are NaN or infinite"
    with pytest.raises(InputError, match=message):
        convert.from_torch(weights, "shiftresnet20_e1")


def test_all_that_does_not_fit_is_named(weights):
    del weights["conv1.weight"], weights["layer3.2.bn2.running_var"]
    weights["bn1.weight"] = np.zeros((17,), np.float32)
    weights["layer1.0.conv1.weight"] = np.zeros((16, 16), np.float32)
    weights["bn1.bias"] = np.zeros(16, np.int64)
    weights["layer1.1.bn1.bias"] = [0.0] * 16
    weights["layer1.2.bn1.bias"] = None
    weights |= {"layer3.3.conv1.weight": np.zeros(3), "fc.bias": 3}
    with pytest.raises(InputError) as error:
        convert.from_torch(weights, "shiftresnet20_e1")
    what, _, problems = str(error.value).partition(": ")
    assert what == "the state dict does not fit shiftresnet20_e1"
    assert problems.split("; ") == [
        "conv1.weight [16, 3, 3, 3] is missing",
        "layer3.2.bn2.running_var [64] is missing",
        "layer3.3.conv1.weight is unknown",
        "fc.bias is unknown",
        "bn1.weight is [17], not [16]",
        "bn1.bias is int64, not floats",
        "layer1.0.conv1.weight is [16, 16], not [16, 16, 1, 1]",
        "layer1.1.bn1.bias is a list, not an array",
        "and 1 more",
    ]
    del weights["fc.bias"]
    with pytest.raises(InputError) as error:
        convert.from_torch(weights, "shiftresnet20_e1")
    last = "; layer1.2.bn1.bias is a NoneType, not an array"
    assert str(error.value).endswith(last)
    with pytest.raises(InputError) as error:
        convert.from_torch({"net": {}}, "resnet110")
    assert len(str(error.value)) < 500
    assert str(error.value).endswith("; and 549 more")


def test_weights_of_another_network_are_refused(weights):
    with pytest.raises(InputError, match=r"layer1\.3\.conv1\.weight \[48, 16, 1, 1\]"):
        convert.from_torch(weights, "shiftresnet56_e3")
    with pytest.raises(InputError, match=r"conv1\.weight is \[16, 16, 1, 1\], not \["):
        convert.from_torch(weights, "resnet20")
    with pytest.raises(InputError, match=r"linear\.bias is \[10\], not \[100\]"):
        convert.from_torch(weights, "shiftresnet20_e1", num_classes=100)


def test_variables_that_do_not_fit_are_named(weights):
    variables = convert.from_torch(weights, "shiftresnet20_e1")
    del variables["params"]["stem"]["norm"]["bias"]
    variables["batch_stats"]["stem"]["norm"]["mean"] = np.zeros(3, np.float32)
    variables["params"]["extra"] = np.zeros(3)
    variables["params"]["head"]["bias"] = np.zeros(10, np.int32)
    with pytest.raises(InputError) as error:
        convert.to_torch(variables, "shiftresnet20_e1")
    what, _, problems = str(error.value).partition(": ")
    assert what == "the tree of variables does not fit shiftresnet20_e1"
    assert problems.split("; ") == [
        "params/stem/norm/bias [16] is missing",
        "params/extra is unknown",
        "batch_stats/stem/norm/mean is [3], not [16]",
        "params/head/bias is int32, not floats",
    ]


@pytest.mark.parametrize("source", [{}, {"net": {}}, {"epoch": 3}])
def test_what_holds_no_weights_is_refused(source):
    with pytest.raises(InputError, match=r"conv1\.weight \[16, 3, 3, 3\] is missing"):
        convert.from_torch(source, "shiftresnet20_e1")


def test_a_file_of_a_number_is_refused(tmp_path):
    path = tmp_path / "number.pt"
    path.write_bytes(torch_writer.archive(3))
    with pytest.raises(InputError, match=r"number\.pt: it is of type int, neither"):
        convert.from_torch(path, "resnet20")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"there is no file .*missing\.t7"):
        convert.from_torch(tmp_path / "missing.t7", "resnet20")


def test_an_unknown_network_is_answered_with_the_nearest(weights):
    with pytest.raises(UnknownNameError, match=r"did you mean 'shiftresnet20_e\d"):
        convert.from_torch(weights, "shiftresnet20_e2")
    with pytest.raises(UnknownNameError, match="did you mean 'resnet20'"):
        convert.to_torch({}, "resnet2O")


def test_a_network_that_is_not_the_authors_is_refused(monkeypatch, weights):
    other = functools.partial(CifarResNet, depth=20)
    monkeypatch.setitem(shiftjax.registry.VARIANTS, "other", other)
    with pytest.raises(
        InputError, match="other cannot be converted: it is not a CIFAR network"
    ):
        convert.from_torch(weights, "other")


@pytest.fixture
def command(tmp_path, weights):
    """Runs the command on a file of the state dict; returns its code and message."""
    source = tmp_path / "net.safetensors"

    def run(capsys, *options, output="out.safetensors", state_dict=weights):
        arrays = {name: np.asarray(array) for name, array in state_dict.items()}
        safetensors.numpy.save_file(arrays, source)
        words = ["convert", str(source), "--model", "shiftresnet20_e1"]
        code = main([*words, "-o", str(tmp_path / output), *options])
        return code, capsys.readouterr().err

    return run


def test_the_command_keeps_the_checkpoint(tmp_path, command, capsys):
    code, error = command(capsys, output="net.safetensors")
    assert code == 2
    assert "net.safetensors is the checkpoint" in error
    path = str(tmp_path / "net.safetensors")
    assert "conv1.weight" in safetensors.numpy.load_file(path)
    missing = str(tmp_path / "no.pth")
    assert main(["convert", missing, "--model", "shiftresnet20_e1", "-o", path]) == 2
    assert capsys.readouterr().err == f"shiftjax: there is no file {missing}\n"


def test_the_command_asks_for_the_numbers_of_gray_images(weights, command, capsys):
    gray = weights | {"conv1.weight": weights["conv1.weight"][:, :1].copy()}
    code, error = command(capsys, state_dict=gray)
    assert code == 2
    assert "--mean has 3 numbers, and the images of " in error
    assert "net.safetensors have 1 channel" in error
    code, error = command(capsys, "--mean", "0.5", state_dict=gray)
    assert (code, "--std has 3 numbers" in error) == (2, True)
    assert command(capsys, "--mean", "0.5", "--std", "1", state_dict=gray)[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    {
        ("--image-size", "-5"): "image_size=-5: it must be a whole number of 1 to 32",
        ("--image-size", "99999"): "image_size=99999: it must be a whole number of 1 ",
        ("--resize", "0"): "resize=0: it must be a whole number of 1 to 32768, or null",
        ("--mean", "0.5", "0.5"): "--mean has 2 numbers, and the images of ",
    }.items(),
)
def test_the_command_names_an_option_that_does_not_fit(
    command, capsys, options, message
):
    code, error = command(capsys, *options)
    assert code == 2
    assert error.count("\n") == 1
    assert message in error
