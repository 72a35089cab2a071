"""The stylizers as PyTorch modules, with the names of our layers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from benchmarks.cases import Program
from benchmarks.torch_modules import one_hot
from benchmarks.torch_programs import DEVICE, make_torch_program


class TorchStyleConv(nn.Module):
    """A convolution padded by reflection, or a shift and a 1x1 convolution; norm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        *,
        shifted: bool = False,
        scale: int = 1,
        normalized: bool = True,
    ) -> None:
        super().__init__()
        self.scale, self.stride, self.reach = scale, stride, size // 2
        self.shift: Any
        self.register_buffer("shift", one_hot(inputs, size) if shifted else None)
        window, steps = (1, 1) if shifted else (size, stride)
        self.conv = nn.Conv2d(inputs, outputs, window, steps)
        norm = nn.InstanceNorm2d(outputs, affine=True)
        self.norm = norm if normalized else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the layer to `[batch, channels, height, width]`."""
        if self.scale > 1:
            x = functional.interpolate(x, scale_factor=float(self.scale))
        if self.shift is None:
            x = functional.pad(x, (self.reach,) * 4, "reflect")
        else:
            groups = x.shape[1]
            x = functional.conv2d(
                x, self.shift, None, self.stride, self.reach, groups=groups
            )
        return self.norm(self.conv(x))


class TorchStyleNet(nn.Module):
    """The stylizer of `shiftjax.models.stylizer`."""

    def __init__(self, *, shifted: bool, blocks: int = 5) -> None:
        super().__init__()
        self.conv1 = TorchStyleConv(3, 32, 9)
        self.conv2 = TorchStyleConv(32, 64, 7, 2, shifted=shifted)
        self.conv3 = TorchStyleConv(64, 128, 3, 2, shifted=shifted)

        def layer() -> TorchStyleConv:
            return TorchStyleConv(128, 128, 3, shifted=shifted)

        self.blocks = nn.ModuleList(
            nn.ModuleList([layer(), layer()]) for _ in range(blocks)
        )
        self.up1 = TorchStyleConv(128, 64, 5, shifted=shifted, scale=2)
        self.up2 = TorchStyleConv(64, 32, 7, scale=2)
        self.out = TorchStyleConv(32, 3, 9, normalized=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Restyles normalized images, `[batch, 3, height, width]`."""
        for layer in (self.conv1, self.conv2, self.conv3):
            x = layer(x).relu()
        for first, second in self.blocks:  # pyright: ignore
            x = x + second(first(x).relu())
        return self.out(self.up2(self.up1(x).relu()).relu())

    def load(self, params: Mapping[str, Any]) -> None:
        """Takes the params of our network."""
        for name in ("conv1", "conv2", "conv3", "up1", "up2", "out"):
            _load(getattr(self, name), params[name])
        for number, layers in enumerate(self.blocks, 1):
            own = params[f"block{number}"]
            for index, layer in enumerate(layers, 1):  # pyright: ignore
                _load(layer, own[f"conv{index}"])


def _load(layer: TorchStyleConv, params: Mapping[str, Any]) -> None:
    """Takes the params of one of our layers."""
    kernel = np.asarray(params["conv"]["kernel"])
    kernel = (
        kernel.T[:, :, None, None] if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)
    )
    with torch.no_grad():
        layer.conv.weight.copy_(torch.from_numpy(kernel.copy()))
        assert layer.conv.bias is not None
        layer.conv.bias.copy_(torch.from_numpy(np.array(params["conv"]["bias"])))
        if isinstance(layer.norm, nn.InstanceNorm2d):
            for theirs, ours in (("weight", "scale"), ("bias", "bias")):
                value = torch.from_numpy(np.array(params["norm"][ours]))
                getattr(layer.norm, theirs).copy_(value)


def torch_stylizer(name: str, side: int, *, compiled: bool) -> Program:
    """Makes the program of a stylizer with random weights."""
    torch.manual_seed(0)
    net: Any = TorchStyleNet(shifted=name == "shift_stylizer").eval()
    net = net.to(DEVICE, memory_format=torch.channels_last)
    images = torch.randn(1, 3, side, side, device=DEVICE)
    images = images.contiguous(memory_format=torch.channels_last)
    run: Any = torch.compile(net) if compiled else net

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return run(images)

    return make_torch_program(call)
