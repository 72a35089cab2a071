"""An implementation for CPUs: channels outermost, images innermost.

XLA's convolutions and reductions on a CPU are slow for NHWC arrays of few channels. In
the layout `[channels, chunks, height, width, images]`, a pointwise convolution is one
product with a long contiguous side, a shift copies whole rows, and BatchNorm reduces
the minor axes. The modules in `shiftjax.layers` take NHWC arrays or `Planes`, have the
same variables for both, and compute the same function; a network converts to and from
this layout once. All functions are pure and named after the modules in
`shiftjax.layers` that they compute, which are the reference of their tests.

Files, each of which imports only earlier ones: `chunks` (loops over a few images at a
time), `layout` (the container), `products` (matrix products and convolutions),
`depthwise` (depthwise convolutions), `statistics` (BatchNorm), `shift` (ReLU and
shift), `block` (the ShiftResNet block), `modules` (the modules, also for NHWC arrays).
"""

from shiftjax.fast.cpu.layout import Planes
from shiftjax.fast.cpu.modules import conv_norm, shift_block
from shiftjax.fast.cpu.modules import cpu_supports as supports

__all__ = ["Planes", "conv_norm", "shift_block", "supports"]
