"""The block and the nets in PyTorch on a GPU: eager and compiled, channels_last, bf16.

Two forms of the shift, of which the better counts: a depthwise convolution with one-hot
kernels, and slices of a padded tensor, which `torch.compile` fuses into its neighbours.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import shiftjax
from benchmarks.gpu_cases import Block as Shapes

FORMS = ("depthwise", "slices")


class Shift(nn.Module):
    """The shift of the paper, channels in the second axis."""

    def __init__(self, channels: int, kernel_size: int, form: str) -> None:
        super().__init__()
        moves = shiftjax.displacements(channels, kernel_size).tolist()
        self.form, self.half = form, kernel_size // 2
        kernel = torch.zeros(channels, 1, kernel_size, kernel_size)
        for channel, (dy, dx) in enumerate(moves):
            kernel[channel, 0, dy + self.half, dx + self.half] = 1
        self.register_buffer("kernel", kernel)
        starts = [0, *(c for c in range(1, channels) if moves[c] != moves[c - 1])]
        stops = [*starts[1:], channels]
        self.runs = [(*run, *moves[run[0]]) for run in zip(starts, stops, strict=True)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shifts."""
        half = self.half
        if self.form == "depthwise":
            return nn.functional.conv2d(x, self.kernel, padding=half, groups=x.shape[1])
        height, width = x.shape[2:]
        padded = nn.functional.pad(x, [half] * 4)
        parts = [
            padded[:, a:b, half + dy : half + dy + height, half + dx :][..., :width]
            for a, b, dy, dx in self.runs
        ]
        return torch.cat(parts, 1).contiguous(memory_format=torch.channels_last)


class ShiftBlock(nn.Module):
    """The block of a CIFAR ShiftResNet."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        strides: int,
        expansion: int,
        kernel_size: int,
        form: str,
    ) -> None:
        super().__init__()
        wide = expansion * outputs
        conv = functools.partial(nn.Conv2d, bias=False)
        self.expand = nn.Sequential(
            conv(inputs, wide, 1), nn.BatchNorm2d(wide), nn.ReLU(True)
        )
        self.shift = Shift(wide, kernel_size, form)
        self.project = nn.Sequential(
            conv(wide, outputs, 1, strides), nn.BatchNorm2d(outputs), nn.ReLU(True)
        )
        self.shortcut = nn.Identity()
        if inputs != outputs:
            projection = conv(inputs, outputs, 1, strides)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the block."""
        return self.project(self.shift(self.expand(x))) + self.shortcut(x)


class PlainBlock(nn.Module):
    """The block of a CIFAR ResNet."""

    def __init__(self, inputs: int, outputs: int, strides: int) -> None:
        super().__init__()
        conv = functools.partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        self.first = nn.Sequential(
            conv(inputs, outputs, stride=strides), nn.BatchNorm2d(outputs)
        )
        self.second = nn.Sequential(conv(outputs, outputs), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity()
        if inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, strides, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the block."""
        y = self.second(torch.relu(self.first(x)))
        return torch.relu(y + self.shortcut(x))


def net(depth: int, expansion: int | None, form: str) -> nn.Module:
    """ShiftResNet of a depth, or ResNet without an expansion."""
    blocks: list[nn.Module] = []
    inputs = 16
    for outputs in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            shape = inputs, outputs, 1 if inputs == outputs else 2
            if expansion is None:
                blocks.append(PlainBlock(*shape))
            else:
                blocks.append(ShiftBlock(*shape, expansion, 3, form))
            inputs = outputs
    stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    return nn.Sequential(stem, nn.BatchNorm2d(16), nn.ReLU(True), *blocks, *head)


def place() -> str:
    """Returns where PyTorch runs."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Waits until the device has nothing to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """Records what runs on the GPU as one graph, without the launches from Python."""
    if not torch.cuda.is_available():
        return run
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph.replay


def block(
    shapes: Shapes, form: str, compiled: bool, backward: bool, copies: int
) -> Callable[[], Any]:
    """Returns a function that runs a block, bfloat16, on each of some inputs."""
    torch.manual_seed(0)
    layer = ShiftBlock(
        shapes.channels,
        shapes.features,
        shapes.strides,
        shapes.expansion,
        shapes.kernel_size,
        form,
    )
    kind = {"device": place(), "dtype": torch.bfloat16}
    layer = layer.to(**kind, memory_format=torch.channels_last)
    call = torch.compile(layer) if compiled else layer
    size = shapes.images, shapes.channels, shapes.side, shapes.side
    inputs = [
        torch.randn(*size, **kind)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_(backward)
        for _ in range(copies)
    ]
    cotangent = torch.randn_like(layer(inputs[0]).detach())

    def run() -> None:
        for x in inputs:
            y = call(x)
            if backward:
                torch.autograd.grad(y, [x, *layer.parameters()], cotangent)

    return captured(run)


def training_step(
    expansion: int | None, form: str, batch_size: int, compiled: bool
) -> Callable[[], Any]:
    """Returns a function that does one step of SGD with momentum, in bfloat16.

    Compiled, with the graph of launches that "reduce-overhead" records.
    """
    torch.manual_seed(0)
    where = place()
    model = net(20, expansion, form).to(where, memory_format=torch.channels_last)
    images = torch.randn(batch_size, 3, 32, 32, device=where)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch_size,), device=where)
    options = {"momentum": 0.9, "weight_decay": 5e-4, "fused": True}
    optimizer = torch.optim.SGD(model.parameters(), 0.01, **options)

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(where, torch.bfloat16):
            return nn.functional.cross_entropy(model(images), labels)

    call = torch.compile(loss_of, mode="reduce-overhead") if compiled else loss_of

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        call(images, labels).backward()
        optimizer.step()

    return run
