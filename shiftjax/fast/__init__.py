"""Faster implementations of the modules of `shiftjax.layers`, and the choice of one.

`dispatch` chooses; `batchnorm`, `phases` and `fused_block` are shared by those that
are chosen from: `cpu`, `tpu` and `gpu`, each imported when it is first used.
"""
