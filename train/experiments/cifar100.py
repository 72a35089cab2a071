"""ShiftResNet-20, E = 3, on CIFAR-100, with the recipe of CIFAR-10.

python -m train prepare cifar100
python -m train cifar100
"""

import dataclasses

from train.experiments import cifar10

CONFIG = dataclasses.replace(
    cifar10.CONFIG,
    workdir="runs/cifar100",
    data=dataclasses.replace(
        cifar10.CONFIG.data,
        source="tfds:cifar100",
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
)
