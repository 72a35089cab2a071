"""Images and labels: their sources, their splits and their way to the device.

`sources.load` reads any source into an `ImageSet`; `prepare.prepare` writes the CIFAR
data sets in the format of TensorFlow Datasets, without TensorFlow.
"""
