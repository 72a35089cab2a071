"""ShiftResNet-20, E = 3, on CIFAR-10, with Muon, in 40 epochs.

    python -m train prepare cifar10
    python -m train cifar10

90.16% test top-1 (seed 0, one run, all 50,000 training examples), in 45 minutes on one
core of an AMD EPYC. docs/recipe.md describes how the options were chosen on a
validation split; the log is in checkpoints/logs.

The paper's own recipe takes four times as long:

    python -m train cifar10 --epochs 160 --batch-size 128 --augment.crop-padding 4 \
        --optimizer.kind sgd --optimizer.no-nesterov --optimizer.decay all \
        --schedule.kind steps --schedule.boundaries 82 124 --schedule.warmup-epochs 0 \
        --workdir runs/cifar10_paper
"""

from train.config import Augment, Config, Data, Optimizer, Schedule

CONFIG = Config(
    workdir="runs/cifar10",
    epochs=40,
    batch_size=64,
    data=Data(
        source="tfds:cifar10",
        train_on="train+validation",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    ),
    augment=Augment(crop_padding=2, flip=True),
    optimizer=Optimizer(kind="muon", nesterov=True, decay="kernels"),
    schedule=Schedule(kind="one_cycle", learning_rate=0.1, warmup_epochs=6),
    log_steps=100,
)
