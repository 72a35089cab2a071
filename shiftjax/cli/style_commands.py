"""The command of the library for style transfer."""

import dataclasses
import functools

from rich.console import Console

from shiftjax.cli.arguments import Flag, Folder, Images, Output, Weights
from shiftjax.cli.commands import Skips, say
from shiftjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Stylize:
    """Restyle images: photographs of any size, animations, and folders of them."""

    paths: Images
    """Image files of any size and format, and folders of them."""
    style: Weights
    """Name or tag from `shiftjax list '*stylizer.*' --pretrained`, or a .safetensors
    file."""
    output: Output
    """File to write for a single image; else a folder, where each keeps its name."""
    compare: Flag = False
    """Write each image beside its versions by all stylizers of the tag, with labels."""
    directory: Folder = None
    """Folder of the releases, or hf:owner/name; by default that of the package."""

    def run(self, console: Console) -> int:
        """Prints one line per image; returns 1 if one was skipped."""
        from shiftjax.allocator import keep_freed_memory
        from shiftjax.apps import stylize
        from shiftjax.weights import open_pretrained

        if not self.paths:
            raise InputError(
                "no image is given: use shiftjax stylize IMAGE... --style NAME -o FILE"
            )
        pairs = stylize.targets(self.paths, self.output)
        if self.compare:
            names = stylize.find_styles(self.style, self.directory)
        else:
            names = [stylize.find_style(self.style, self.directory)]
        keep_freed_memory()
        stylizers = {
            name: stylize.Stylizer(open_pretrained(name, self.directory))
            for name in names
        }
        skips, written = Skips(), 0
        for source, target in pairs:
            if self.compare:
                paint = functools.partial(stylize.strip, stylizers, source.name)
            else:
                (paint,) = stylizers.values()
            try:
                painted = stylize.paint_file(paint, source, target)
            except InputError as error:
                if len(pairs) == 1:
                    raise
                skips(str(error))
                continue
            written += 1
            height, width, _ = painted.frames[0].shape
            frames = f", {len(painted.frames)} frames" if painted.durations else ""
            say(console, f"{target}: {width} x {height}{frames}")
        if not written:
            raise InputError("none of the images could be stylized")
        return skips.code
