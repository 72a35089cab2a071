"""Style transfer: losses that compare two images in content and in style.

options.py      the options, a group of the configuration
features.py     frozen networks whose features are compared: VGG-16, SqueezeNet, our own
files.py        files with weights of VGG-16 and SqueezeNet
losses.py       the content loss and the style loss
"""
