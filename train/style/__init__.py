"""Style transfer: how alike two pictures are in what they show, and in their style.

features.py     frozen networks whose features are compared: VGG-16, SqueezeNet, our own
files.py        the files that hold weights of the first two
losses.py       of content and of style
"""
