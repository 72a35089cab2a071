"""The authors' networks in NumPy, and files as PyTorch writes them."""

import collections
import itertools
import pickle

import numpy as np
import pytest

from tests.shiftjax.convert import torch_writer as writer

collect_ignore = ["authors_torch.py"]  # it has no tests, and needs PyTorch


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


@pytest.fixture
def weights(authors):
    """A state dict of shiftresnet20_e1."""
    return authors().weights


@pytest.fixture(params=writer.FORMATS)
def save(request, tmp_path):
    """Returns a function that writes a file in one of the formats."""

    def write(value, **options):
        path = tmp_path / "checkpoint.t7"
        path.write_bytes(writer.FORMATS[request.param](value, **options))
        return path

    return write


@pytest.fixture
def arrays(rng):
    """Arrays by the names of a small module."""
    shapes = {"conv1.weight": (4, 3, 1, 1), "layer1.0.bn1.running_mean": (4,)}
    shapes |= {"layer1.0.bn1.weight": (4,), "linear.bias": (5,), "scale": ()}
    return {
        name: np.asarray(rng.normal(size=shape), np.float32)
        for name, shape in shapes.items()
    }


def damaged(*pickles, tail=b""):
    """A file of the old format of these values."""
    return b"".join(pickle.dumps(value, 2) for value in pickles) + tail


MARK, SYSTEM = 0x1950A86A20F9469CFC6C, {"little_endian": True}
