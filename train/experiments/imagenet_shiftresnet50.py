"""ShiftResNet-50 on ImageNet, with the recipe of ShiftNet-A.

    python -m train imagenet_shiftresnet50

The published top-1 accuracy is 75.6%; this network has not been trained here.
"""

import dataclasses

from train.config import Model
from train.experiments import imagenet_shiftnet_a

CONFIG = dataclasses.replace(
    imagenet_shiftnet_a.CONFIG,
    workdir="runs/imagenet_shiftresnet50",
    model=Model("shiftresnet50", dtype="bfloat16"),
)
