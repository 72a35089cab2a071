"""The commands of the library for face networks."""

import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from shiftjax.cli.arguments import File, Folder, Image, Output, Weights
from shiftjax.cli.commands import Skips, say
from shiftjax.errors import InputError, MissingFileError
from shiftjax.files import user_path, write_atomically

if TYPE_CHECKING:
    from shiftjax.weights import Card


@dataclasses.dataclass(frozen=True)
class VerifyFaces:
    """Verify whether two images show the same person."""

    model: tyro.conf.Positional[Weights]
    """Name from `shiftjax list '*face*' --pretrained`, or a .safetensors file."""
    first: Image
    """Image file of an aligned face, of any size and format."""
    second: Image
    """Image file of the other face."""
    threshold: Annotated[float | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Least cosine similarity of one person; by default that of the weights' card."""
    directory: Folder = None
    """Folder of the releases, or hf:owner/name; by default that of the package."""

    def run(self, console: Console) -> None:
        """Prints one line."""
        from shiftjax.allocator import keep_freed_memory
        from shiftjax.apps.embed import Embedder
        from shiftjax.apps.face_verification import cosine_similarities
        from shiftjax.weights import open_pretrained

        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise InputError(f"--threshold {self.threshold}: it must be -1 to 1")
        images = _image(self.first), _image(self.second)
        keep_freed_memory()
        embedder = Embedder(open_pretrained(self.model, self.directory))
        threshold, origin = self._threshold(embedder.card)
        (similarity,) = cosine_similarities(embedder.read(*images)[None])
        answer = "the same person" if similarity >= threshold else "not the same person"
        say(
            console,
            f"{answer}: cosine similarity {similarity:.4f}, threshold {threshold:.4f} "
            f"({origin})",
        )

    def _threshold(self, card: "Card") -> tuple[float, str]:
        """Returns the threshold and where it comes from."""
        if self.threshold is not None:
            return self.threshold, "given by --threshold"
        if card.threshold is None:
            raise InputError(
                f"the card of {self.model} has no threshold, which a release of a run "
                "with --faces.pairs has: give one by --threshold"
            )
        return card.threshold, f"chosen on {card.threshold_source}"


@dataclasses.dataclass(frozen=True)
class VerifyPairs:
    """Verify the pairs of face images in a file, by the protocol of LFW."""

    models: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="WEIGHTS...", help_behavior_hint="(required)"),
    ]
    """Names from `shiftjax list '*face*' --pretrained`, or .safetensors files."""
    pairs: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """File of pairs in the format of LFW's pairs.txt."""
    images: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder of their images, with one folder for each person."""
    folds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="NUMBER...")] = ()
    """Folds to verify, from 1, two or more; by default all."""
    plot: File = None
    """File for a figure of the ROC curves."""
    directory: Folder = None
    """Folder of the releases, or hf:owner/name; by default that of the package."""

    def run(self, console: Console) -> None:
        """Prints a table with one row for each network."""
        from shiftjax.allocator import keep_freed_memory
        from shiftjax.apps.embed import Embedder
        from shiftjax.apps.face_pairs import choose_folds, read_pairs
        from shiftjax.apps.face_verification import (
            FALSE_ACCEPT_RATES,
            check_scikit_learn,
            verify_pairs,
        )
        from shiftjax.apps.figures import check_plot, figure_class
        from shiftjax.apps.roc import draw_roc
        from shiftjax.weights import open_pretrained

        if not self.models:
            raise InputError("no weights are given: use shiftjax verify-pairs WEIGHTS")
        if self.plot:
            check_plot(self.plot)
            figure_class()  # raises before the images are read
        check_scikit_learn()
        pairs = choose_folds(read_pairs(self.pairs, self.images), self.folds)
        keep_freed_memory()
        embedders = {
            name: Embedder(open_pretrained(name, self.directory))
            for name in self.models
        }
        found = {
            name: verify_pairs(
                embedder.compare(pairs),
                [p.same for p in pairs],
                [p.fold for p in pairs],
            )
            for name, embedder in embedders.items()
        }
        table = Table()
        rates = [f"TAR at FAR {far:g}" for far in FALSE_ACCEPT_RATES]
        for heading in ("network", "accuracy", "ROC area", "equal error", *rates):
            table.add_column(heading)
        for name, result in found.items():
            shares = result.auc, result.eer, *result.tar_at_far.values()
            reached = f"{100 * result.accuracy:.2f} +- {100 * result.accuracy_std:.2f}%"
            table.add_row(name, reached, *(f"{100 * x:.2f}%" for x in shares))
        console.print(table)
        say(
            console,
            f"{len(pairs):,} pairs in {len({p.fold for p in pairs})} folds. Accuracy: "
            "mean and standard deviation over the folds, each at the threshold chosen "
            "on the others.",
        )
        if self.plot:
            draw_roc(found, self.plot)


@dataclasses.dataclass(frozen=True)
class DrawPairs:
    """Draw pairs of face images, and write them to a file for verify-pairs."""

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """Folder with one folder for each person: Ada/Ada_0001.jpg, Ada/Ada_0002.jpg."""
    output: Output
    """File to write, in the format of LFW's pairs.txt."""
    folds: int = 10
    """Number of folds, which have no person in common."""
    count: int = 300
    """Number of pairs of each kind in a fold."""
    seed: int = 0
    """Seed of the random numbers."""

    def run(self, console: Console) -> None:
        """Prints the number of pairs."""
        from shiftjax.apps.face_pairs import draw_pairs, write_pairs

        pairs = draw_pairs(self.folder, self.folds, self.count, self.seed)
        write_pairs(self.output, pairs)
        say(console, f"{self.output}: {len(pairs):,} pairs in {self.folds} fold(s)")


@dataclasses.dataclass(frozen=True)
class Embed:
    """Embed the faces of a folder, and find those that are nearest to an image."""

    model: tyro.conf.Positional[Weights]
    """Name from `shiftjax list '*face*' --pretrained`, or a .safetensors file."""
    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """Folder of images of aligned faces, at any depth."""
    output: Output
    """File to write, which ends in .npz: "embeddings" and "files"."""
    nearest: File = None
    """Image whose most similar faces in the folder are printed."""
    top: int = 9
    """Number of faces to print."""
    plot: File = None
    """File for a contact sheet of this image and these faces; cosines in percent."""
    directory: Folder = None
    """Folder of the releases, or hf:owner/name; by default that of the package."""

    def run(self, console: Console) -> int:
        """Prints the size of the written file; returns 1 if an image was skipped."""
        import numpy as np

        from shiftjax import image_files
        from shiftjax.allocator import keep_freed_memory
        from shiftjax.apps.embed import Embedder
        from shiftjax.apps.figures import check_plot
        from shiftjax.weights import open_pretrained

        self._check()
        files = image_files.find_images(self.folder)
        if self.plot and self.nearest:
            check_plot(self.plot, [*files, self.nearest], sheet=True)
        keep_freed_memory()
        embedder = Embedder(open_pretrained(self.model, self.directory))
        query = _image(self.nearest) if self.nearest else None
        wanted = embedder.read(query)[0] if query else None
        skips = Skips()
        found = embedder.embed_files(files, skips)
        if not found.files:
            raise InputError(f"{self.folder} has no image that can be read")
        folder = user_path(self.folder)
        names = [file.relative_to(folder).as_posix() for file in found.files]
        archive = io.BytesIO()
        np.savez(archive, embeddings=found.vectors, files=np.array(names))
        write_atomically(user_path(self.output), archive.getvalue())
        count, size = found.vectors.shape
        say(console, f"{self.output}: {count:,} embeddings of {size} features")
        if query is not None and wanted is not None:
            faces = found.nearest(wanted, len(found.files))
            others = [face for face in faces if not face[0].samefile(query)]
            self._show(console, query, others[: self.top])
        return skips.code

    def _check(self) -> None:
        """Raises InputError for options that do not fit."""
        if not user_path(self.folder).is_dir():
            raise MissingFileError(f"there is no folder {self.folder}")
        output = user_path(self.output)
        if output.suffix != ".npz":
            raise InputError(f"--output {output}: it must end in .npz")
        if not output.parent.is_dir():
            raise MissingFileError(
                f"--output {output}: there is no folder {output.parent}"
            )
        if self.plot and not self.nearest:
            raise InputError(f"--plot {self.plot}: it needs --nearest, an image")
        if self.top < 1:
            raise InputError(f"--top {self.top}: it must be at least 1")

    def _show(
        self, console: Console, query: Path, faces: list[tuple[Path, float]]
    ) -> None:
        """Prints the faces that are nearest to an image, and draws them on request."""
        from shiftjax.apps.contact_sheet import draw_contact_sheet
        from shiftjax.apps.figures import save_plot
        from shiftjax.apps.predict import Prediction

        for file, similarity in faces:
            say(console, f"  {similarity:7.4f}  {file}")
        if not self.plot:
            return
        shown = [Prediction(str(query), ())]
        shown += [Prediction(str(file), (("cosine", x),)) for file, x in faces]
        save_plot(draw_contact_sheet(shown).save, self.plot)


def _image(path: str) -> Path:
    """Returns the path of an image file; raises if there is no file."""
    file = user_path(path)
    if not file.is_file():
        raise MissingFileError(f"there is no image {path}")
    return file
