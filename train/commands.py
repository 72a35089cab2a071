"""The other commands of the trainer: one class each, whose fields are its options.

They import their dependencies when they run, so that `--help` is quick.
"""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from shiftjax.cli.arguments import Flag, Folder, Folders, Weights
from shiftjax.cli.commands import say
from shiftjax.errors import InputError, needs_extra
from train.config import Config, Hosts

if TYPE_CHECKING:
    from shiftjax.releases.manifest import Release

PROGRAM = "python -m train"


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate a run's newest checkpoint on every example of a split."""

    workdir: str
    """Folder of the run."""
    split: str = "test"
    """test, validation, train or train+validation."""
    step: int | None = None
    """Step of the checkpoint to evaluate; by default the newest."""
    devices: int | None = None
    """Number of devices to use; by default all, and the cores of a CPU as devices."""
    hosts: Hosts = dataclasses.field(default_factory=Hosts)

    def run(self, console: Console) -> None:
        """Evaluates on all hosts together, and prints one line on the first."""
        from train import comparison, files, hosts

        files.folder(self.workdir)  # raises at once for a store that cannot be used
        hosts.join(self.hosts)
        with hosts.ending_together():
            comparison.compare_options({"split": self.split, "step": self.step})
            prepare_process(self.devices)
            comparison.compare_devices()
            from train.evaluation import evaluate_run

            result = evaluate_run(
                self.workdir, self.split, step=self.step, devices=self.devices
            )
        if hosts.is_first():
            say(console, f"{_told(self.split, result)}, step {result['step']:,.0f}")


@dataclasses.dataclass(frozen=True)
class EvaluateWeights:
    """Evaluate released weights on every example of a split."""

    model: tyro.conf.Positional[Weights]
    """Name from `shiftjax list --pretrained`, or a .safetensors file."""
    split: str = "test"
    """test, validation, train or train+validation."""
    source: str | None = None
    """digits, tfds:NAME, folder:PATH, npz:PATH, tar:PATH or hf:PATH; by default the
    data set of training."""
    data_dir: Folder = None
    """Folder of the TFDS data sets; by default the one that TFDS uses."""
    directory: Folder = None
    """Folder of the weights, or hf:owner/name."""
    devices: int | None = None
    """Number of devices to use; by default all, and the cores of a CPU as devices."""

    def run(self, console: Console) -> None:
        """Evaluates, and prints one line."""
        with needs_extra("`shiftjax evaluate`", "train"):
            prepare_process(self.devices)
            from train.evaluation import evaluate_weights

            result = evaluate_weights(
                self.model,
                self.directory,
                source=self.source,
                split=self.split,
                data_dir=self.data_dir,
                devices=self.devices,
            )
        say(console, _told(self.split, result))


@dataclasses.dataclass(frozen=True)
class Compile:
    """Compile an experiment's step for TPUs that are not there; print its cost."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    topology: tuple[str, ...] = ("v5e:2x4",)
    """Slices by the kind and the layout of their chips: v5e:16x16, v5p:4x4x4, ..."""
    per_chip: int | None = None
    """Images of a step on each chip; by default the batch is split over all chips."""
    examples: int = 1_281_167
    """Number of training images."""
    classes: int = 1000
    """Number of classes."""

    def run(self, console: Console) -> None:
        """Compiles for each slice, and prints a table."""
        from train import compile as compiler
        from train.markdown import grid

        rows = []
        for topology in self.topology:
            compiler.chip_of(topology)  # raises before the first compilation
        for topology in self.topology:
            say(console, f"compiling for {topology}")
            cost = compiler.compile_step(
                self.config, topology, self.examples, self.classes, self.per_chip
            )
            rows.append([topology, *cost.cells()])
        say(console, grid(["slice", *compiler.HEADINGS], rows))


@dataclasses.dataclass(frozen=True)
class Folds:
    """Show the accuracy of face networks that were trained for other folds each."""

    workdir: Folders
    """Folders of the runs, each with other --faces.folds."""

    def run(self, console: Console) -> None:
        """Prints one line for each fold, and one for all."""
        from train.faces.folds import read_folds

        found = read_folds(self.workdir)
        for fold, accuracy in enumerate(found.accuracies, 1):
            say(console, f"fold {fold}: accuracy {100 * accuracy:.2f}%")
        say(
            console,
            f"mean {100 * found.mean:.2f}%, standard deviation "
            f"{100 * found.std:.2f}%, standard error {100 * found.standard_error:.2f}%",
        )


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Write a TFDS directory of CIFAR or ImageNet from the official files."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """cifar10, cifar100 or imagenet2012."""
    source: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH...")] = ()
    """Official archives, or the folder of the files; CIFAR is downloaded by default."""
    data_dir: Folder = None
    """Folder of the TFDS data sets; by default the one that TFDS uses."""
    verify: Flag = False
    """Compare the MD5 of ImageNet's archives too, which takes minutes."""

    def run(self, console: Console) -> None:
        """Writes the data set."""
        from train.data.prepare import prepare

        prepare(
            self.name,
            source=self.source,
            data_dir=self.data_dir,
            verify=self.verify,
            console=console,
        )


@dataclasses.dataclass(frozen=True)
class ReleaseRuns:
    """Turn finished runs, which differ only in their seeds, into released weights."""

    workdir: Folders
    """Folders of the runs; the weights of the lowest seed are released."""
    tag: str
    """Part of the name after the architecture, e.g. cifar10."""
    recipe: str = ""
    """Name of the training recipe, e.g. paper."""
    license: str = "Apache-2.0"
    """License of the weights, e.g. Apache-2.0, or other."""
    output: str = "checkpoints"
    """Folder of the releases."""

    def run(self, console: Console) -> None:
        """Releases, and prints one line."""
        prepare_process()
        from train.release import release

        output = _local(self.output)
        facts = {"recipe": self.recipe, "license_name": self.license}
        entry = release(self.workdir, self.tag, output, **facts)
        say(
            console,
            f"released {entry.name}: {_reached(entry)} of {len(entry.runs)} run(s), "
            f"{entry.size:,} bytes in {self.output}",
        )


@dataclasses.dataclass(frozen=True)
class Resume:
    """Resume a run with the configuration in its folder."""

    workdir: str
    """Folder of the run."""
    attached: Flag = False
    """Save the state and stop when standard input ends, as with the parent process."""
    hosts: Hosts = dataclasses.field(default_factory=Hosts)

    def run(self, console: Console) -> int:
        """Trains like the command that started the run, and returns the exit code."""
        from train import config

        if self.attached:
            from train.stopping import stop_with_input

            stop_with_input(lambda line: say(console, line))
        found = config.load_config(self.workdir)
        found = dataclasses.replace(found, workdir=self.workdir, hosts=self.hosts)
        return train_run(found, console)


@dataclasses.dataclass(frozen=True)
class Zoo:
    """Train the missing networks of the zoo, and release the finished ones."""

    only: str = "*"
    """Shell wildcards that a network's name must match, e.g. 'shiftresnet20*'."""
    show: Flag = False
    """Show the state of every run, and train nothing."""
    minutes: float | None = None
    """Stop after this many minutes; the same command resumes."""
    jobs: int = 1
    """Number of runs at the same time."""
    root: str = "runs/zoo"
    """Folder of the runs, which may be in Google Cloud Storage: gs://bucket/zoo."""
    output: str = "checkpoints"
    """Folder of the releases."""
    data_dir: Folder = None
    """Folder of the TFDS data sets; by default the one that TFDS uses."""

    def run(self, console: Console) -> None:
        """Trains with a line now and then, and prints a table of all runs."""
        from train import files
        from train.zoo import entries, jobs

        if self.jobs < 1:
            raise InputError(f"--jobs {self.jobs}: it must be at least 1")
        options = jobs.WorkerOptions(
            files.folder(self.root),
            _local(self.output),
            self.data_dir,
            self.minutes,
            self.jobs,
        )
        chosen = entries.select_entries(self.only)
        if not self.show:
            jobs.ZooWorker(chosen, options, console).work()
        jobs.show(jobs.look(chosen, options), console)


@dataclasses.dataclass(frozen=True)
class Results:
    """Write docs/results.md, its plot, and tables of other pages and the README."""

    directory: str = "checkpoints"
    """Folder of the releases."""
    docs: str = "docs"
    """Folder of the pages and the plot."""
    readme: str = "README.md"
    """File whose table is updated."""
    benchmarks: str = "benchmarks/results"
    """Folder of benchmarks, for images per second; these are optional."""

    def run(self, console: Console) -> None:
        """Writes the five files, and prints their names."""
        from shiftjax.image_sizes import size_text
        from shiftjax.releases import manifest
        from shiftjax.weights import open_pretrained
        from train.zoo import picture, results, speeds

        releases = manifest.read(self.directory)
        readme, docs = Path(self.readme), Path(self.docs)
        weights, networks = docs / "weights.md", docs / "zoo.md"
        for path in (readme, weights, networks):
            if not path.is_file():
                raise InputError(f"{path} is not there: run it in a checkout")
        measured = speeds.read_speeds(Path(self.benchmarks))
        sizes = {
            name: size_text(open_pretrained(name, self.directory).card.image_size)
            for name in releases
        }
        page, plot = docs / "results.md", docs / "accuracy.png"
        page.write_text(results.page(releases))
        picture.draw(releases, plot)
        for path, table in (
            (readme, results.short_table(releases)),
            (weights, results.weights_table(releases, sizes, measured)),
            (networks, results.networks_table()),
        ):
            path.write_text(results.update(path.read_text(), table))
        say(console, f"{page}, {plot}, {weights}, {networks}, {readme}")


def train_run(run: Config, console: Console) -> int:
    """Trains, prints the outcome, and returns the exit code."""
    from train import comparison, files, hosts

    files.folder(run.workdir)  # raises at once for a store that cannot be used
    hosts.join(run.hosts)
    with hosts.ending_together():
        comparison.compare(run)
        keeps_memory = prepare_process(run.devices, run.batch_size)
        comparison.compare_devices()
        from train import memory
        from train.loop import CURVES, train

        if keeps_memory and hosts.is_first():
            say(console, "the allocator keeps freed memory for the next step")
        with memory.explained():
            outcome = train(run, console)
    code = 0 if outcome.finished else run.stopped_exit_code
    if not hosts.is_first():
        return code
    if not outcome.finished:
        say(
            console,
            f"stopped after step {outcome.steps:,}, saved in {run.workdir}: resume "
            "with the same command",
        )
        return code
    say(console, _told("test", outcome.test))
    say(console, f"the run is in {run.workdir}, its curves in {run.workdir}/{CURVES}")
    say(console, f"next: {PROGRAM} evaluate --workdir {run.workdir}")
    return code


def prepare_process(devices: int | None = None, batch_size: int = 512) -> bool:
    """Applies the settings that must precede the first array.

    Args:
      devices: the number of devices of a CPU; by default it follows from the batch.
      batch_size: the number of images in a step.

    Returns:
      True if the allocator now keeps freed memory.
    """
    import jax

    from shiftjax.allocator import keep_freed_memory
    from train.parallel import split_cpu

    cache = os.environ.get("SHIFTJAX_CACHE", "~/.cache/shiftjax")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(cache).expanduser() / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    split_cpu(batch_size, devices)
    return keep_freed_memory()


def _local(output: str) -> Path:
    """Returns the path of a folder of releases; raises if it is in a store."""
    from train import files

    if files.in_store(output):
        raise InputError(f"--output {output}: releases are written to a local folder")
    return Path(output)


def _reached(release: "Release") -> str:
    """Formats the test's accuracy of a release with its spread, or else its loss."""
    from train.logging import metric_names

    known = [name for name in ("top1", "accuracy") if name in release.runs[0].test]
    if not known:
        return f"test loss {release.mean('loss'):.4g}"
    metric, spread = known[0], release.spread(known[0])
    after = f" +- {100 * spread:.2f}" if spread is not None else ""
    title = metric_names.title(metric)
    return f"test {title} {100 * release.mean(metric):.2f}%{after}"


def _told(split: str, result: dict[str, float]) -> str:
    """Formats the metrics of an evaluation, percentages first."""
    from train.logging import metric_names

    shares = [
        f"{metric_names.title(name)} {100 * result[name]:.2f}%"
        for name in metric_names.SHARES
        if name in result
    ]
    names = [
        name
        for name in metric_names.displayed(result)
        if name not in metric_names.SHARES
    ]
    others = [f"{metric_names.title(name)} {result[name]:.4f}" for name in names]
    examples = f"{result['examples']:,.0f} examples"
    return f"{split} {'  '.join([*shares, *others, examples])}"
