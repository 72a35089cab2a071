"""Pictures and labels: where they come from and how they reach memory.

`sources.load` reads any source into an `ImageSet`; `prepare.prepare` writes the CIFAR
data sets in the format of TensorFlow Datasets, without TensorFlow.
"""
