"""Summaries of networks: parameters, multiply-adds and activations, layer by layer.

Multiply-adds are counted for one image, in `flax.linen.Conv` and `flax.linen.Dense` at
their output resolution; layers of other classes count none. The paper's authors use a
tool of their own, which takes other resolutions, so their numbers differ.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.table import Table

from shiftjax.errors import InputError
from shiftjax.fast.dispatch import Choice, choose
from shiftjax.image_sizes import Size, extent
from shiftjax.layers import Shift
from shiftjax.models.resnet import CifarResNet
from shiftjax.registry import create_model
from shiftjax.shift import positive


@dataclasses.dataclass(frozen=True)
class Layer:
    """One row of a summary.

    Attributes:
      path: the module's path in the variables, e.g. "stage1_block01/expand/conv".
      kind: name of its class.
      output: shape of its output for one image, `(height, width, channels)` or
        `(channels,)`.
      params: number of parameters.
      macs: multiply-adds for one image.
      bytes: size of its output for one image, in bytes.
    """

    path: str
    kind: str
    output: tuple[int, ...]
    params: int
    macs: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The cost of a network for one image.

    Attributes:
      name: name of the network or of its class.
      image: shape of the image, `(height, width, channels)`.
      implementation: what computes the network in training on this machine, and why
        (see `shiftjax.fast.dispatch`).
      layers: one row for each module with params and for each shift, in order.
      chunk: largest number of images that are computed at a time; None for all.
    """

    name: str
    image: tuple[int, int, int]
    implementation: Choice
    layers: tuple[Layer, ...]
    chunk: int | None = None

    @property
    def params(self) -> int:
        """Number of parameters."""
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Size of the outputs of all layers for one image, in bytes."""
        return sum(layer.bytes for layer in self.layers)

    def __rich__(self) -> Table:
        """Renders the summary as a table, for rich."""
        size = " x ".join(map(str, self.image))
        name, reason = self.implementation
        caption = f"implementation: {name} ({reason})"
        if self.chunk is not None:
            caption += f", {self.chunk} images at a time"
        table = Table(title=f"{self.name}, one image of {size}", caption=caption)
        for column in ("layer", "kind", "output"):
            table.add_column(column, overflow="fold")
        for column in ("parameters", "multiply-adds", "bytes"):
            table.add_column(column, justify="right")
        for layer in self.layers:
            output = " x ".join(map(str, layer.output))
            counts = (layer.params, layer.macs, layer.bytes)
            table.add_row(layer.path, layer.kind, output, *(f"{n:,}" for n in counts))
        table.add_section()
        totals = (self.params, self.macs, self.bytes)
        table.add_row("total", "", "", *(f"{n:,}" for n in totals))
        return table


def summarize(
    name_or_model: str | nn.Module,
    image_size: Size | None = None,
    *,
    channels: int = 3,
    **overrides: Any,
) -> Summary:
    """Counts the parameters, multiply-adds and bytes of a network, without running it.

    Args:
      name_or_model: a name of `list_models()`, or a module that takes images.
      image_size: height and width of the image, one number for both; None for the
        network's own.
      channels: number of channels of the image.
      **overrides: options of `create_model`, if a name is given.

    Returns:
      Totals `.params`, `.macs`, `.bytes`, and `.layers` and `.implementation`; rich
      prints it as a table.

    Raises:
      UnknownNameError: if there is no network of that name.
      InputError: if the image size or the number of channels is not a positive integer,
        or the image size is None and the module has none of its own; or options are
        given for a module.

    Example:
      >>> summary = summarize("shiftresnet20_e3")
      >>> summary.params, summary.macs
      (95642, 16433792)
    """
    if isinstance(name_or_model, str):
        name, model = name_or_model, create_model(name_or_model, **overrides)
    elif overrides:
        raise InputError(f"{', '.join(overrides)}: a module has its options already")
    else:
        name, model = type(name_or_model).__name__, name_or_model
    size = getattr(model, "image_size", None) if image_size is None else image_size
    if size is None:
        raise InputError(f"{name} has no image size of its own: give image_size=")
    height, width = (positive("image_size", side) for side in extent(size))
    shape = (height, width, positive("channels", channels))
    options = getattr(model, "implementation", None), getattr(model, "kind", "")
    implementation = choose(*options, (1, *shape), train=True)
    chunk = None
    if implementation.name == "cpu" and isinstance(model, CifarResNet):
        chunk = model.chunk(jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return Summary(name, shape, implementation, tuple(_layers(model, shape)), chunk)


def _layers(model: nn.Module, image: tuple[int, int, int]) -> list[Layer]:
    """Records every module that has params of its own, and every shift."""
    layers = []

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__":
            own = nn.meta.unbox(module.variables.get("params", {}))
            arrays = [v for v in own.values() if hasattr(v, "shape")]
            if arrays or isinstance(module, Shift):
                shared = module.path in {tuple(row.path.split("/")) for row in layers}
                layers.append(_layer(module, [] if shared else arrays, output))
        return output

    images = jax.ShapeDtypeStruct((1, *image), jnp.result_type(float))
    with nn.intercept_methods(record):
        jax.eval_shape(model.init, jax.random.key(0), images)
    return layers


def _layer(module: nn.Module, params: list[jax.Array], output: jax.Array) -> Layer:
    """Counts one module, from its params and its output `[1, ..., channels]`."""
    macs = 0
    if isinstance(module, nn.Dense | nn.Conv):
        kernel = nn.meta.unbox(module.variables["params"]["kernel"])
        macs = math.prod(kernel.shape) * math.prod(output.shape[1:-1])
    return Layer(
        path="/".join(module.path),
        kind=type(module).__name__,
        output=output.shape[1:],
        params=sum(math.prod(array.shape) for array in params),
        macs=macs,
        bytes=math.prod(output.shape[1:]) * output.dtype.itemsize,
    )
