"""The configuration of a run: frozen, typed, and the source of `--help`."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from shiftjax.errors import InputError, MissingFileError

FILE = "config.json"


@dataclasses.dataclass(frozen=True)
class Model:
    """The network."""

    name: str = "shiftresnet20_e3"
    """A name of `shiftjax list`, or a family's with its option in `overrides`."""
    overrides: dict[str, int | float] = dataclasses.field(default_factory=dict)
    """Attributes of the network to set, e.g. expansion 4 or block_reduction 2.8."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What to compute in; parameters are always float32."""
    remat: bool = False
    """Compute each block again in the backward pass, to save memory."""
    sync_batch_norm: bool = True
    """Take BatchNorm's statistics over all devices, not over each alone."""


@dataclasses.dataclass(frozen=True)
class Data:
    """The pictures."""

    source: str = "digits"
    """digits, tfds:NAME (any image classification set of TFDS) or folder:PATH."""
    data_dir: str | None = None
    """Where TFDS data sets are; by default where TFDS looks itself."""
    image_size: int = 32
    """Height and width that pictures are brought to."""
    validation_examples: int | None = None
    """Training examples set apart, by a fixed seed, to validate on; default a tenth."""
    train_on: Literal["train", "train+validation"] = "train"
    """Train on what is left, or on all official training examples."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Mean of each channel to subtract, for values in 0 .. 1."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Standard deviation of each channel to divide by, for values in 0 .. 1."""
    resident_bytes: int = 2**31
    """Sets up to this size live on the device, larger ones are fed from the host."""


@dataclasses.dataclass(frozen=True)
class Augment:
    """What is done to training pictures, inside the compiled step."""

    crop_padding: int = 4
    """Pixels of zeros around a picture before a random crop of its size; 0 for none."""
    flip: bool = True
    """Mirror half of the pictures left to right."""
    mixup: float = 0.0
    """Parameter alpha of mixup's Beta(alpha, alpha); 0 for none."""
    cutmix: float = 0.0
    """Parameter alpha of CutMix's Beta(alpha, alpha); 0 for none."""


@dataclasses.dataclass(frozen=True)
class Style:
    """Style transfer: the painting, and how pictures are compared (task style)."""

    image: str | None = None
    """The painting whose style is learned."""
    size: int = 256
    """Height and width that the painting is brought to."""
    features: str = "vgg16"
    """Network whose features are compared: vgg16, squeezenet, or released weights."""
    weights: str | None = None
    """File of weights of vgg16 or squeezenet, as torchvision's."""
    content_weight: float = 1e5
    """Of the content loss."""
    style_weight: float = 1e10
    """Of the style loss."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Stochastic gradient descent with momentum, Adam, or Muon."""

    kind: Literal["sgd", "adam", "muon"] = "sgd"
    """SGD, Adam with its usual constants, or Muon for hidden kernels beside SGD."""
    momentum: float = 0.9
    """How much of the last update is kept (sgd, muon)."""
    nesterov: bool = False
    """Use Nesterov's form of momentum (sgd, muon)."""
    weight_decay: float = 5e-4
    """Added to the gradient, times the parameters."""
    decay: Literal["all", "kernels"] = "all"
    """Decay all parameters, or the kernels alone (no BatchNorm, no biases)."""
    clip_norm: float | None = None
    """Bound on the norm of the gradient."""
    freeze: tuple[str, ...] = ()
    """Parameters to leave as they are: shell wildcards of their paths, as 'stem*'."""
    muon_rate: float = 0.5
    """Learning rate of hidden kernels, over that of the schedule (muon)."""
    muon_decay: float = 0.02
    """Weight decay of hidden kernels, times their learning rate (muon)."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate over the run."""

    kind: Literal["steps", "cosine", "one_cycle", "constant"] = "cosine"
    """Steps at the boundaries, half a cosine to 0, a triangle, or constant."""
    learning_rate: float = 0.1
    """The highest learning rate."""
    warmup_epochs: float = 0.0
    """Epochs of a linear rise from 0 (one_cycle: up to the peak)."""
    boundaries: tuple[float, ...] = ()
    """Epochs after which the rate falls (steps)."""
    factor: float = 0.1
    """What the rate is multiplied by at each boundary (steps)."""


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Where the processes of a run on several hosts meet, if no cluster says it."""

    coordinator: str | None = None
    """HOST:PORT of the first process."""
    count: int | None = None
    """How many processes there are."""
    index: int | None = None
    """Which of them this is, from 0."""
    timeout: int = 300
    """Seconds to wait for the others at the start."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A run: what is trained, on what, how, and where it is kept."""

    task: Literal["classification", "style"] = "classification"
    """What the network is trained for."""
    workdir: str = "runs/digits"
    """Folder of the run: configuration, record, checkpoints. Resumed if it exists."""
    seed: int = 0
    """Decides initial parameters, order of examples and augmentation."""
    epochs: float = 10.0
    """How many times each example is seen."""
    batch_size: int = 128
    """Examples in a step, over all devices."""
    init: str | None = None
    """Weights to begin with, of `shiftjax list --pretrained`, or a .safetensors."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes."""
    ema_decay: float | None = None
    """Evaluate an exponential moving average of the variables with this decay."""
    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    augment: Augment = dataclasses.field(default_factory=Augment)
    style: Style = dataclasses.field(default_factory=Style)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    eval_batch_size: int = 512
    """Examples in a step of evaluation, over all devices."""
    eval_epochs: float = 1.0
    """Epochs between evaluations on the validation split."""
    save_epochs: float = 1.0
    """Epochs between checkpoints."""
    log_steps: int = 50
    """Steps between lines of the record."""
    keep_last: int = 2
    """Checkpoints kept: so many of the last ..."""
    keep_best: int = 1
    """... and so many of the best on the validation split."""
    steps_per_dispatch: int | None = None
    """Steps given to the device at once; by default 1 on a CPU, else 32."""
    devices: int | None = None
    """How many devices to use; by default all, and the cores of a CPU as devices."""
    backend: Literal["pmap", "shard_map"] = "pmap"
    """How a step is mapped over the devices."""
    tensorboard: bool = True
    """Write TensorBoard events too."""
    hosts: Hosts = dataclasses.field(default_factory=Hosts)


# What may differ between a run and its resumption: it changes no result but rounding.
FREE = frozenset(
    {
        "workdir",
        "data.data_dir",
        "data.resident_bytes",
        "eval_batch_size",
        "eval_epochs",
        "save_epochs",
        "log_steps",
        "keep_last",
        "keep_best",
        "steps_per_dispatch",
        "devices",
        "backend",
        "tensorboard",
        "hosts.coordinator",
        "hosts.count",
        "hosts.index",
        "hosts.timeout",
    }
)

ABOVE_ZERO = 5e-324  # the smallest number above it

# field: (lowest, highest), both allowed.
BOUNDS: Mapping[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "epochs": (ABOVE_ZERO, math.inf),
    "batch_size": (1, math.inf),
    "label_smoothing": (0, 1),
    "ema_decay": (0, 1),
    "data.image_size": (1, math.inf),
    "data.validation_examples": (0, math.inf),
    "data.resident_bytes": (0, math.inf),
    "augment.crop_padding": (0, math.inf),
    "augment.mixup": (0, math.inf),
    "augment.cutmix": (0, math.inf),
    "style.size": (1, math.inf),
    "style.content_weight": (0, math.inf),
    "style.style_weight": (0, math.inf),
    "optimizer.momentum": (0, 1),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.clip_norm": (ABOVE_ZERO, math.inf),
    "optimizer.muon_rate": (0, math.inf),
    "optimizer.muon_decay": (0, math.inf),
    "schedule.learning_rate": (0, math.inf),
    "schedule.warmup_epochs": (0, math.inf),
    "schedule.factor": (0, 1),
    "eval_batch_size": (1, math.inf),
    "eval_epochs": (ABOVE_ZERO, math.inf),
    "save_epochs": (ABOVE_ZERO, math.inf),
    "log_steps": (1, math.inf),
    "keep_last": (1, math.inf),
    "keep_best": (0, math.inf),
    "steps_per_dispatch": (1, math.inf),
    "devices": (1, math.inf),
    "hosts.count": (1, math.inf),
    "hosts.index": (0, math.inf),
    "hosts.timeout": (1, math.inf),
}


def flatten(config: Config) -> dict[str, Any]:
    """Returns the configuration by dotted name.

    Example:
      >>> flatten(Config())["schedule.learning_rate"]
      0.1
    """
    flat = {}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def validate(config: Config) -> None:
    """Raises InputError for a value that no run could use, naming its flag."""
    flat = flatten(config)
    for name, (low, high) in BOUNDS.items():
        value = flat[name]
        if value is not None and not low <= value <= high:
            raise InputError(f"--{_flag(name)} {value}: it must be {_limit(low, high)}")
    if math.isinf(config.epochs):
        raise InputError(f"--epochs {config.epochs}: it must be finite")
    if min(config.data.std) <= 0:
        raise InputError(f"--data.std {config.data.std}: each must be above 0")
    if config.schedule.kind == "steps" and not config.schedule.boundaries:
        raise InputError("--schedule.kind steps needs --schedule.boundaries")
    if config.schedule.warmup_epochs > config.epochs:
        raise InputError(
            f"--schedule.warmup-epochs {config.schedule.warmup_epochs}: it must be at "
            f"most the run's {config.epochs} epochs"
        )


def _limit(low: float, high: float) -> str:
    if high == math.inf:
        return "above 0" if low == ABOVE_ZERO else f"at least {low:g}"
    return f"{low:g} to {high:g}"


def differences(old: Config, new: Config) -> list[str]:
    """Lists the fields, with both values, in which two runs differ in their results."""
    before, after = flatten(old), flatten(new)
    return [
        f"--{_flag(name)} was {before[name]}, is {after[name]}"
        for name in before
        if name not in FREE and before[name] != after[name]
    ]


def record(config: Config) -> dict[str, Any]:
    """Returns what is kept of a configuration: the same on every host."""
    return dataclasses.asdict(dataclasses.replace(config, hosts=Hosts()))


def save(config: Config, workdir: Path) -> None:
    """Writes the resolved configuration to `workdir/config.json`."""
    text = json.dumps(record(config), indent=2)
    partial = workdir / f"{FILE}.partial"
    partial.write_text(text + "\n")
    partial.replace(workdir / FILE)


def load(workdir: Path) -> Config:
    """Reads the configuration of a run.

    Raises:
      MissingFileError: if there is no run.
      InputError: if the file is damaged, or of another version.
    """
    path = workdir / FILE
    if not path.is_file():
        raise MissingFileError(f"{workdir} holds no run: there is no {FILE} in it")
    try:
        config = from_dict(json.loads(path.read_text()))
        validate(config)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return config


def from_dict(values: Mapping[str, Any]) -> Config:
    """Rebuilds a configuration from `dataclasses.asdict` of it, also through JSON."""
    fields = {field.name: field for field in dataclasses.fields(Config)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise InputError(f"unknown fields: {', '.join(unknown)}")
    groups = {"model": Model, "data": Data, "augment": Augment}
    groups["style"] = Style
    groups |= {"optimizer": Optimizer, "schedule": Schedule, "hosts": Hosts}
    return Config(
        **{
            name: _group(groups[name], value) if name in groups else value
            for name, value in values.items()
        }
    )


def _group(kind: type, values: Mapping[str, Any]) -> Any:
    """JSON has lists where the dataclasses have tuples."""
    return kind(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    )


def _flag(name: str) -> str:
    return name.replace("_", "-")
