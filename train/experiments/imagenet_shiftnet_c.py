"""ShiftNet-C on ImageNet, with the recipe of ShiftNet-A.

    python -m train imagenet_shiftnet_c

The published top-1 accuracy is 58.8%; this network has not been trained here.
"""

import dataclasses

from train.config import Model
from train.experiments import imagenet_shiftnet_a

CONFIG = dataclasses.replace(
    imagenet_shiftnet_a.CONFIG,
    workdir="runs/imagenet_shiftnet_c",
    model=Model("shiftnet_c", dtype="bfloat16"),
)
