"""The commands of the library: one class for each, with its options as fields.

A command imports its dependencies when it runs, so that `--help` is quick.
"""

import dataclasses
import fnmatch
import json
import re
import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from shiftjax.cli.arguments import (
    File,
    Flag,
    Folder,
    Images,
    Network,
    Options,
    Output,
    Pixels,
    Weights,
    parse_options,
)
from shiftjax.errors import InputError

if TYPE_CHECKING:
    from shiftjax.apps.predict import Prediction


@dataclasses.dataclass(frozen=True)
class ListModels:
    """List the networks by name."""

    pattern: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="[PATTERN]")
    ] = "*"
    """Pattern with shell wildcards, in quotes: 'shiftresnet*_e3'."""
    pretrained: Flag = False
    """List the names of released weights, architecture.tag, instead."""

    def run(self, console: Console) -> None:
        """Prints one name per line, and families to the standard error."""
        from shiftjax.registry import FAMILIES, list_models

        names = list_models(self.pattern, pretrained=self.pretrained)
        families = [
            f"{family} --options {option}=NUMBER"
            for family, option in FAMILIES.items()
            if fnmatch.fnmatch(family, self.pattern) and not self.pretrained
        ]
        if not names and not families:
            option = " --pretrained" if self.pretrained else ""
            raise InputError(
                f"no name matches {self.pattern!r}: `shiftjax list{option}` prints all"
            )
        for name in sorted(names, key=natural_order):
            say(console, name)
        if families:
            print(f"Families: {', '.join(families)}", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class Summarize:
    """Show the parameters, multiply-adds and activation bytes of each layer."""

    model: tyro.conf.Positional[Network]
    """Name of a network, from `shiftjax list`."""
    image_size: Pixels = None
    """Height and width of the image in pixels; by default the network's own."""
    channels: int = 3
    """Number of channels of the image."""
    options: Options = ()
    """Options of the network, e.g. expansion=4 for shiftresnet20."""

    def run(self, console: Console) -> None:
        """Prints the summary as a table."""
        from shiftjax.summary import summarize

        options = parse_options(self.model, self.options)
        console.print(
            summarize(
                self.model,
                image_size=self.image_size,
                channels=self.channels,
                **options,
            )
        )


@dataclasses.dataclass(frozen=True)
class Predict:
    """Classify images and print the likeliest classes with their probabilities."""

    paths: Images
    """Image files of any size and format, and folders of them."""
    model: Weights
    """Name from `shiftjax list --pretrained`, or a .safetensors file."""
    top: int = 5
    """Number of classes to print for each image."""
    json: Flag = False
    """Print one JSON object per image."""
    plot: File = None
    """File for a contact sheet of the images with their classes."""
    directory: Folder = None
    """Folder of the releases, or hf:owner/name; by default that of the package."""

    def run(self, console: Console) -> int:
        """Prints a block or a JSON line per image; returns 1 if one was skipped."""
        from shiftjax.allocator import keep_freed_memory
        from shiftjax.apps.figures import check_plot, save_plot
        from shiftjax.apps.predict import NONE_READABLE, Classifier
        from shiftjax.weights import open_pretrained

        if not self.paths:
            raise InputError(
                "no image is given: use shiftjax predict IMAGE... --model WEIGHTS"
            )
        if self.top < 1:
            raise InputError(f"--top {self.top}: it must be at least 1")
        if self.plot:
            check_plot(self.plot, self.paths, sheet=True)
        keep_freed_memory()
        classifier = Classifier(open_pretrained(self.model, self.directory))
        skips, found, shown = Skips(), False, []
        for prediction in classifier.predict(self.paths, count=self.top, on_skip=skips):
            found = True
            self._show(console, prediction)
            if self.plot:
                shown.append(prediction)
        if not found:
            raise InputError(NONE_READABLE)
        if self.plot:
            from shiftjax.apps.contact_sheet import draw_contact_sheet

            save_plot(draw_contact_sheet(shown).save, self.plot)
        return skips.code

    def _show(self, console: Console, prediction: "Prediction") -> None:
        """Prints the classes of one image."""
        if self.json:
            classes = [{"class": n, "probability": p} for n, p in prediction.classes]
            say(console, json.dumps({"path": prediction.path, "classes": classes}))
            return
        say(console, prediction.path)
        for name, share in prediction.classes:
            console.print(
                f"  {100 * share:5.1f}%  {name}", highlight=False, markup=False
            )


@dataclasses.dataclass(frozen=True)
class Analyze:
    """Measure how much each displacement of a shift network contributes."""

    model: tyro.conf.Positional[Weights]
    """Name from `shiftjax list --pretrained`, or a .safetensors file."""
    paths: Images
    """Image files of any size and format, and folders of them."""
    plot: File = None
    """File for a heat map of the window of each block."""
    directory: Folder = None
    """Folder of the releases, or hf:owner/name; by default that of the package."""

    def run(self, console: Console) -> int:
        """Prints a table of the blocks, and more; returns 1 if an image was skipped."""
        from shiftjax.allocator import keep_freed_memory
        from shiftjax.apps.analysis import agreement, analyze
        from shiftjax.apps.figures import check_plot, figure_class
        from shiftjax.apps.heatmaps import draw_heatmaps
        from shiftjax.apps.predict import Classifier
        from shiftjax.weights import open_pretrained

        if not self.paths:
            raise InputError("no image is given: use shiftjax analyze MODEL IMAGE...")
        if self.plot:
            check_plot(self.plot, self.paths)
            figure_class()  # raises before long computations
        keep_freed_memory()
        pretrained = open_pretrained(self.model, self.directory)
        skips = Skips()
        images = Classifier(pretrained).read(self.paths, skips)
        blocks, kept = analyze(pretrained, images), agreement(pretrained, images)
        say(console, f"{self.model} on {len(images)} image(s)")
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
        say(
            console,
            "Columns 2 and 3: mean absolute correlation of two channels of the same "
            "displacement, and of two different ones.",
        )
        for move, share in kept.items():
            say(
                console,
                f"without {move}: {100 * share:5.1f}% of predictions stay the same",
            )
        if self.plot:
            draw_heatmaps(blocks, kept, self.plot)
        return skips.code


@dataclasses.dataclass(frozen=True)
class Export:
    """Export a network to StableHLO or ONNX."""

    model: tyro.conf.Positional[Weights]
    """Name from `shiftjax list --pretrained`, or a .safetensors file."""
    output: Output
    """File to write, which ends in .stablehlo or .onnx."""
    uint8: Annotated[Flag, tyro.conf.arg(aliases=["--pictures"])] = False
    """Take uint8 images and normalize them, instead of normalized floats."""
    directory: Folder = None
    """Folder of the releases, or hf:owner/name; by default that of the package."""

    def run(self, console: Console) -> None:
        """Prints the size of the written file, and its input and output."""
        from shiftjax.apps.export import export
        from shiftjax.weights import open_pretrained

        pretrained = open_pretrained(self.model, self.directory)
        size = export(pretrained, self.output, uint8=self.uint8)
        shape = " x ".join(["any", *map(str, pretrained.card.image_shape())])
        kind = "uint8 images" if self.uint8 else "normalized float32 images"
        result = pretrained.model.outputs.replace("images", "normalized images")
        say(
            console,
            f"{self.output}: {size:,} bytes; takes {shape} {kind}, returns {result}",
        )


@dataclasses.dataclass(frozen=True)
class Verify:
    """Verify the size, hash, names, shapes and sample logits of released weights."""

    names: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="[RELEASE...]", help_behavior_hint=""),
    ] = ()
    """Names of releases, from `shiftjax list --pretrained`."""
    all: Flag = False
    """Verify all releases."""
    directory: Folder = None
    """Folder of the releases, or hf:owner/name; by default that of the package."""

    def run(self, console: Console) -> None:
        """Prints one line per release; raises after the last if one has failed."""
        from shiftjax.allocator import keep_freed_memory
        from shiftjax.apps.verify import verify
        from shiftjax.releases import manifest

        if self.all and self.names:
            given = " ".join(self.names)
            raise InputError(f"{given} and --all: give names of releases, or --all")
        names = list(manifest.read(self.directory)) if self.all else self.names
        if not names:
            raise InputError(
                "no release is given: use shiftjax verify NAME... or --all"
            )
        keep_freed_memory()
        wrong = []
        for name in names:
            try:
                checked = verify(name, self.directory)
                logits = manifest.find(name, self.directory).logits
                text = f"logits of: {', '.join(checked) or 'none'}"
                if skipped := sorted(logits.keys() - set(checked)):
                    text += f"; not of: {', '.join(skipped)}, without scikit-learn"
                say(console, f"{name}: as released ({text})")
            except InputError as error:
                if len(names) == 1:
                    raise
                wrong.append(name)
                say(console, f"{name}: {error}")
        if wrong:
            raise InputError(f"not as released: {', '.join(wrong)}")


@dataclasses.dataclass(frozen=True)
class Hub:
    """Write a release as a folder for the Hugging Face Hub, with its model card."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RELEASE")]
    """Name from `shiftjax list --pretrained`."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")]
    """Folder to write, which `hf upload` takes."""
    repository: str = "owner/name"
    """Repository that the example in the model card names."""
    directory: Folder = None
    """Folder of the releases, or hf:owner/name; by default that of the package."""

    def run(self, console: Console) -> None:
        """Prints the command that uploads the folder."""
        from shiftjax.releases.hub_folder import write_hub_folder

        folder = write_hub_folder(
            self.name, self.output, self.directory, repository=self.repository
        )
        command = shlex.join(["hf", "upload", self.repository, str(folder)])
        say(console, f"{folder}: next, {command}")


class Skips:
    """Prints a line for each part of the work that is skipped.

    Attributes:
      code: the exit code of the command: 1 if a part was skipped, else 0.
    """

    def __init__(self) -> None:
        self.code = 0

    def __call__(self, message: str) -> None:
        """Prints the message, which names the skipped part, to the standard error."""
        self.code = 1
        print(f"shiftjax: {message}", file=sys.stderr)


def natural_order(name: str) -> list[str | int]:
    """Returns the key that sorts numbers in names by their value.

    Example:
      >>> sorted(["resnet110", "resnet20"], key=natural_order)
      ['resnet20', 'resnet110']
    """
    parts = re.split(r"(\d+)", name)
    return [int(part) if part.isdecimal() else part for part in parts]


def say(console: Console, line: str) -> None:
    """Prints a line without markup and without wrapping it.

    Args:
      console: where to print.
      line: the text.
    """
    console.print(line, highlight=False, markup=False, soft_wrap=True)
