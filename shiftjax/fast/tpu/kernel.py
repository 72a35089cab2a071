"""Expand, ReLU, shift and project: one Pallas kernel on a TPU, and its derivative.

The wide tensor between the two products never leaves the chip's vector memory. The
forward pass reads the narrow input once and writes the narrow output once, for any
expansion; the backward pass recomputes the wide rows.

Within the kernels, arrays are `[height, width, channels, batch]`, with 128 images in
the lanes. XLA stores NHWC arrays of few channels in that order on a TPU, so the
transposes at both ends move no data.
"""

import dataclasses
from typing import ClassVar

import jax

from shiftjax.errors import InputError
from shiftjax.fast import fused_block
from shiftjax.fast.dispatch import BlockOptions
from shiftjax.fast.tpu.backward import Gradients, backward_rows
from shiftjax.fast.tpu.forward import forward_rows
from shiftjax.fast.tpu.plan import LANES, VMEM_LIMIT, TPUPlan, tpu_kernel_supports
from shiftjax.lowerings import Table


@dataclasses.dataclass(frozen=True)
class TPUKernel:
    """The kernels of this package, as `shiftjax.fast.fused_block.Kernel`.

    Attributes:
      interpret: if True, the kernels are interpreted.
    """

    interpret: bool = False

    platform: ClassVar[str] = "tpu"

    def forward(
        self, table: Table, stride: int, x: jax.Array, *weights: jax.Array
    ) -> jax.Array:
        """Computes the output; the stride is 1."""
        del stride
        x = x.transpose(1, 2, 3, 0)
        plan = TPUPlan.make(x, weights[-1].shape[1], table, self.interpret)
        return forward_rows(plan, x, *weights).transpose(3, 0, 1, 2)

    def backward(
        self,
        table: Table,
        stride: int,
        g: jax.Array,
        x: jax.Array,
        *weights: jax.Array,
    ) -> Gradients:
        """Computes the gradients; the stride is 1."""
        del stride
        x, g = x.transpose(1, 2, 3, 0), g.transpose(1, 2, 3, 0)
        plan = TPUPlan.make(x, g.shape[2], table, self.interpret)
        dx, *gradients = backward_rows(plan, x, g, *weights)
        d_expand, d_bias, d_project = gradients
        return dx.transpose(3, 0, 1, 2), d_expand, d_bias, d_project


def tpu_shift_project(
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    *,
    kernel_size: int = 3,
    dilation: int = 1,
    interpret: bool = False,
) -> jax.Array:
    """Expands, applies ReLU, shifts and projects, in one kernel on a TPU.

    `shift(relu(x @ expand + bias), kernel_size, dilation=dilation) @ project`, with
    the operands of products in the dtype of `x`, sums in float32, and gradients for all
    four arrays in reverse mode.

    Args:
      x: `[batch, height, width, channels]`, bfloat16 or float32.
      expand: `[channels, expanded]`, with BatchNorm folded in.
      bias: `[expanded]`.
      project: `[expanded, features]`.
      kernel_size: side K of the window of displacements.
      dilation: distance between neighboring displacements, in pixels.
      interpret: if True, the kernel is interpreted, slowly; if False, it runs on a TPU,
        and on other platforms XLA compiles the formula above.

    Returns:
      `[batch, height, width, features]`, in the dtype of `x`.

    Raises:
      InputError: if the shapes do not fit, or not `is_supported`.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.ones((128, 2, 2, 8))
      >>> expand, project = jnp.ones((8, 16)), jnp.ones((16, 8))
      >>> y = tpu_shift_project(x, expand, jnp.zeros(16), project, interpret=True)
      >>> y.shape, float(y[0, 0, 0, 0])  # at a corner, 5 of 16 channels read zeros
      ((128, 2, 2, 8), 88.0)
    """
    fused_block.check_shapes(x, expand, bias, project)
    wide, features = project.shape
    options = BlockOptions(wide, features, x.dtype, kernel_size, dilation=dilation)
    if not tpu_kernel_supports(x.shape, options):
        raise InputError(
            f"x {x.dtype.name} {list(x.shape)}, {wide} expanded channels and "
            f"{features} features: the kernel takes bfloat16 with channels in "
            f"multiples of 16, or float32 in multiples of 8, batches in multiples of "
            f"{LANES}, and rows that fit into {VMEM_LIMIT >> 20} MiB"
        )
    table = fused_block.reachable_moves(wide, kernel_size, dilation, x.shape[1:3])
    kernel = TPUKernel(interpret)
    return fused_block.fused_shift_project(x, expand, bias, project, kernel, table, 1)
