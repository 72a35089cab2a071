"""Weights from PyTorch, beside PyTorch: its files, and its logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import shiftjax
from shiftjax import convert

torch = pytest.importorskip("torch", reason="PyTorch is no dependency")

from tests.shiftjax.convert import authors_torch  # noqa: E402 (needs it)

pytestmark = pytest.mark.usefixtures("quick")

NETWORKS = {
    "shiftresnet20_e1": (20, 1, 10),
    "shiftresnet20_e3": (20, 3, 100),
    "shiftresnet56_e3": (56, 3, 10),
}


@pytest.fixture(params=NETWORKS)
def name(request):
    """A network's name."""
    return request.param


@pytest.fixture
def network(name):
    """The network in PyTorch."""
    return authors_torch.random_network(*NETWORKS[name])


def state(network):
    """The state dict."""
    return network.state_dict()


def parallel(network):
    """The state dict of the network in DataParallel."""
    return torch.nn.DataParallel(network).state_dict()


def checkpoint(network):
    """The whole network, as the authors save it."""
    return {"net": network, "acc": torch.tensor(91.5), "epoch": 159}


@pytest.mark.parametrize("form", [state, parallel, checkpoint])
@pytest.mark.parametrize("archive", [True, False], ids=["archive", "legacy"])
def test_files(tmp_path, name, network, form, archive):
    """The contents of a file are equal to those in PyTorch."""
    network(torch.zeros(1, 3, 8, 8))  # its modules have attributes now
    path = tmp_path / "checkpoint.t7"
    torch.save(form(network), path, _use_new_zipfile_serialization=archive)
    found = convert.from_torch(path, name)
    expected = convert.from_torch(
        {key: value.numpy() for key, value in network.state_dict().items()}, name
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("form", [state, parallel])
def test_tensors(name, network, form):
    """Also those that have a gradient, and of other floats."""
    expected = convert.from_torch(form(network), name)
    for kept in (
        dict(network.state_dict(keep_vars=True)),
        network.double().state_dict(),
    ):
        found = convert.from_torch(kept, name)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    rounded = convert.from_torch(network.bfloat16().state_dict(), name)
    bias = expected["params"]["head"]["bias"]
    expected = bias.astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(rounded["params"]["head"]["bias"], expected)


def test_logits(rng, name, network):
    """Theirs are computed in float64, ours in float32."""
    classes = NETWORKS[name][-1]
    variables = convert.from_torch(network.state_dict(), name)
    model = shiftjax.create_model(name, num_classes=classes, scan=True)
    images = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        nchw = torch.tensor(images).permute(0, 3, 1, 2).double()
        expected = network.double()(nchw).numpy()
    assert expected.std() > 0.1
    logits = jax.jit(model.apply)(variables, images)
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_pytorch_loads_what_goes_there(name, network):
    """All names, strictly; and the counter as it is when training begins."""
    expected = network.state_dict()
    weights = convert.to_torch(convert.from_torch(expected, name), name)
    tensors = {key: torch.tensor(value) for key, value in weights.items()}
    assert list(tensors) == list(expected)
    fresh = authors_torch.random_network(*NETWORKS[name], seed=1)
    fresh.load_state_dict(tensors, strict=True)
    for key, value in fresh.state_dict().items():
        assert value.dtype == expected[key].dtype
        counter = key.endswith("num_batches_tracked")
        assert torch.equal(value, 0 * value if counter else expected[key])


class Bottleneck(torch.nn.Module):
    """A block of torchvision's ResNet-50, with its names."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        conv, norm = torch.nn.Conv2d, torch.nn.BatchNorm2d
        self.conv1 = conv(inputs, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, 3, stride, 1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = conv(width, 4 * width, 1, bias=False)
        self.bn3 = norm(4 * width)
        self.downsample = None
        if stride > 1 or inputs != 4 * width:
            shortcut = conv(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = torch.nn.Sequential(shortcut, norm(4 * width))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet50(torch.nn.Module):
    """torchvision's ResNet-50 with fewer blocks and channels."""

    def __init__(self, blocks, width, classes):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        inputs = width
        for stage, count in enumerate(blocks):
            inner, layers = width * 2**stage, []
            for index in range(count):
                stride = 2 if stage and not index else 1
                layers.append(Bottleneck(inputs, inner, stride))
                inputs = 4 * inner
            setattr(self, f"layer{stage + 1}", torch.nn.Sequential(*layers))
        self.fc = torch.nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(x.mean((2, 3)))


def test_resnet50_of_torchvision(rng):
    """The logits, with random weights and statistics; a quarter of the width."""
    torch.manual_seed(0)
    network = ResNet50((2, 1, 2, 1), 16, 7)
    options = {"blocks": (2, 1, 2, 1), "net_reduction": 16.0}
    network.train()
    with torch.no_grad():  # statistics that are not 0 and 1
        network(torch.randn(8, 3, 64, 64))
    network.eval()
    variables = convert.from_torch(network.state_dict(), "resnet50", **options)
    images = rng.normal(size=(2, 65, 48, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    model = shiftjax.create_model("resnet50", num_classes=7, **options)
    actual = model.apply(variables, images)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    back = convert.to_torch(variables, "resnet50", **options)
    assert list(back) == list(network.state_dict())


def test_shiftresnet50_is_of_nobody():
    with pytest.raises(shiftjax.InputError, match="shiftresnet50 cannot be converted"):
        convert.from_torch({}, "shiftresnet50")
