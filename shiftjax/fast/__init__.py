"""Faster implementations of the modules of `shiftjax.layers`, and their dispatch.

`dispatch` chooses among the implementations `cpu`, `tpu` and `gpu`, which are imported
when first used and share `batchnorm`, `phases` and `fused_block`.
"""
