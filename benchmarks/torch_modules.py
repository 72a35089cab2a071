"""The networks as PyTorch modules.

The shift is a depthwise convolution with one-hot kernels on channels_last tensors. Of
the eager implementations (roll and mask, slices, grouped convolution) it is the fastest
in training on a CPU. On a GPU compiled slices are measured too.
"""

from collections.abc import Sequence

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn.utils import fusion  # pyright: ignore[reportMissingImports]

import shiftjax


class TorchConvNorm(nn.Module):
    """A convolution and BatchNorm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = convolution(inputs, outputs, kernel_size, stride, groups)
        self.norm: nn.Module = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies both to `[batch, inputs, height, width]`."""
        return self.norm(self.conv(x))

    def fold(self) -> None:
        """Folds both into one convolution."""
        assert isinstance(self.norm, nn.BatchNorm2d)
        self.conv = fusion.fuse_conv_bn_eval(self.conv, self.norm)
        self.norm = nn.Identity()


def convolution(
    inputs: int, outputs: int, kernel_size: int = 1, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Makes a convolution without bias, padded by half of its window."""
    return nn.Conv2d(
        inputs,
        outputs,
        kernel_size,
        stride,
        kernel_size // 2,
        groups=groups,
        bias=False,
    )


def one_hot(channels: int, kernel_size: int) -> torch.Tensor:
    """Returns the kernels of a depthwise convolution that shifts."""
    kernel = torch.zeros(channels, 1, kernel_size, kernel_size)
    half = kernel_size // 2
    moves = shiftjax.displacements(channels, kernel_size)
    for channel, (dy, dx) in enumerate(moves.tolist()):
        kernel[channel, 0, dy + half, dx + half] = 1
    return kernel


class Slices(nn.Module):
    """The shift as slices of a padded tensor, which torch.compile can fuse."""

    def __init__(self, channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        moves = shiftjax.displacements(channels, kernel_size).tolist()
        starts = [c for c in range(channels) if not c or moves[c] != moves[c - 1]]
        stops = [*starts[1:], channels]
        self.runs = [(*run, *moves[run[0]]) for run in zip(starts, stops, strict=True)]
        self.reach, self.stride = kernel_size // 2, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shifts `[batch, channels, height, width]` and keeps every stride-th pixel."""
        reach, (height, width), stride = self.reach, x.shape[2:], self.stride
        padded = nn.functional.pad(x, [reach] * 4)
        parts = [
            padded[:, a:b, reach + dy :, reach + dx :][
                ..., :height:stride, :width:stride
            ]
            for a, b, dy, dx in self.runs
        ]
        return torch.cat(parts, 1).contiguous(memory_format=torch.channels_last)


def _middle_module(
    kind: str, channels: int, kernel_size: int, stride: int = 1
) -> nn.Conv2d | Slices | None:
    """Makes the module between the 1x1 convolutions, or None.

    Args:
      kind: "shift", "slices" (the shift as copies of slices), "depthwise" or "nothing".
      channels: channels of input and output.
      kernel_size: side of the window.
      stride: distance between the rows and columns kept, in pixels.
    """
    if kind == "nothing" or kernel_size == 1:
        return None
    if kind == "slices":
        return Slices(channels, kernel_size, stride)
    conv = convolution(channels, channels, kernel_size, stride, groups=channels)
    if kind == "shift":
        conv.weight = nn.Parameter(one_hot(channels, kernel_size), requires_grad=False)
    return conv


class TorchBlock(nn.Module):
    """A shift block with an exchangeable middle, as `benchmarks.jax_blocks.Block`.

    The middle is "shift", "slices", "depthwise" or "nothing". It keeps every stride-th
    pixel, as there is no BatchNorm between it and the second convolution.
    """

    def __init__(
        self,
        kind: str,
        inputs: int,
        outputs: int,
        stride: int = 1,
        expansion: float = 1.0,
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        wide = int(expansion * outputs)
        self.expand = TorchConvNorm(inputs, wide)
        self.middle = _middle_module(kind, wide, kernel_size, stride)
        rest = stride if self.middle is None else 1
        self.project = TorchConvNorm(wide, outputs, 1, rest)
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the block to `[batch, inputs, height, width]`."""
        y = torch.relu_(self.expand(x))
        if self.middle is not None:
            y = self.middle(y)
        return torch.relu_(self.project(y)) + self.shortcut(x)


class TorchResNetBlock(nn.Module):
    """A block of the CIFAR networks to compare with: "depthwise" or "dense"."""

    def __init__(
        self,
        kind: str,
        inputs: int,
        outputs: int,
        stride: int = 1,
        expansion: float = 1.0,
    ) -> None:
        super().__init__()
        wide = int(expansion * outputs)
        if kind == "dense":
            first = TorchConvNorm(inputs, outputs, 3, stride)
            others = [TorchConvNorm(outputs, outputs, 3)]
        else:
            first = TorchConvNorm(inputs, wide)
            depthwise = TorchConvNorm(wide, wide, 3, groups=wide)
            others = [depthwise, TorchConvNorm(wide, outputs, 1, stride)]
        self.branch = nn.Sequential(first, nn.ReLU(True), *others)
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the block to `[batch, inputs, height, width]`."""
        return torch.relu_(self.branch(x) + self.shortcut(x))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Makes the shortcut of a block: the input, or a 1x1 convolution of it."""
    if inputs == outputs:
        return nn.Identity()
    return TorchConvNorm(inputs, outputs, 1, stride)


class TorchCSC(nn.Module):
    """Conv-shift-conv, as `shiftjax.CSC`."""

    def __init__(
        self,
        kind: str,
        inputs: int,
        outputs: int,
        kernel_size: int,
        stride: int,
        e: int,
    ) -> None:
        super().__init__()
        self.same, self.stride = inputs == outputs and stride == 1, stride
        branch = outputs if self.same else outputs - inputs
        self.norm = nn.BatchNorm2d(inputs)
        self.expand = convolution(inputs, e * branch)
        self.middle: nn.Module = nn.BatchNorm2d(e * branch)
        between = _middle_module(kind, e * branch, kernel_size)
        if isinstance(between, nn.Conv2d):
            self.middle = TorchConvNorm(e * branch, e * branch)
            self.middle.conv = between
        self.project = convolution(e * branch, branch, 1, stride)
        self.pool = nn.AvgPool2d(3, stride, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the module to `[batch, inputs, height, width]`."""
        y = torch.relu_(self.middle(self.expand(torch.relu_(self.norm(x)))))
        y = self.project(y)
        return y + x if self.same else torch.cat([y, self.pool(x)], 1)


class TorchDenseBlock(nn.Module):
    """One dense convolution, BatchNorm, ReLU, and the input."""

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, stride: int
    ) -> None:
        super().__init__()
        self.dense = TorchConvNorm(inputs, outputs, kernel_size, stride)
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the block to `[batch, inputs, height, width]`."""
        return torch.relu_(self.dense(x)) + self.shortcut(x)


def cifar_net(kind: str, depth: int, expansion: float = 1.0) -> nn.Module:
    """Makes a CIFAR ResNet with blocks of a kind."""
    block = TorchResNetBlock if kind in ("depthwise", "dense") else TorchBlock
    blocks, inputs = [], 16
    for outputs in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            stride = 1 if inputs == outputs else 2
            blocks.append(block(kind, inputs, outputs, stride, expansion))
            inputs = outputs
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    return nn.Sequential(TorchConvNorm(3, 16, 3), nn.ReLU(True), *blocks, *head)


def shift_net(
    kind: str, stem: int, groups: Sequence[tuple[int, int, Sequence[int]]]
) -> nn.Module:
    """Makes a network of CSC modules, as `benchmarks.jax_nets.CSCNet`."""
    modules: list[nn.Module] = [convolution(3, stem, 7, 2)]
    inputs = stem
    for kernel_size, outputs, expansions in groups:
        for index, expansion in enumerate(expansions):
            stride = 1 if index else 2
            modules.append(
                TorchCSC(kind, inputs, outputs, kernel_size, stride, expansion)
            )
            inputs = outputs
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000)
    return nn.Sequential(*modules, nn.BatchNorm2d(inputs), nn.ReLU(True), *head)


def fold_norms(net: nn.Module) -> nn.Module:
    """Folds each BatchNorm that follows a convolution into it, for inference."""
    net = net.eval()
    for module in net.modules():
        if isinstance(module, TorchConvNorm):
            module.fold()
    return net
