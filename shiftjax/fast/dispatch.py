"""Dispatch: `choose` chooses the implementation of a module or a network.

The reference implementation of a module is its `__call__`, compiled by XLA. Some
modules have faster ones, named after their platform. All implementations compute the
same function of the same variables, up to rounding::

    reference   every module
    cpu         CIFAR networks and their blocks, in a layout of their own:
                `shiftjax.fast.cpu`; convolutions of stylizers, on a coarser grid:
                `shiftjax.fast.convolutions`
    tpu         shift blocks, in one Pallas kernel: `shiftjax.fast.tpu`
    gpu         shift blocks, in one Pallas kernel each way: `shiftjax.fast.gpu`

A module's field `implementation` names one, or is None to let `choose` decide. The
faster ones have gradients in reverse mode only.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax

from shiftjax.errors import unknown_name

REFERENCE = "reference"

# The condition under which an implementation is chosen on its platform.
When = Literal["always", "in training", "if asked for"]

# The modules that each implementation computes, by `Unit.kind`. A single module uses
# its reference unless another is asked for: converting to and from the CPU's layout can
# cost more than it saves, and a user's `jax.jit` cannot partition a Pallas kernel.
IMPLEMENTATIONS: Mapping[str, Mapping[str, When]] = {
    "cpu": {
        "conv_norm": "if asked for",
        "shift_block": "if asked for",
        "resnet": "in training",  # the reference is twice as fast in inference
        "depthwise_resnet": "always",
        "shift_resnet": "always",
        "style_conv": "always",
    },
    "tpu": {"shift_block": "if asked for", "shift_resnet": "always"},
    # Not timed on a GPU yet.
    "gpu": {"shift_block": "if asked for", "shift_resnet": "if asked for"},
}
NAMES = (REFERENCE, *IMPLEMENTATIONS)


class Choice(NamedTuple):
    """An implementation, and why it was chosen.

    Attributes:
      name: one of `NAMES`.
      reason: the reason in words, such as "the default in training".
    """

    name: str
    reason: str


class BlockOptions(NamedTuple):
    """The options of a shift block that decide whether a kernel supports it.

    Attributes:
      wide: number of shifted channels.
      features: number of output channels.
      dtype: dtype of the operands of its products.
      kernel_size: side K of the window of displacements.
      strides: distance between the rows and columns kept, in pixels.
      dilation: distance between neighboring displacements, in pixels.
    """

    wide: int
    features: int
    dtype: Any
    kernel_size: int = 3
    strides: int = 1
    dilation: int = 1


def default_platform() -> str:
    """Returns the platform that JAX computes on by default: "cpu", "gpu" or "tpu".

    It is that of `jax.default_device`, where one is set.
    """
    config: Any = jax.config  # its attributes are not declared
    device = config.jax_default_device
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def choose(
    asked: str | None,
    kind: str,
    shape: Sequence[Any],
    *,
    train: bool = False,
    block: BlockOptions | None = None,
    split: bool = False,
) -> Choice:
    """Chooses the implementation of a module for an input.

    Args:
      asked: one of `NAMES`, or None for the fastest on `default_platform()`.
      kind: kind of the module, a key of the tables in `IMPLEMENTATIONS`, or any other
        name for a module that only has its reference.
      shape: shape of the input, `[batch, height, width, channels]`.
      train: if True, BatchNorm uses the statistics of the batch.
      block: options of a shift block; None for other modules.
      split: True if explicit axes of a mesh split the input.

    Returns:
      The implementation. It is the reference if the one asked for does not have the
      module or does not support the input: an empty batch, a batch of unknown size (in
      programs exported for any batch), an input that explicit axes split, or sizes that
      a kernel does not support.

    Raises:
      UnknownNameError: if there is no implementation of that name.

    Example:
      >>> choose("cpu", "shift_resnet", (2, 32, 32, 3)).name
      'cpu'
      >>> choose("cpu", "shift_resnet", (0, 32, 32, 3))
      Choice(name='reference', reason='the input is empty or of unknown size')
    """
    if asked is not None and asked not in NAMES:
        raise unknown_name("implementation", asked, NAMES)
    if asked == REFERENCE:
        return Choice(REFERENCE, "asked for")
    name = asked or default_platform()
    when = IMPLEMENTATIONS.get(name, {}).get(kind)
    if when is None:
        return Choice(REFERENCE, f"it is the only one for {name}")
    if not asked and (when == "if asked for" or (when == "in training" and not train)):
        return Choice(REFERENCE, f"{name} is chosen only {when}")
    if len(shape) != 4 or not all(isinstance(n, int) and n > 0 for n in shape):
        return Choice(REFERENCE, "the input is empty or of unknown size")
    if split:
        return Choice(REFERENCE, "explicit axes of a mesh split the input")
    if block is not None and not function(name, "supports")(shape, block):
        return Choice(REFERENCE, f"{name} does not support {list(shape)}")
    if asked:
        return Choice(name, "asked for")
    default = f"the default for {name}"
    return Choice(name, default if when == "always" else f"{default} {when}")


def function(name: str, kind: str) -> Callable[..., Any]:
    """Returns the function that computes a kind of module in an implementation.

    The package is imported here, on first use, because importing Pallas is slow.
    """
    return getattr(importlib.import_module(f"shiftjax.fast.{name}"), kind)
