"""Images and labels: their sources, their splits and their way to the device.

`sources.load` reads any source into an `ImageSet`; `prepare.prepare` writes CIFAR
and ImageNet in the format of TensorFlow Datasets, without TensorFlow.
"""
