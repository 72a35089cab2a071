# ruff: noqa: UP008, UP031 (for Python 2.7 too)
"""The shift networks of the paper's authors in PyTorch, with their names of modules.

As a program, `python2.7 authors_torch.py FILE` (PyTorch 1.4.0, the last for Python 2.7)
writes a small network whole, as the authors do, and what it makes of an image. That is
how `data/shiftresnet8_0.5.t7` was made.
"""

import inspect
import sys

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]


class Shift(nn.Module):
    """Channel c moves by displacement c mod K^2, row by row; the rest stay."""

    def __init__(self, size):
        super(Shift, self).__init__()
        self.size = size

    def forward(self, x):
        size, (height, width) = self.size, x.shape[2:]
        padded = functional.pad(x, (size // 2,) * 4)
        channels = [x[:, c] for c in range(x.shape[1])]
        for c in range(len(channels) // size**2 * size**2):
            row, column = c // size % size, c % size
            moved = padded[:, c, row : row + height, column : column + width]
            channels[c] = moved
        return torch.stack(channels, 1)


class Block(nn.Module):
    """1x1, BatchNorm, ReLU, shift, 1x1, BatchNorm, ReLU; then the shortcut."""

    def __init__(self, inputs, outputs, stride, expansion):
        super(Block, self).__init__()
        inner = int(expansion * outputs)
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.shift2 = Shift(3)
        self.conv2 = nn.Conv2d(inner, outputs, 1, stride, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        self.inner_shape = y.size()  # as theirs, which is saved with the module
        y = functional.relu(self.bn2(self.conv2(self.shift2(y))))
        return y + self.shortcut(x)


class ShiftResNet(nn.Module):
    """Stem, three stages of blocks, mean over the pixels, dense layer."""

    def __init__(self, depth, expansion, classes):
        super(ShiftResNet, self).__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        inputs = 16
        for stage, outputs in enumerate((16, 32, 64)):
            blocks = []
            for _ in range((depth - 2) // 6):
                stride = 1 if inputs == outputs else 2
                blocks.append(Block(inputs, outputs, stride, expansion))
                inputs = outputs
            setattr(self, "layer%d" % (stage + 1), nn.Sequential(*blocks))
        self.linear = nn.Linear(64, classes)

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.linear(y.mean(3).mean(2))


def random_network(depth, expansion, classes, seed=0):
    """A network in evaluation, with random weights and statistics of BatchNorm."""
    torch.manual_seed(seed)
    network = ShiftResNet(depth, expansion, classes).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.5)
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(391)
    return network


def source_file(kind, ask=inspect.getsourcefile):
    """Where a class is defined, which PyTorch asks to save its source: only of ours."""
    if kind.__module__ != "__main__":
        raise TypeError("PyTorch's own source need not be kept")
    return ask(kind)


def main(path):
    network = random_network(depth=8, expansion=0.5, classes=3)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        logits = network(images)
    inspect.getsourcefile = source_file
    value = {"net": network, "acc": 91.5, "epoch": 159}
    torch.save(dict(value, images=images, logits=logits), path)


if __name__ == "__main__":
    main(sys.argv[1])
