"""Weights from PyTorch: the authors' networks in NumPy, all networks, all mistakes."""

import collections
import functools
import itertools
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import shiftjax
from shiftjax import InputError, MissingFileError, UnknownNameError, convert
from shiftjax.cli.main import main
from shiftjax.convert import torch_files
from shiftjax.convert.names import interleaved
from shiftjax.models import resnet
from shiftjax.models.resnet import CifarResNet
from tests.shiftjax.convert import torch_writer

pytestmark = pytest.mark.usefixtures("quick")


class Authors:
    """The authors' networks as their code defines them, in NumPy and their names."""

    def __init__(
        self, reference, rng, *, kind="shift", blocks=3, classes=10, inner=1, size=3
    ):
        self.reference, self.kind, self.inner, self.size = reference, kind, inner, size
        self.weights, self.rng = collections.OrderedDict(), rng
        names = [f"layer{s}.{b}." for s in (1, 2, 3) for b in range(blocks)]
        widths = [16] * (blocks + 1) + [32] * blocks + [64] * blocks
        self.blocks = list(zip(names, itertools.pairwise(widths), strict=True))
        self.convolution("conv1", 3, 16, 3)
        self.norm("bn1", 16)
        for name, (before, after) in self.blocks:
            self.block(name, before, after)
        self.array("linear.weight", classes, 64)
        self.array("linear.bias", classes)

    def array(self, name, *shape):
        """A kernel that keeps the size of activations."""
        value = self.rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        self.weights[name] = value.astype(np.float32)

    def convolution(self, name, inputs, outputs, size):
        self.array(f"{name}.weight", outputs, inputs, size, size)

    def norm(self, name, channels):
        for array in ("weight", "bias", "running_mean", "running_var"):
            positive = array in ("weight", "running_var")
            value = self.rng.uniform(0.5 if positive else -0.5, 1.5, channels)
            self.weights[f"{name}.{array}"] = value.astype(np.float32)
        self.weights[f"{name}.num_batches_tracked"] = np.int64(self.rng.integers(99))

    def block(self, name, before, after):
        inner = int(after * self.inner)
        sizes = {"shift": (1, 1), "plain": (3, 3), "depthwise": (1, 1)}[self.kind]
        self.convolution(f"{name}conv1", before, inner, sizes[0])
        self.norm(f"{name}bn1", inner)
        last = "2"
        if self.kind == "depthwise":
            last = "3"
            self.convolution(f"{name}depth", 1, inner, 3)
            self.norm(f"{name}bn2", inner)
        self.convolution(f"{name}conv{last}", inner, after, sizes[1])
        self.norm(f"{name}bn{last}", after)
        if before != after:
            self.convolution(f"{name}shortcut.0", before, after, 1)
            self.norm(f"{name}shortcut.1", after)

    def __call__(self, images):
        """Logits of `[batch, height, width, channels]`, in float64."""
        y = np.maximum(self.unit("conv1", "bn1", images.astype(np.float64)), 0)
        for name, (before, after) in self.blocks:
            y = getattr(self, f"{self.kind}_block")(name, y, after // before)
        pooled = y.mean((1, 2))
        return pooled @ self.weights["linear.weight"].T + self.weights["linear.bias"]

    def unit(self, conv, norm, x, stride=1, groups=1):
        """A convolution and BatchNorm with the running statistics."""
        kernel = self.weights[f"{conv}.weight"].astype(np.float64)
        y = self.reference.conv(x, kernel.transpose(2, 3, 1, 0), stride, groups)
        weight, bias, mean, var = (
            self.weights[f"{norm}.{array}"]
            for array in ("weight", "bias", "running_mean", "running_var")
        )
        return (y - mean) / np.sqrt(var + 1e-5) * weight + bias

    def shortcut(self, name, x, stride):
        if f"{name}shortcut.0.weight" not in self.weights:
            return x
        return self.unit(f"{name}shortcut.0", f"{name}shortcut.1", x, stride)

    def shift_block(self, name, x, stride):
        """Channel c moves by displacement c mod K^2; no ReLU after the sum."""
        y = np.maximum(self.unit(f"{name}conv1", f"{name}bn1", x), 0)
        y = self.reference.displace(y, interleaved_table(y.shape[-1], self.size))
        y = np.maximum(self.unit(f"{name}conv2", f"{name}bn2", y, stride), 0)
        return y + self.shortcut(name, x, stride)

    def plain_block(self, name, x, stride):
        y = np.maximum(self.unit(f"{name}conv1", f"{name}bn1", x, stride), 0)
        y = self.unit(f"{name}conv2", f"{name}bn2", y)
        return np.maximum(y + self.shortcut(name, x, stride), 0)

    def depthwise_block(self, name, x, stride):
        y = np.maximum(self.unit(f"{name}conv1", f"{name}bn1", x), 0)
        y = self.unit(f"{name}depth", f"{name}bn2", y, groups=y.shape[-1])
        y = self.unit(f"{name}conv3", f"{name}bn3", y, stride)
        return np.maximum(y + self.shortcut(name, x, stride), 0)


def interleaved_table(channels, size):
    """The displacements of the authors' CUDA operation."""
    moved = channels // size**2 * size**2
    return [
        (c // size % size - size // 2, c % size - size // 2) if c < moved else (0, 0)
        for c in range(channels)
    ]


@pytest.fixture
def authors(reference, rng):
    """Returns a function that makes one of the authors' networks."""
    return lambda **options: Authors(reference, rng, **options)


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


@pytest.mark.parametrize("name", ["shiftnet_c", "resnet50"])
def test_networks_that_are_not_the_authors_cifar_networks(name):
    with pytest.raises(InputError, match=f"{name} is none of the networks of the auth"):
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


@pytest.fixture
def weights(authors):
    """A state dict of shiftresnet20_e1."""
    return authors().weights


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


def test_a_true_file_of_python_2_7_and_pytorch_1_4():
    """With the logits that PyTorch computed: `authors_torch.py` wrote it."""
    path = Path(__file__).parent / "data" / "shiftresnet8_0.5.t7"
    saved = torch_files.read(path)
    assert (saved["acc"], saved["epoch"]) == (91.5, 159)
    images, expected = saved["images"].array(), saved["logits"].array()
    options = {"depth": 8, "expansion": 0.5}
    variables = convert.from_torch(path, "shiftresnet20", **options)
    model = shiftjax.create_model("shiftresnet20", num_classes=3, **options)
    logits = jax.jit(model.apply)(variables, images.transpose(0, 2, 3, 1))
    assert expected.std() > 0.1
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
def test_other_floats_are_converted(weights, dtype):
    changed = {name: np.asarray(value, dtype) for name, value in weights.items()}
    found = convert.from_torch(changed, "shiftresnet20_e1")
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
    there = convert.to_torch(flax.core.freeze(found), "shiftresnet20_e1")
    np.testing.assert_array_equal(there["conv1.weight"], weights["conv1.weight"])


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
        "layer3.3.conv1.weight is not known",
        "fc.bias is not known",
        "bn1.weight is [17], not [16]",
        "bn1.bias is int64, not floats",
        "layer1.0.conv1.weight is [16, 16], not [16, 16, 1, 1]",
        "layer1.1.bn1.bias is a list, not an array",
        "layer1.2.bn1.bias is a NoneType, not an array",
    ]


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
        "params/extra is not known",
        "batch_stats/stem/norm/mean is [3], not [16]",
        "params/head/bias is int32, not floats",
    ]


@pytest.mark.parametrize("source", [{}, {"net": {}}, {"epoch": 3}])
def test_what_holds_no_weights_is_refused(source):
    with pytest.raises(InputError, match=r"linear\.bias \[10\] is missing"):
        convert.from_torch(source, "shiftresnet20_e1")


def test_a_file_of_a_number_is_refused(tmp_path):
    path = tmp_path / "number.pt"
    path.write_bytes(torch_writer.archive(3))
    with pytest.raises(InputError, match=r"number\.pt: it is of type int, neither"):
        convert.from_torch(path, "resnet20")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"no file .*missing\.t7"):
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
        InputError, match="other is none of the networks of the authors"
    ):
        convert.from_torch(weights, "other")
