"""Face networks: the losses of training, and the pairs of the test.

options.py      the options, a group of the configuration
losses.py       ArcFace and the center loss
pairs.py        pairs of images as a test split
folds.py        the result of one run for each fold
"""
