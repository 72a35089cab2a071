"""The calls of the kernels, their derivative, and the public function."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from shiftjax.errors import InputError
from shiftjax.fast import fused_block
from shiftjax.fast.dispatch import BlockOptions
from shiftjax.fast.gpu.kernel import backward_kernel, forward_kernel
from shiftjax.fast.gpu.plan import GPUPlan, Sizes
from shiftjax.lowerings import Table

Gradients = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
DTYPES = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32))
REGISTER_CHANNELS = 256  # of narrow tensors, which products keep in registers
MOST_DISPLACEMENTS = 64
MOST_NUMBERS = 2**31 - 1  # of an array, which is addressed by int32


def spread(mask: Any, weights: jax.Array) -> jax.Array:
    """Repeats weights for each of R reads, and masks the columns of other reads.

    Args:
      mask: the columns of each read, `[tiles, R, width]`.
      weights: `[tiles, rows, width]`.

    Returns:
      `[tiles, R * rows, width]`.
    """
    tiles, _, width = weights.shape
    rows = jnp.where(mask[:, :, None], weights[:, None], 0)
    return rows.reshape(tiles, -1, width)


def packed(
    plan: GPUPlan, *weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Arranges expand, bias and project in the tiles of a plan."""
    expand, bias, project = weights
    channels, features = plan.padded
    expand = jnp.pad(expand, [(0, channels - len(expand)), (0, 0)])
    project = jnp.pad(project.T, [(0, features - project.shape[1]), (0, 0)])
    return plan.scatter(expand), plan.scatter(bias), plan.scatter(project)


def _call_forward(
    plan: GPUPlan, interpret: bool, x: jax.Array, *weights: jax.Array
) -> jax.Array:
    """Returns y `[batch, height, width, features]`."""
    pixels, sizes = len(x) * plan.size[0] * plan.size[1], plan.sizes
    expand, bias, project = packed(plan, *weights)
    y = pl.pallas_call(
        functools.partial(forward_kernel, plan=plan),
        out_shape=jax.ShapeDtypeStruct((pixels, plan.features), x.dtype),
        grid=(pl.cdiv(pixels, sizes.pixels),),
        compiler_params=triton.CompilerParams(num_warps=sizes.warps, num_stages=1),
        interpret=interpret,
        name="shift_project",
    )(
        x.reshape(-1, plan.channels),
        jnp.asarray(plan.moves),
        jnp.asarray(plan.tile_moves),
        spread(plan.by_read(), expand).astype(x.dtype),
        spread(plan.by_move(), bias[:, None]).astype(x.dtype),
        project.astype(x.dtype),
    )
    return y.reshape(len(x), *plan.size, plan.features)


def _call_backward(
    plan: GPUPlan, interpret: bool, g: jax.Array, x: jax.Array, *weights: jax.Array
) -> Gradients:
    """Returns the gradients of x, expand, bias and project, the last three float32."""
    pixels, sizes = x.size // plan.channels, plan.sizes
    expand, bias, project = packed(plan, *weights)
    by_read = plan.by_read()
    arguments = [
        x.reshape(pixels, plan.channels),
        g.reshape(-1, plan.features),
        jnp.asarray(plan.tile_moves),
        expand.astype(x.dtype),
        bias.astype(jnp.float32),
        spread(by_read, project).astype(x.dtype),
    ]
    steps = pl.cdiv(pixels, sizes.back_pixels)
    programs = min(steps, pl.cdiv(sizes.programs, len(plan.chunks)))
    shape = jax.ShapeDtypeStruct
    sums = [shape((programs, *a.shape), jnp.float32) for a in arguments[3:]]

    def call(chunks: list[range], programs: int, dx: bool, weights: bool) -> Any:
        parts = {"chunks": chunks, "want_dx": dx, "want_sums": weights}
        return pl.pallas_call(
            functools.partial(backward_kernel, plan=plan, **parts),
            out_shape=[shape((pixels, plan.channels), x.dtype)] * dx + sums * weights,
            grid=(programs, len(chunks)),
            compiler_params=triton.CompilerParams(
                num_warps=sizes.back_warps, num_stages=sizes.back_stages
            ),
            interpret=interpret,
            name="shift_project_backward",
        )(*arguments)

    if sizes.fused and len(plan.chunks) == 1:
        dx, *totals = call(plan.chunks, programs, True, True)
    else:
        (dx,) = call([range(len(expand))], steps, True, False)
        totals = call(plan.chunks, programs, False, True)
    d_expand, d_bias, d_project = (total.sum(0) for total in totals)
    own = jnp.asarray(by_read)[:, :, None]
    d_project = d_project.reshape(*own.shape[:2], -1, plan.packing.width)
    d_project = jnp.where(own, d_project, 0).sum(1)  # drops other displacements
    return (
        dx.reshape(x.shape),
        plan.gather(d_expand)[: plan.channels],
        plan.gather(d_bias),
        plan.gather(d_project)[: plan.features].T,
    )


# --- the differentiable function


@dataclasses.dataclass(frozen=True)
class GPUKernel:
    """The kernels of this package, as `shiftjax.fast.fused_block.Kernel`.

    Attributes:
      sizes: the division of the work.
      interpret: if True, the kernels are interpreted.
    """

    sizes: Sizes = dataclasses.field(default_factory=Sizes)
    interpret: bool = False

    platform: ClassVar[str] = "cuda"

    def forward(
        self, table: Table, stride: int, x: jax.Array, *weights: jax.Array
    ) -> jax.Array:
        """Computes the output."""
        plan = GPUPlan.make(x.shape, weights[-1].shape[1], table, stride, self.sizes)
        return _call_forward(plan, self.interpret, x, *weights)

    def backward(
        self, table: Table, stride: int, g: jax.Array, x: jax.Array, *weights: jax.Array
    ) -> Gradients:
        """Computes the gradients, those of the weights in float32."""
        plan = GPUPlan.make(x.shape, g.shape[-1], table, stride, self.sizes)
        return _call_backward(plan, self.interpret, g, x, *weights)


def gpu_shift_project(
    x: jax.Array,
    expand: jax.Array,
    bias: jax.Array,
    project: jax.Array,
    *,
    kernel_size: int = 3,
    strides: int = 1,
    dilation: int = 1,
    sizes: Sizes | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Expands, applies ReLU, shifts and projects, in one kernel on a GPU.

    `shift(relu(x @ expand + bias), kernel_size, dilation=dilation, stride=strides)
    @ project`, with the operands of products in the dtype of `x`, sums in float32, and
    gradients for all four arrays in reverse mode.

    Args:
      x: `[batch, height, width, channels]`, bfloat16 or float32.
      expand: `[channels, expanded]`, with BatchNorm folded in.
      bias: `[expanded]`.
      project: `[expanded, features]`.
      kernel_size: side K of the window of displacements.
      strides: distance between the rows and columns kept, in pixels.
      dilation: distance between neighboring displacements, in pixels.
      sizes: the division of the work, or None for the default.
      interpret: if True, the kernel is interpreted, slowly; if False, it runs on an
        NVIDIA GPU, and on other platforms XLA compiles the formula above.

    Returns:
      `[batch, ceil(height / strides), ceil(width / strides), features]`, in the
      dtype of `x`.

    Raises:
      InputError: if the shapes do not fit, or not `gpu_kernel_supports`.

    Example:
      >>> x = jnp.ones((1, 2, 2, 8))
      >>> expand, project = jnp.ones((8, 16)), jnp.ones((16, 8))
      >>> y = gpu_shift_project(x, expand, jnp.zeros(16), project, interpret=True)
      >>> y.shape, float(y[0, 0, 0, 0])  # at a corner, 5 of 16 channels read zeros
      ((1, 2, 2, 8), 88.0)
    """
    fused_block.check_shapes(x, expand, bias, project)
    wide, features = project.shape
    options = BlockOptions(wide, features, x.dtype, kernel_size, strides, dilation)
    if not gpu_kernel_supports(x.shape, options):
        raise InputError(
            f"x {x.dtype.name} {list(x.shape)}, {features} features and "
            f"kernel_size={kernel_size}: the kernel takes images of bfloat16 or "
            f"float32, of at least one pixel and less than 2^31 numbers, with at most "
            f"{REGISTER_CHANNELS} channels and features, and {MOST_DISPLACEMENTS} "
            f"displacements"
        )
    table = fused_block.reachable_moves(wide, kernel_size, dilation, x.shape[1:3])
    kernel = GPUKernel(sizes or Sizes(), interpret)
    return fused_block.fused_shift_project(
        x, expand, bias, project, kernel, table, strides
    )


def gpu_kernel_supports(shape: Sequence[int], block: BlockOptions) -> bool:
    """Returns True if `gpu_shift_project` supports the sizes.

    Args:
      shape: shape of x on one device, `[batch, height, width, channels]`.
      block: options of the block, with any strides.

    Returns:
      False if the narrow tensors have too many channels for the registers of a program,
      an array is too large to be addressed, or the dtype has no kernel.

    Example:
      >>> block = BlockOptions(wide=48, features=16, dtype=jnp.bfloat16)
      >>> gpu_kernel_supports((100, 31, 31, 16), block)
      True
      >>> gpu_kernel_supports((100, 31, 31, 512), block)
      False
    """
    if jnp.dtype(block.dtype) not in DTYPES or len(shape) != 4 or 0 in shape:
        return False
    channels = max(shape[-1], block.features)
    if channels > REGISTER_CHANNELS or block.kernel_size**2 > MOST_DISPLACEMENTS:
        return False
    return math.prod(shape[:3]) * channels <= MOST_NUMBERS and block.wide > 0
