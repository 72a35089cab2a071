"""Writes CIFAR-10 and CIFAR-100 for TFDS from the official files.

`builder` writes; `reader` and `pickles` read and verify the official files, of which
`files` has the names and digests.
"""
