"""The same networks in PyTorch, in the fastest form known there.

The shift is a depthwise 3x3 convolution with one-hot kernels on channels_last tensors:
of the eager forms (roll and mask, slices, grouped convolution) the fastest in training.
"""

import functools

import torch
from torch import nn

import shiftjax


class Block(nn.Module):
    """A residual block: plain for `expansion=None`, else a shift block."""

    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        conv = functools.partial(nn.Conv2d, bias=False)
        self.is_shift = expansion is not None
        if self.is_shift:
            wide = int(expansion * outputs)
            self.conv1 = conv(inputs, wide, 1)
            self.conv2 = conv(wide, outputs, 1, stride)
            kernel = torch.zeros(wide, 1, 3, 3)
            for channel, (dy, dx) in enumerate(shiftjax.displacements(wide)):
                kernel[channel, 0, dy + 1, dx + 1] = 1
            self.register_buffer("kernel", kernel)
        else:
            wide = outputs
            self.conv1 = conv(inputs, wide, 3, stride, padding=1)
            self.conv2 = conv(wide, outputs, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(wide), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if inputs != outputs:
            projection = conv(inputs, outputs, 1, stride)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = torch.relu_(self.norm1(self.conv1(x)))
        if not self.is_shift:
            return torch.relu_(self.norm2(self.conv2(y)) + self.shortcut(x))
        y = nn.functional.conv2d(y, self.kernel, padding=1, groups=len(self.kernel))
        return torch.relu_(self.norm2(self.conv2(y))) + self.shortcut(x)


def make_net(depth, expansion):
    """ShiftResNet of a depth and an expansion, or ResNet for `expansion=None`."""
    blocks, inputs = [], 16
    for outputs in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            stride = 1 if inputs == outputs else 2
            blocks.append(Block(inputs, outputs, stride, expansion))
            inputs = outputs
    stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    return nn.Sequential(stem, nn.BatchNorm2d(16), nn.ReLU(True), *blocks, *head)


def training_step(depth, expansion, batch_size, compiled=False):
    """Returns a function that does one step of SGD with momentum."""
    torch.manual_seed(0)
    net = make_net(depth, expansion).to(memory_format=torch.channels_last)
    images = torch.randn(batch_size, 3, 32, 32)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch_size,))
    call = torch.compile(net) if compiled else net
    options = {"momentum": 0.9, "weight_decay": 5e-4, "fused": True}
    optimizer = torch.optim.SGD(net.parameters(), 0.01, **options)

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(call(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run
