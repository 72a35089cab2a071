"""The command of the library that converts weights."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import tyro
from rich.console import Console

from shiftjax.cli.arguments import (
    Network,
    Numbers,
    Options,
    Output,
    Pixels,
    parse_options,
)
from shiftjax.cli.commands import say
from shiftjax.errors import InputError
from shiftjax.files import user_path


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert a checkpoint of PyTorch or Caffe, with its authors' names, to weights."""

    checkpoint: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")
    ]
    """File of torch.save with a state dict or a module, of which no code is run; or a
    .safetensors with PyTorch's names, a .caffemodel, or an .npz of its blobs."""
    model: Network
    """Architecture of the checkpoint, from `shiftjax list`."""
    output: Output
    """File to write, which ends in .safetensors."""
    class_names: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")] = ()
    """Names of the classes in order; by default 0, 1, 2, ..., and for 1000 classes
    those of ImageNet if torchvision is installed, which has them."""
    image_size: Pixels = None
    """Height and width of the images in pixels; by default 32, and 224 from Caffe and
    for resnet50."""
    resize: Pixels = None
    """Short side of the images before their center is cropped; by default the image
    size, and 256 from Caffe and for resnet50."""
    mean: Numbers = None
    """Mean of each channel, subtracted from values in 0 .. 1; by default that of the
    authors' training."""
    std: Numbers = None
    """Standard deviation of each channel, by which the difference is divided; by
    default that of the authors' training."""
    options: Options = ()
    """Options of the network, e.g. expansion=4 for shiftresnet20."""

    def run(self, console: Console) -> None:
        """Prints the size of the written file."""
        from shiftjax.convert import caffe, caffe_files, state_dicts
        from shiftjax.weights import Card, save

        self._check()
        options = parse_options(self.model, self.options)
        names = self.class_names
        if self.checkpoint.endswith(caffe_files.SUFFIXES):
            variables = caffe.from_caffe(self.checkpoint, self.model, **options)
            fields = dict(caffe.PREPARATION)
        else:
            source = self.checkpoint
            variables = state_dicts.from_torch(source, self.model, **options)
            fields = state_dicts.preparation(self.model)
        classes = len(variables["params"]["head"]["bias"])
        if not names and classes == 1000:
            names = caffe.imagenet_classes()
        if not self.class_names and len(names) != classes:
            names = tuple(map(str, range(classes)))
        for name in ("image_size", "resize", "mean", "std"):
            if (value := getattr(self, name)) is not None:
                fields[name] = value
        self._check_channels(variables, fields)
        card = Card(self.model, {"num_classes": classes} | options, names, **fields)
        size = len(save(self.output, variables, card))
        say(console, f"{self.output}: {size:,} bytes, {self.model}, {classes} classes")

    def _check(self) -> None:
        """Raises InputError if the checkpoint would be overwritten."""
        if user_path(self.output).resolve() == user_path(self.checkpoint).resolve():
            raise InputError(
                f"--output {self.output} is the checkpoint, which would be "
                "overwritten: give another file"
            )

    def _check_channels(
        self, variables: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> None:
        """Raises InputError for other numbers of channels than those of the weights."""
        stem = variables["params"]["stem"]
        channels = stem.get("conv", stem)["kernel"].shape[-2]
        for name in ("mean", "std"):
            if (count := len(fields[name])) != channels:
                raise InputError(
                    f"--{name} has {count} numbers, and the images of "
                    f"{self.checkpoint} have {channels} channel(s): give one for each"
                )
