"""Faster implementations of the modules of `shiftjax.layers`, and their dispatch.

`dispatch` chooses among the implementations `cpu`, `tpu` and `gpu`, which are imported
when first used and share `batchnorm`, `phases` and `fused_block`. `pixels` is part of
the reference: operations whose gradients XLA is slow to compute on a CPU.
"""
