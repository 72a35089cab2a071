"""The configuration of a run: frozen, typed, and the source of `--help`."""

import dataclasses
import json
import math
import os
from collections.abc import Collection, Mapping
from typing import Any, Literal, get_type_hints

from shiftjax.errors import InputError, MissingFileError
from train import files
from train.faces.options import Faces
from train.optimizer_options import Optimizer, Schedule
from train.options import PATH, SOURCE, WEIGHTS, Bounds, map_paths, option
from train.style.options import Style

FILE = "config.json"


@dataclasses.dataclass(frozen=True)
class Model:
    """The network."""

    name: str = "shiftresnet20_e3"
    """A name of `shiftjax list`, or a family name with its option in `overrides`."""
    overrides: dict[str, int | float | str] = dataclasses.field(default_factory=dict)
    """Attributes of the network to set, e.g. expansion 4 or implementation gpu."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters are always float32."""
    remat: bool = False
    """Recompute each block in the backward pass, to save memory."""
    sync_batch_norm: bool = True
    """Compute BatchNorm statistics over all devices, not on each device alone."""


@dataclasses.dataclass(frozen=True)
class Data:
    """The images."""

    source: str = option("digits", path=SOURCE)
    """digits, tfds:NAME (any image classification data set of TFDS), folder:PATH,
    npz:PATH (arrays of NumPy), tar:PATH (WebDataset) or hf:PATH (Hugging Face)."""
    data_dir: str | None = option(None, per_host=True, path=PATH)
    """Folder of the TFDS data sets; by default the one that TFDS uses."""
    image_size: int | tuple[int, int] = option(32, low=1)
    """Height and width that images are resized to, one number for square images."""
    validation_examples: int | None = option(None, low=0)
    """Training examples held out for validation, by a fixed seed; default a tenth."""
    train_on: Literal["train", "train+validation"] = "train"
    """Train without the held-out examples, or on all official training examples."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Mean of each channel to subtract, for values in 0 .. 1; one for gray images."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Standard deviation of each channel to divide by, for values in 0 .. 1."""
    resident_bytes: int = option(2**31, low=0, free=True)
    """Largest size of a data set that stays on the device; a larger one is streamed."""
    resize: int | None = option(None, low=1)
    """Short side that images are resized to before the center is cropped."""
    decode: Literal["once", "each_epoch"] | None = option(None, free=True)
    """Decode images once or at each epoch; by default once, if they fit into memory."""
    threads: int | None = option(None, low=1, free=True)
    """Threads that decode images; by default one per core that the process may use."""
    on_corrupt: Literal["stop", "skip"] = option("stop", free=True)
    """Stop at a damaged image, or skip it; skipped images are counted in the log."""
    balanced: bool = False
    """Train on each class equally often, whatever its number of images."""


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augmentation of training images, inside the compiled step but for resizing."""

    crop_padding: int = option(4, low=0)
    """Pixels of zeros around an image before a random crop of its size; 0 for none."""
    flip: bool = True
    """Mirror half of the images left to right."""
    mixup: float = option(0.0, low=0)
    """Alpha of mixup's Beta(alpha, alpha); 0 for none. The accuracy in training counts
    against the unmixed label."""
    cutmix: float = option(0.0, low=0)
    """Alpha of CutMix's Beta(alpha, alpha); 0 for none. The accuracy in training counts
    against the unmixed label."""
    random_resized_crop: bool = False
    """Resize a random box of each image; the images are decoded at each epoch."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of that box, as shares of the image."""
    crop_decoder: Literal["pillow", "opencv", "nvimgcodec"] = "pillow"
    """OpenCV and nvImageCodec decode JPEG files for that box in less time than Pillow,
    and do not average pixels."""
    erase: float = option(0.0, low=0, high=1)
    """Probability that a random rectangle of an image is set to the mean color."""
    jitter: float = option(0.0, low=0, high=1)
    """Largest change of brightness, contrast and saturation, as a share; 0 for none."""
    rand_augment: int = option(0, low=0)
    """Number of RandAugment's operations on each image; 0 for none."""
    rand_augment_magnitude: int = option(9, low=0, high=30)
    """Magnitude of RandAugment's operations."""


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Address and number of a process, for several hosts outside a known cluster."""

    coordinator: str | None = option(None, per_host=True)
    """HOST:PORT of the first process."""
    count: int | None = option(None, low=1, free=True)
    """Number of processes."""
    index: int | None = option(None, low=0, per_host=True)
    """Number of this process, from 0."""
    timeout: int = option(300, low=1, per_host=True)
    """Seconds to wait for the other processes at the start."""


@dataclasses.dataclass(frozen=True)
class Config:
    """All options of a training run."""

    task: str = "classification"
    """The training task: its loss and its metrics."""
    workdir: str = option("runs/digits", per_host=True)
    """Folder of the run: configuration, log, checkpoints. Resumed if it exists."""
    seed: int = option(0, low=0, high=2**31 - 1)
    """Seed of the initial parameters, the order of examples and the augmentation."""
    epochs: float = option(10.0, above=0)
    """Number of passes over the training examples."""
    batch_size: int = option(128, low=1)
    """Examples in a training step, over all devices."""
    accumulate: int = option(1, low=1)
    """Micro-batches per step, one after the other, to save memory; BatchNorm normalizes
    each by its own statistics."""
    init: str | None = option(None, path=WEIGHTS)
    """Initial weights: one of `shiftjax list --pretrained`, or a .safetensors file."""
    label_smoothing: float = option(0.0, low=0, high=1)
    """Share of the target spread evenly over the classes."""
    ema_decay: float | None = option(None, low=0, high=1)
    """Evaluate an exponential moving average of the variables with this decay, and the
    raw variables beside it."""
    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    augment: Augment = dataclasses.field(default_factory=Augment)
    style: Style = dataclasses.field(default_factory=Style)
    faces: Faces = dataclasses.field(default_factory=Faces)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    eval_batch_size: int = option(512, low=1, free=True)
    """Examples in an evaluation step, over all devices."""
    eval_epochs: float = option(1.0, above=0, free=True)
    """Epochs between evaluations on the validation split."""
    save_epochs: float = option(1.0, above=0, free=True)
    """Epochs between checkpoints."""
    save_minutes: float | None = option(None, above=0, free=True)
    """Minutes after which a line of the log is followed by a checkpoint too."""
    log_steps: int = option(50, low=1, free=True)
    """Steps between lines of the log."""
    keep_last: int = option(2, low=1, free=True)
    """Number of newest checkpoints to keep."""
    keep_best: int = option(1, low=0, free=True)
    """Number of checkpoints to keep besides, the best on the validation split."""
    steps_per_dispatch: int | None = option(None, low=1, free=True)
    """Steps dispatched to the device at once; by default 1 on a CPU, else 32, or 4 if
    the images are streamed."""
    devices: int | None = option(None, low=1, free=True)
    """Number of devices to use; by default all, and the cores of a CPU as devices."""
    backend: Literal["pmap", "shard_map"] = option("pmap", free=True)
    """JAX transformation that maps a step over the devices."""
    log_to: tuple[str, ...] = option(("tensorboard",), free=True)
    """Writers of the log beside metrics.jsonl: any of tensorboard, csv and wandb."""
    profile: int | None = option(None, low=1, free=True)
    """Number of steps to trace by JAX's profiler, into the folder's `profile`."""
    stopped_exit_code: int = option(0, low=0, high=255, free=True)
    """Exit code of a run that was asked to stop before its end, e.g. by SIGTERM."""
    hosts: Hosts = dataclasses.field(default_factory=Hosts)


def _options() -> dict[str, dataclasses.Field[Any]]:
    options = {}
    for field in dataclasses.fields(Config):
        group = GROUPS.get(field.name)
        if group is None:
            options[field.name] = field
        else:
            inner = dataclasses.fields(group)
            options |= {f"{field.name}.{part.name}": part for part in inner}
    return options


# The class of each group of options, by the name of its field in Config.
GROUPS: Mapping[str, type[Any]] = {
    name: kind
    for name, kind in get_type_hints(Config).items()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
}
# The field of each option, by its dotted name.
OPTIONS: Mapping[str, dataclasses.Field[Any]] = _options()
# The options that may differ between a run and its resumption.
FREE = frozenset(name for name, field in OPTIONS.items() if field.metadata.get("free"))
# The options that may differ between the hosts of a run; all of them are free.
PER_HOST = frozenset(
    name for name, field in OPTIONS.items() if field.metadata.get("per_host")
)

# Groups of options of one task each, with the task's name; no other task reads them.
TASK_GROUPS = ("style", "faces")


def concerns(name: str, task: str) -> bool:
    """Returns True if a task reads an option.

    Example:
      >>> concerns("style.image", "style"), concerns("style.image", "classification")
      (True, False)
    """
    group = name.partition(".")[0]
    return group not in TASK_GROUPS or group == task


def flatten(config: Config) -> dict[str, Any]:
    """Returns every option's value by its dotted name.

    Example:
      >>> flatten(Config())["schedule.learning_rate"]
      0.1
    """
    flat = {}
    for name, value in dataclasses.asdict(config).items():
        if name in GROUPS:
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def validate(config: Config) -> None:
    """Raises InputError for a value that no run can use, with the name of its flag."""
    for name, value in flatten(config).items():
        bounds = OPTIONS[name].metadata.get("bounds", Bounds())
        if value is not None and value not in bounds:
            raise InputError(f"--{_flag(name)} {value}: it must be {bounds}")
    if math.isinf(config.epochs):
        raise InputError(f"--epochs {config.epochs}: it must be finite")
    mean, std = config.data.mean, config.data.std
    if len(mean) not in (1, 3) or len(std) != len(mean):
        raise InputError(
            f"--data.mean {mean} --data.std {std}: give one number each for gray "
            "images, or three for RGB"
        )
    if min(config.data.std) <= 0:
        raise InputError(f"--data.std {config.data.std}: each must be above 0")
    for pattern, rate in config.optimizer.rates.items():
        if not 0 <= rate < math.inf:
            raise InputError(
                f"--optimizer.rates {pattern} {rate}: it must be at least 0 and finite"
            )
    if config.optimizer.freeze_statistics and not config.optimizer.freeze:
        raise InputError("--optimizer.freeze-statistics needs --optimizer.freeze")
    _validate_images(config.data, config.augment)
    if config.schedule.kind == "steps" and not config.schedule.boundaries:
        raise InputError("--schedule.kind steps needs --schedule.boundaries")
    if config.schedule.warmup_epochs > config.epochs:
        raise InputError(
            f"--schedule.warmup-epochs {config.schedule.warmup_epochs}: it must be at "
            f"most the run's {config.epochs} epochs"
        )


def _validate_images(data: Data, augment: Augment) -> None:
    """Raises InputError for options of the images that exclude each other."""
    low, high = augment.crop_scale
    if not 0 < low <= high <= 1:
        raise InputError(
            f"--augment.crop-scale {low} {high}: it must be two ascending numbers "
            "above 0 and at most 1"
        )
    if augment.crop_decoder != "pillow" and not augment.random_resized_crop:
        raise InputError("--augment.crop-decoder needs --augment.random-resized-crop")
    if augment.random_resized_crop and data.decode == "once":
        raise InputError(
            "--data.decode once: --augment.random-resized-crop decodes each image at "
            "each epoch"
        )


def absolute(config: Config) -> Config:
    """Returns a configuration whose paths lead to the same files from any folder.

    The paths are those that an `option` declares; a run's folder is not one of them.

    Example:
      >>> absolute(Config(data=Data("folder:/images/../photos"))).data.source
      'folder:/photos'
    """

    def change(path: str) -> str:
        if files.in_store(path):
            return path
        return os.path.abspath(os.path.expanduser(path))

    return map_paths(config, change)


def published(config: Config) -> Config:
    """Returns a configuration for a release, with the name alone of each path.

    Example:
      >>> published(Config(data=Data("folder:/home/ada/photos"))).data.source
      'folder:photos'
    """
    return map_paths(config, lambda path: os.path.basename(path.rstrip("/")) or path)


def differences(old: Config, new: Config, ignored: Collection[str] = FREE) -> list[str]:
    """Lists the options in which two configurations differ, with both values.

    Args:
      old: one configuration.
      new: the other.
      ignored: names of options to leave out; by default those that change no result.
    """
    before, after = flatten(old), flatten(new)
    mine, other = flatten(absolute(old)), flatten(absolute(new))
    return [
        f"--{_flag(name)} was {before[name]}, is {after[name]}"
        for name in before
        if name not in ignored
        and mine[name] != other[name]
        and (concerns(name, old.task) or concerns(name, new.task))
    ]


def record(config: Config) -> dict[str, Any]:
    """Returns the configuration to write to disk, which is the same on every host."""
    return dataclasses.asdict(dataclasses.replace(config, hosts=Hosts()))


def save_config(config: Config, workdir: str | os.PathLike[str]) -> None:
    """Writes the configuration to `workdir/config.json`."""
    text = json.dumps(record(config), indent=2)
    files.write(files.folder(workdir) / FILE, f"{text}\n".encode())


def load_config(workdir: str | os.PathLike[str]) -> Config:
    """Reads the configuration of a run.

    Raises:
      MissingFileError: if there is no run.
      InputError: if the file is damaged, or has options that are not known.
    """
    path = files.folder(workdir) / FILE
    if not path.is_file():
        raise MissingFileError(f"{workdir} holds no run: there is no {FILE} in it")
    try:
        config = from_dict(json.loads(path.read_text()))
        validate(config)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return config


def from_dict(values: Mapping[str, Any]) -> Config:
    """Rebuilds a configuration from `dataclasses.asdict` of it, also through JSON.

    Raises:
      InputError: for names that are not options.
    """
    values = _renamed(values)
    groups = {
        name: _build(GROUPS[name], value, f"{name}.")
        for name, value in values.items()
        if name in GROUPS
    }
    return _build(Config, {**values, **groups})


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Converts options that had another name in earlier versions."""
    renamed = {**values}
    if "tensorboard" in renamed:
        events = renamed.pop("tensorboard")
        renamed.setdefault("log_to", ("tensorboard",) if events else ())
    faces = {**renamed.get("faces", {})}
    if "fold" in faces:
        fold = faces.pop("fold")
        renamed["faces"] = {"folds": (fold,) if fold else ()} | faces
    return renamed


def _build(kind: type[Any], values: Mapping[str, Any], prefix: str = "") -> Any:
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = [f"{prefix}{name}" for name in values if name not in known]
    if unknown:
        raise InputError(f"unknown options: {', '.join(unknown)}")
    # JSON has lists where the dataclasses have tuples.
    return kind(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    )


def _flag(name: str) -> str:
    return name.replace("_", "-")
