"""ShiftResNet-20, E = 3, on CIFAR-10, with a cosine schedule of 30 epochs.

    python -m train prepare cifar10
    python -m train cifar10

87.64% test top-1 (seed 0, one run, all 50,000 training examples; nothing was chosen on
the test set). 11,719 steps of 0.18 s on 2 quiet cores of an AMD EPYC, 35 minutes; the
record is in checkpoints/logs.

The paper's own schedule takes five times as long:

    python -m train cifar10 --epochs 160 --schedule.kind steps --schedule.boundaries \
        82 124 --schedule.warmup-epochs 0 --workdir runs/cifar10_paper
"""

from train.config import Augment, Config, Data, Schedule

CONFIG = Config(
    workdir="runs/cifar10",
    epochs=30,
    data=Data(
        source="tfds:cifar10",
        train_on="train+validation",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    ),
    augment=Augment(crop_padding=4, flip=True),
    schedule=Schedule(kind="cosine", learning_rate=0.1, warmup_epochs=1),
)
