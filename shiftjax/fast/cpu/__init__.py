"""An implementation for CPUs: channels outermost, images innermost.

XLA's convolutions and reductions on a CPU are slow for NHWC arrays of few channels. In
`[channels, chunks, height, width, images]` a pointwise convolution is one product with
a long contiguous side, a shift copies whole rows, and BatchNorm reduces the minor axes.
The modules in `shiftjax.layers` take NHWC arrays or `Planes`, have the same variables
for both, and compute the same function; a network enters and leaves this layout once.
Everything here is a pure function of arrays, named after what it computes in
`shiftjax.layers`, which is its specification and the oracle of its tests.

Files, in the order of their floors: `chunks` (loops over a few images at a time),
`layout` (the container), `products` (matrix products and convolutions), `depthwise`
(convolutions of single channels), `statistics` (BatchNorm), `shift` (ReLU and shift),
`block` (the ShiftResNet block), `modules` (all of it for NHWC arrays too).
"""

from shiftjax.fast.cpu.layout import Planes
from shiftjax.fast.cpu.modules import conv_norm, shift_block, supports

__all__ = ["Planes", "conv_norm", "shift_block", "supports"]
