"""What the library offers from a shell: one class a command, its fields the options.

Commands import what they need when they run, so that `--help` is quick.
"""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from shiftjax.errors import InputError

if TYPE_CHECKING:
    from shiftjax.apps.predict import Prediction

Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclasses.dataclass(frozen=True)
class ListModels:
    """List the networks by name."""

    pattern: tyro.conf.Positional[str] = "*"
    """Shell wildcards that a name must match, quoted: 'shiftresnet*_e3'."""
    pretrained: Flag = False
    """List released weights, as architecture.tag, instead."""

    def run(self, console: Console) -> None:
        """Prints one name a line."""
        from shiftjax.registry import list_models

        names = list_models(self.pattern, pretrained=self.pretrained)
        if not names:
            raise InputError(f"no model matches {self.pattern!r}: see `shiftjax list`")
        for name in names:
            console.print(name, highlight=False)


@dataclasses.dataclass(frozen=True)
class Summarize:
    """Show parameters, multiply-adds and activation bytes of a network, by layer."""

    model: tyro.conf.Positional[str]
    """A name of `shiftjax list`."""
    image_size: int | None = None
    """Height and width of the image; by default the network's own."""
    channels: int = 3
    """Channels of the image."""

    def run(self, console: Console) -> None:
        """Prints a table."""
        from shiftjax.summary import summarize

        console.print(
            summarize(self.model, image_size=self.image_size, channels=self.channels)
        )


@dataclasses.dataclass(frozen=True)
class Predict:
    """Name what pictures show, with probabilities."""

    paths: tyro.conf.Positional[tuple[str, ...]]
    """Pictures of any size and format, and folders of them."""
    model: str
    """Weights of `shiftjax list --pretrained`, or a .safetensors file."""
    top: int = 5
    """How many classes to name."""
    json: Flag = False
    """Print one JSON object a picture."""
    plot: str | None = None
    """Draw the pictures with their classes, to this file."""
    directory: str | None = None
    """Folder of the weights, or hf:owner/name."""

    def run(self, console: Console) -> None:
        """Prints one block, or one JSON line, a picture."""
        from shiftjax.allocator import keep_freed_memory
        from shiftjax.apps.predict import Classifier
        from shiftjax.weights import open_pretrained

        if not self.paths:
            raise InputError("no picture is given: shiftjax predict PICTURE... --model")
        if self.top < 1:
            raise InputError(f"--top {self.top}: it must be at least 1")
        keep_freed_memory()
        classifier = Classifier(open_pretrained(self.model, self.directory))
        shown = []
        for prediction in classifier.predict(self.paths, count=self.top):
            self._show(console, prediction)
            if self.plot:
                shown.append(prediction)
        if self.plot:
            from shiftjax.apps.contact_sheet import draw

            try:
                draw(shown).save(self.plot)
            except (OSError, ValueError) as error:
                raise InputError(f"--plot {self.plot}: {error}") from error

    def _show(self, console: Console, prediction: "Prediction") -> None:
        if self.json:
            classes = [{"class": n, "probability": p} for n, p in prediction.classes]
            print(json.dumps({"path": prediction.path, "classes": classes}))
            return
        say(console, prediction.path)
        for name, share in prediction.classes:
            console.print(
                f"  {100 * share:5.1f}%  {name}", highlight=False, markup=False
            )


@dataclasses.dataclass(frozen=True)
class Analyze:
    """Show what each displacement of a shift network does on pictures."""

    model: tyro.conf.Positional[str]
    """Weights of `shiftjax list --pretrained`, or a .safetensors file."""
    paths: tyro.conf.Positional[tuple[str, ...]]
    """Pictures of any size and format, and folders of them."""
    plot: str | None = None
    """Draw a map of the window for each block, to this file."""
    directory: str | None = None
    """Folder of the weights, or hf:owner/name."""

    def run(self, console: Console) -> None:
        """Prints a table of blocks and one of displacements."""
        from shiftjax.allocator import keep_freed_memory
        from shiftjax.apps.analysis import agreement, analyze
        from shiftjax.apps.heatmaps import draw
        from shiftjax.apps.predict import Classifier
        from shiftjax.weights import open_pretrained

        if not self.paths:
            raise InputError("no picture is given: shiftjax analyze MODEL PICTURE...")
        keep_freed_memory()
        pretrained = open_pretrained(self.model, self.directory)
        images = Classifier(pretrained).read(self.paths)
        blocks, kept = analyze(pretrained, images), agreement(pretrained, images)
        say(console, f"{self.model} on {len(images)} picture(s)")
        table = Table()
        for heading in ("block", "same displacement", "different", "most used"):
            table.add_column(heading)
        for block in blocks:
            most = max(block.contributions, key=lambda move: block.contributions[move])
            share = f"{most}, {100 * block.contributions[most]:.0f}%"
            table.add_row(
                block.name, f"{block.within:.2f}", f"{block.across:.2f}", share
            )
        console.print(table)
        say(console, "Columns 2, 3: mean absolute correlation of two channels.")
        for move, share in kept.items():
            say(console, f"without {move}: {100 * share:5.1f}% of predictions stay")
        if self.plot:
            draw(blocks, kept, self.plot)


@dataclasses.dataclass(frozen=True)
class Convert:
    """Turn a checkpoint of the paper's authors, or any named so, into weights."""

    checkpoint: tyro.conf.Positional[str]
    """A file of torch.save: state dict or module. Nothing in it is run."""
    model: str
    """The architecture, of `shiftjax list`."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """The file, whose name ends in .safetensors."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, in order; by default 0, 1, 2, ..."""
    image_size: int = 32
    """Height and width of the pictures it was trained on."""
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    """Mean of each channel that was subtracted, of values in 0 .. 1."""
    std: tuple[float, ...] = (0.2023, 0.1994, 0.2010)
    """Standard deviation of each channel that was divided by."""

    def run(self, console: Console) -> None:
        """Prints one line."""
        from shiftjax.convert import from_torch
        from shiftjax.weights import Card, save

        variables = from_torch(self.checkpoint, self.model)
        classes = len(variables["params"]["head"]["bias"])
        names = self.class_names or tuple(map(str, range(classes)))
        card = Card(
            self.model,
            {"num_classes": classes},
            names,
            self.image_size,
            self.mean,
            self.std,
        )
        size = len(save(self.output, variables, card))
        say(console, f"{self.output}: {size:,} bytes, {self.model}, {classes} classes")


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a network for other programs: StableHLO or ONNX."""

    model: tyro.conf.Positional[str]
    """Weights of `shiftjax list --pretrained`, or a .safetensors file."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """The file, whose name ends in .stablehlo or .onnx."""
    pictures: Flag = False
    """Take uint8 pictures, and normalise them, instead of normalised floats."""
    directory: str | None = None
    """Folder of the weights, or hf:owner/name."""

    def run(self, console: Console) -> None:
        """Prints one line."""
        from shiftjax.apps.export import export
        from shiftjax.weights import open_pretrained

        pretrained = open_pretrained(self.model, self.directory)
        size = export(pretrained, self.output, pictures=self.pictures)
        shape = " x ".join(["any", *map(str, pretrained.card.image_shape())])
        kind = "uint8 pictures" if self.pictures else "normalised float32 images"
        given = "logits" if pretrained.card.class_names else "normalised images"
        say(
            console,
            f"{self.output}: {size:,} bytes; takes {shape} {kind}, gives {given}",
        )


@dataclasses.dataclass(frozen=True)
class Verify:
    """Verify weights: size, hash, names, shapes, and the logits of sample pictures."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of `shiftjax list --pretrained`."""
    all: Flag = False
    """Verify all of them."""
    directory: str | None = None
    """Folder of the weights, or hf:owner/name."""

    def run(self, console: Console) -> None:
        """Prints one line a release; fails after the last if one is not as it was."""
        from shiftjax.allocator import keep_freed_memory
        from shiftjax.apps.verify import verify
        from shiftjax.releases import manifest

        names = list(manifest.read(self.directory)) if self.all else self.names
        if not names:
            raise InputError("nothing to verify: give names, or --all")
        keep_freed_memory()
        wrong = []
        for name in names:
            try:
                checked = ", ".join(verify(name, self.directory)) or "none"
                say(console, f"{name}: as released (logits of: {checked})")
            except InputError as error:
                if len(names) == 1:
                    raise
                wrong.append(name)
                say(console, f"{name}: {error}")
        if wrong:
            raise InputError(f"not as released: {', '.join(wrong)}")


def say(console: Console, line: str) -> None:
    """Prints a line as it is, however long."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)
