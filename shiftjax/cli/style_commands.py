"""What the library offers from a shell for style transfer."""

import dataclasses
from typing import Annotated

import tyro
from rich.console import Console

from shiftjax.cli.commands import Flag, say
from shiftjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Stylize:
    """Paint pictures in another style: photographs of any size, animations, folders."""

    paths: tyro.conf.Positional[tuple[str, ...]]
    """Pictures of any size and format, and folders of them."""
    style: str
    """Weights of `shiftjax list '*stylizer.*' --pretrained`, or a .safetensors file."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """The file, for a single picture; else a folder, in which each keeps its name."""
    compare: Flag = False
    """Write each picture beside its result, with labels, instead of the result."""
    directory: str | None = None
    """Folder of the weights, or hf:owner/name."""

    def run(self, console: Console) -> None:
        """Prints one line a picture."""
        from shiftjax.allocator import keep_freed_memory
        from shiftjax.apps.stylize import Stylizer, targets
        from shiftjax.weights import open_pretrained

        if not self.paths:
            raise InputError("no picture is given: shiftjax stylize PICTURE... --style")
        pairs = targets(self.paths, self.output)
        keep_freed_memory()
        stylizer = Stylizer(open_pretrained(self.style, self.directory))
        for source, target in pairs:
            labels = (source.name, self.style) if self.compare else ()
            painted = stylizer.paint(source, target, labels=labels)
            height, width, _ = painted.frames[0].shape
            frames = f", {len(painted.frames)} frames" if painted.durations else ""
            say(console, f"{target}: {width} x {height}{frames}")
