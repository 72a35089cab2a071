"""ResNet-50 on ImageNet, with the recipe of ShiftNet-A.

    python -m train imagenet_resnet50

The published top-1 accuracy is 75.1%; this network has not been trained here.
"""

import dataclasses

from train.config import Model
from train.experiments import imagenet_shiftnet_a

CONFIG = dataclasses.replace(
    imagenet_shiftnet_a.CONFIG,
    workdir="runs/imagenet_resnet50",
    model=Model("resnet50", dtype="bfloat16"),
)
