"""The trainer with "tiny_facenet", a face network of two blocks."""

import functools
import sys

from shiftjax import registry
from shiftjax.models.facenet import FaceResNet
from tests.train.tasks.faces.people import FEATURES
from train.__main__ import run_command

NAME = "tiny_facenet"
BUILD = functools.partial(FaceResNet, blocks=(1, 1), width=8, embedding_size=FEATURES)

if __name__ == "__main__":
    registry.VARIANTS = {**registry.VARIANTS, NAME: BUILD}
    sys.exit(run_command())
