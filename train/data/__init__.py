"""Images and labels: their sources, their splits and their way to the device.

`sources.load_source` opens any source; `prepare.prepare` writes CIFAR and ImageNet in
the format of TensorFlow Datasets, without TensorFlow.
"""
