"""Writes ImageNet (ILSVRC 2012) for TFDS from the official archives.

`writer` writes what `reader` finds and reads; `files` describes the published files.
"""
