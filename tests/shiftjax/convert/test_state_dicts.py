"""Weights from PyTorch and to it: the authors' networks in NumPy, and all networks."""

import collections
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze
from safetensors.numpy import save_file

import shiftjax
from shiftjax import InputError, MissingFileError, convert
from shiftjax.cli.main import main
from shiftjax.convert import torch_files
from shiftjax.convert.names import interleaved
from shiftjax.models import resnet
from tests.shiftjax.convert import torch_writer
from tests.shiftjax.convert.conftest import interleaved_table

pytestmark = pytest.mark.usefixtures("quick")


# What makes the authors' network, and ours.
NETWORKS = {
    "shiftresnet20_e1": ({}, {}),
    "shiftresnet20_e3": ({"inner": 3, "classes": 100}, {}),
    "shiftresnet20": (
        {"inner": 1.7, "size": 5, "blocks": 1},
        {"expansion": 1.7, "kernel_size": 5, "depth": 8},
    ),
    "resnet20": (
        {"kind": "plain", "inner": 1 / 2.8, "blocks": 1},
        {"block_reduction": 2.8, "depth": 8},
    ),
    "depthwise_resnet20": (
        {"kind": "depthwise", "inner": 1 / 0.38, "classes": 7, "blocks": 1},
        {"reduction": 0.38, "depth": 8},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_authors_networks(rng, authors, name):
    """To rounding: theirs are computed in float64, ours in float32."""
    theirs, ours = NETWORKS[name]
    network = authors(**theirs)
    variables = convert.from_torch(network.weights, name, **ours)
    model = shiftjax.create_model(
        name, num_classes=theirs.get("classes", 10), scan=True, **ours
    )
    images = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    expected = network(images)
    assert expected.std() > 0.1
    logits = jax.jit(model.apply)(variables, images)
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(authors, name):
    """All bits, and all names in the authors' order."""
    theirs, ours = NETWORKS[name]
    weights = authors(**theirs).weights
    again = convert.to_torch(convert.from_torch(weights, name, **ours), name, **ours)
    assert list(again) == list(weights)
    for key, array in again.items():
        if key.endswith("num_batches_tracked"):
            assert (array.shape, array.dtype, array) == ((), np.int64, 0)
        else:
            assert (array.dtype, array.flags.c_contiguous) == (np.float32, True)
            np.testing.assert_array_equal(array, weights[key])


@pytest.mark.parametrize("name", ["shiftnet_c", "shiftresnet50"])
def test_networks_that_are_not_the_authors_cifar_networks(name):
    with pytest.raises(InputError, match=f"{name} cannot be converted: it is not a"):
        convert.from_torch({}, name)


@pytest.mark.parametrize("name", resnet.VARIANTS)
def test_every_network_there_and_back(randomize, name):
    """With the names, shapes, dtypes and bits of the network's own variables."""
    options = {"depth": 20} if "110" in name and "e1" not in name else {}  # as quick
    model = shiftjax.create_model(name, num_classes=3, **options)
    variables = randomize(model, jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32))
    weights = convert.to_torch(variables, name, **options)
    again = convert.from_torch(weights, name, **options)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(variables), strict=True):
        assert type(a) is np.ndarray
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("channels", [1, 8, 9, 10, 18, 27, 35, 48, 96])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_order_of_channels(reference, channels, size):
    """Ours, taken from theirs, move as the paper's groups do, and none is lost."""
    order = interleaved(channels, size)
    assert sorted(order) == list(range(channels))
    theirs = interleaved_table(channels, size)
    assert [theirs[c] for c in order] == reference.table(channels, size)


def test_the_order_of_channels_is_among_equals_their_own():
    expected = [0, 9, 1, 10, 2, 11, 3, 12, 4, 13, 5, 14, 6, 15, 7, 16, 8, 17, 18]
    assert interleaved(19, 3).tolist() == expected


FORMS = {
    "module.": lambda w: {f"module.{name}": value for name, value in w.items()},
    "net": lambda w: {"net": w, "acc": 85.8, "epoch": 150},
    "state_dict": lambda w: {"epoch": 1, "state_dict": w},
    "jax": lambda w: {name: jnp.asarray(value) for name, value in w.items()},
    "uncounted": lambda w: {
        name: value for name, value in w.items() if "tracked" not in name
    },
    "reversed": lambda w: dict(reversed(w.items())),
}


def assert_converted(actual, weights):
    """The variables of these weights, of which one has been converted by hand."""
    kernel = weights["layer2.0.conv2.weight"][:, :, 0, 0].T
    order = interleaved(32, 3)
    found = actual["params"]["stage2_block01"]["project"]["conv"]["kernel"]
    np.testing.assert_array_equal(found, kernel[order])
    expected = convert.from_torch(weights, "shiftresnet20_e1")
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_state_dict(weights, form):
    found = convert.from_torch(FORMS[form](weights), "shiftresnet20_e1")
    assert_converted(found, weights)


@pytest.mark.parametrize("kind", torch_writer.FORMATS)
@pytest.mark.parametrize("saved", ["state dict", "module."])
def test_files_with_a_state_dict(tmp_path, weights, kind, saved):
    prefix = saved if saved == "module." else ""
    state = collections.OrderedDict(
        (f"{prefix}{name}", torch_writer.tensor(value))
        for name, value in weights.items()
    )
    path = tmp_path / "weights.pth"
    path.write_bytes(torch_writer.FORMATS[kind](state))
    assert_converted(convert.from_torch(path, "shiftresnet20_e1"), weights)
    assert_converted(convert.from_torch(f"{path}", "shiftresnet20_e1"), weights)


def test_the_authors_files(tmp_path, weights):
    """A whole module on a GPU, of Python 2."""
    module = torch_writer.module(
        weights, torch_writer.old_parameter, torch_writer.ordered
    )
    path = tmp_path / "shiftresnet20_1.0.t7"
    value = {"net": module, "acc": 85.8, "epoch": 150}
    path.write_bytes(torch_writer.legacy(value, python2=True))
    assert_converted(convert.from_torch(path, "shiftresnet20_e1"), weights)


class HalfTensor:
    """A tensor of PyTorch in half precision; NumPy cannot hold its bfloat16."""

    def __init__(self, value, kind):
        self.value, self.dtype = value, f"torch.{kind}"

    def detach(self):
        return self

    cpu = detach

    def is_floating_point(self):
        return True

    def float(self):
        return HalfTensor(self.value, "float32")

    def __array__(self, dtype=None, copy=None):
        assert self.dtype != "torch.bfloat16"
        return np.array(self.value, dtype or self.dtype.removeprefix("torch."))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_tensors_in_half_precision_are_converted_with_a_warning(weights, caplog, kind):
    halves = {
        name: np.asarray(value, jnp.dtype(kind)).astype(np.float32)
        for name, value in weights.items()
        if not name.endswith("num_batches_tracked")
    }
    tensors = {name: HalfTensor(value, kind) for name, value in halves.items()}
    variables = convert.from_torch(tensors, "shiftresnet20_e1")
    assert f"has weights in {kind}, less exact than float32" in caplog.text
    expected = convert.from_torch(halves, "shiftresnet20_e1")
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    assert variables["params"]["head"]["bias"].dtype == np.float32


def test_the_command_writes_a_file_of_weights(tmp_path, weights, capsys):
    path, out = tmp_path / "net.t7", tmp_path / "net.safetensors"
    value = {"net": torch_writer.module(weights), "acc": 85.8}
    path.write_bytes(torch_writer.legacy(value))
    words = ["convert", str(path), "--model", "shiftresnet20_e1", "-o", str(out)]
    assert main(words) == 0
    assert "shiftresnet20_e1, 10 classes" in capsys.readouterr().out
    _, variables = shiftjax.load_pretrained(str(out))
    jax.tree.map(
        np.testing.assert_array_equal,
        variables,
        convert.from_torch(path, "shiftresnet20_e1"),
    )
    assert main([*words[:3], "shiftresnet20_e3", "-o", str(out)]) == 2
    line = capsys.readouterr().err
    assert "does not fit shiftresnet20_e3" in line
    assert line.count("\n") == 1


def test_the_command_takes_options_of_the_network(tmp_path, weights, capsys):
    path, out = tmp_path / "net.pth", str(tmp_path / "net.safetensors")
    path.write_bytes(torch_writer.legacy(torch_writer.module(weights)))
    words = ["convert", str(path), "--model", "shiftresnet20", "-o", out, "--options"]
    assert main([*words, "expansion=1", "param_dtype=bfloat16"]) == 0
    model, variables = shiftjax.load_pretrained(out)
    assert (model.expansion, model.num_classes) == (1, 10)
    assert variables["params"]["head"]["bias"].dtype == jnp.bfloat16
    assert main([*words, "expansion=1", "source=2"]) == 2
    assert "unknown option of shiftresnet20 'source'" in capsys.readouterr().err


def test_a_true_file_of_python_2_7_and_pytorch_1_4():
    """With the logits that PyTorch computed: `authors_torch.py` wrote it."""
    path = Path(__file__).parent / "data" / "shiftresnet8_0.5.t7"
    saved = torch_files.read_torch_file(path)
    assert (saved["acc"], saved["epoch"]) == (91.5, 159)
    images, expected = saved["images"].array(), saved["logits"].array()
    options = {"depth": 8, "expansion": 0.5}
    variables = convert.from_torch(path, "shiftresnet20", **options)
    model = shiftjax.create_model("shiftresnet20", num_classes=3, **options)
    logits = jax.jit(model.apply)(variables, images.transpose(0, 2, 3, 1))
    assert expected.std() > 0.1
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
def test_other_floats_are_converted(weights, dtype, caplog):
    """With a warning if they are less precise."""
    changed = {name: np.asarray(value, dtype) for name, value in weights.items()}
    found = convert.from_torch(changed, "shiftresnet20_e1")
    kind = np.dtype(dtype)
    warning = f"the state dict has weights in {kind}, less exact than float32"
    assert caplog.messages == ([] if dtype is np.float64 else [warning])
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
    expected = weights["linear.bias"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(found["params"]["head"]["bias"], expected)


def test_params_have_the_dtype_of_the_network(weights):
    options = {"param_dtype": jnp.bfloat16}
    found = convert.from_torch(weights, "shiftresnet20_e1", **options)
    model = shiftjax.create_model("shiftresnet20_e1", **options)
    own = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), found, own)
    back = convert.to_torch(found, "shiftresnet20_e1", **options)
    expected = weights["linear.bias"].astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(back["linear.bias"], expected)


def test_what_is_returned_is_no_part_of_what_was_given(weights):
    before = {name: np.copy(value) for name, value in weights.items()}
    found = convert.from_torch(weights, "shiftresnet20_e1")
    there = convert.to_torch(found, "shiftresnet20_e1")
    for leaf in [*jax.tree.leaves(found), *there.values()]:
        leaf[...] = 7
    for name, value in weights.items():
        np.testing.assert_array_equal(value, before[name])


def test_frozen_variables_are_taken(weights):
    found = convert.from_torch(weights, "shiftresnet20_e1")
    there = convert.to_torch(freeze(found), "shiftresnet20_e1")
    np.testing.assert_array_equal(there["conv1.weight"], weights["conv1.weight"])


def test_safetensors_with_the_names_of_pytorch(weights, tmp_path):
    """Also of bfloat16, of which the values are the nearest."""
    path = tmp_path / "net.safetensors"
    arrays = {f"module.{name}": np.asarray(x) for name, x in weights.items()}
    short = arrays["module.linear.bias"].astype(jnp.bfloat16)
    save_file(arrays | {"module.linear.bias": short}, path)
    params = convert.from_torch(path, "shiftresnet20_e1")["params"]
    kernel = weights["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["stem"]["conv"]["kernel"], kernel)
    np.testing.assert_array_equal(params["head"]["bias"], short.astype(np.float32))


def test_safetensors_that_cannot_be_read(tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(MissingFileError, match="there is no file"):
        convert.from_torch(path, "resnet20")
    path.write_bytes(b"\x08")
    with pytest.raises(InputError, match=r"net\.safetensors: it is cut short or dam"):
        convert.from_torch(path, "resnet20")
    save_file({"conv1.weight": np.zeros(3, np.uint64)}, path)
    with pytest.raises(InputError, match=r"conv1\.weight is U64, which is not one of"):
        convert.from_torch(path, "resnet20")
