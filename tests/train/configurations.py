"""A configuration with nothing at its default, and the names of all options."""

import dataclasses

from train.config import (
    Augment,
    Config,
    Data,
    Faces,
    Hosts,
    Model,
    Optimizer,
    Schedule,
    Style,
)

# Nothing at its default.
OTHER = Config(
    workdir="elsewhere",
    task="style",
    seed=7,
    epochs=2.5,
    batch_size=48,
    accumulate=3,
    init="resnet56.cifar10",
    label_smoothing=0.1,
    ema_decay=0.999,
    model=Model("resnet56", {"block_reduction": 2.8, "depth": 8}, "bfloat16", True),
    data=Data(
        "folder:pictures",
        "data",
        64,
        100,
        "train+validation",
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
        10**6,
        72,
        "each_epoch",
        3,
        "skip",
        True,
    ),
    augment=Augment(
        2,
        False,
        0.2,
        1.0,
        True,
        (0.25, 0.75),
        "opencv",
        erase=0.25,
        jitter=0.4,
        rand_augment=2,
        rand_augment_magnitude=7,
    ),
    style=Style(
        "painting.jpg",
        64,
        "squeezenet",
        "weights.npz",
        1.0,
        2.0,
        0.5,
        "fire2",
        ("conv1", "fire4"),
        "Hokusai, The Great Wave, about 1831",
    ),
    faces=Faces(
        "softmax_center", 0.3, 30.0, 0.01, 0.2, "pairs.txt", "aligned", (3,), 2
    ),
    optimizer=Optimizer(
        "adam",
        0.8,
        True,
        1e-4,
        "kernels",
        1.0,
        ("stem", "stage1*"),
        True,
        0.3,
        0.1,
        {"*/offsets": 0.01, "head": 10.0},
        True,
    ),
    schedule=Schedule("steps", 0.3, 0.5, (1.0, 2.0), 0.2),
    eval_batch_size=100,
    eval_epochs=0.5,
    save_epochs=0.25,
    save_minutes=5.0,
    log_steps=7,
    keep_last=3,
    keep_best=0,
    steps_per_dispatch=4,
    devices=2,
    backend="shard_map",
    log_to=("csv", "wandb"),
    profile=3,
    stopped_exit_code=75,
    hosts=Hosts("first:8476", 4, 1, 60),
)


def value_of(run: Config, name: str) -> object:
    """The value of an option, by its dotted name."""
    for part in name.split("."):
        run = getattr(run, part)
    return run


def names() -> list[str]:
    """The dotted name of every field."""
    found = []
    for field in dataclasses.fields(Config):
        value = getattr(Config(), field.name)
        inner = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        found += [f"{field.name}.{f.name}" for f in inner] or [field.name]
    return found


def as_flag(name: str) -> str:
    """The flag of an option on the command line."""
    return "--" + name.replace("_", "-")
