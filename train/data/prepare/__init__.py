"""Writes data sets for TFDS from their official files, without TensorFlow.

`sets` has the table of the data sets; `cifar` and `imagenet` read and write them;
`download` fetches an archive; `directory` creates a data set's directory.
"""

from train.data.prepare.sets import prepare

__all__ = ["prepare"]
