"""Our results and the published ones: a page, and tables for other pages."""

import re
from collections.abc import Iterable, Mapping, Sequence

from shiftjax import summarize
from shiftjax.image_sizes import size_text
from shiftjax.registry import VARIANTS
from shiftjax.releases.manifest import Release
from train.markdown import grid
from train.zoo.published import PUBLIC_URL, PUBLIC_ZOO, TITLES, find_published
from train.zoo.speeds import Speeds

MARKED = re.compile(r"(<!-- results: .*? -->\n).*?(<!-- end of results -->)", re.DOTALL)
INTRODUCTION = """# Results

The tables have the test top-1 of the released weights in percent, after the last epoch.
A run reads the test set once, and nothing is chosen on it. Networks with several runs
have the mean and the standard deviation over the seeds, with the number of runs in
brackets. The weights are those of the lowest seed. `NAME.cifar10` names the weights to
use. A tag that ends in `_paper` stands for the paper's recipe. The columns "paper" and
"authors' later run" have the published accuracies, each of one run at its best epoch on
the test set. [Pretrained weights](weights.md) has the sizes and speeds.

![Test top-1 against parameters and multiply-adds](accuracy.png)

Filled markers are networks of shiftjax, with the standard deviation over the seeds.
Hollow markers are the paper's results, without the reduced ResNet-110 on CIFAR-10, in
which its authors found an error. Lines join the networks of shiftjax with the same
depth. Black markers are networks of a public zoo,
[chenyaofo/pytorch-cifar-models](https://github.com/chenyaofo/pytorch-cifar-models).

`python -m train results` writes this page from `checkpoints/manifest.json`."""
WORDS = ("weights", "recipe", "hardware", "command", "log")
# Titles of the families, in the order of the tables; other families follow.
FAMILIES = {
    "shiftresnet": "ShiftResNet",
    "resnet": "ResNet",
    "depthwise_resnet": "depthwise ResNet",
}
HOURS = (
    "The hours are wall-clock time. They include the time in which a run was suspended "
    "or shared its cores. The log has the images per second of each line."
)


def dataset(release: Release) -> str:
    """Returns the data set of a release, e.g. "cifar10"."""
    return release.dataset.partition(":")[2] or release.dataset


def family(architecture: str) -> str:
    """Returns the name without its size.

    Example:
      >>> family("shiftresnet20_e3")
      'shiftresnet'
    """
    return re.split(r"\d", architecture, maxsplit=1)[0]


def depth(architecture: str) -> int:
    """Returns the number of layers in a name; 0 if there is none.

    Example:
      >>> depth("shiftresnet20_e3")
      20
    """
    found = re.search(r"\d+", architecture)
    return int(found[0]) if found else 0


def accuracy(release: Release) -> str:
    """Returns the mean and the spread of the test accuracy in percent.

    It is the top-1 of a classifier, the accuracy of verification of a face network, and
    empty for other networks.

    Example:
      >>> from shiftjax.releases.manifest import Run
      >>> runs = (Run(0, {"top1": 0.9}), Run(1, {"top1": 0.91}))
      >>> accuracy(Release("a.b", "f", 1, "", 1, 1, "d", "", runs))
      '90.50 ± 0.71'
    """
    known = (name for name in ("top1", "accuracy") if name in release.runs[0].test)
    metric = next(known, None)
    if metric is None:
        return ""
    spread = release.spread(metric)
    after = "" if spread is None else f" ± {100 * spread:.2f}"
    return f"{100 * release.mean(metric):.2f}{after}"


def short_table(releases: Mapping[str, Release]) -> str:
    """Returns the README's table, with one line per release."""
    heading = ["weights", "parameters", "multiply-adds", "test top-1", "runs"]
    heading += ["recipe", "paper"]
    rows = []
    for release in _sorted(releases):
        published = find_published(release.name, release.recipe)
        rows.append(
            [
                f"`{release.name}`",
                f"{release.params:,}",
                f"{release.macs / 1e6:.1f} M",
                accuracy(release),
                str(len(release.runs)),
                release.recipe,
                f"{published.paper:.2f}" if published else "",
            ]
        )
    return grid(heading, rows, WORDS)


def weights_table(
    releases: Mapping[str, Release],
    image_sizes: Mapping[str, str],
    speeds: Speeds | None = None,
) -> str:
    """Returns the table of docs/weights.md, with one line per release of any task.

    Args:
      releases: the releases by name.
      image_sizes: height and width of the images, by the name of the release.
      speeds: images per second, if they were measured.
    """
    heading = ["weights", "parameters", "multiply-adds", "test accuracy"]
    heading += ["image size", "file, MB", "images/s"]
    classifiers = _sorted(releases)
    others = [release for release in releases.values() if release not in classifiers]
    rows = []
    for release in (*classifiers, *others):
        speed = speeds.find(release) if speeds else None
        rows.append(
            [
                f"`{release.name}`",
                f"{release.params:,}",
                f"{release.macs / 1e6:.1f} M",
                accuracy(release),
                image_sizes[release.name],
                f"{release.size / 1e6:.2f}",
                f"{speed:,.0f}" if speed else "",
            ]
        )
    table = grid(heading, rows, WORDS)
    return f"{table}\n\nImages per second: {speeds.where}." if speeds else table


def networks_table() -> str:
    """Returns the table of docs/zoo.md, with one line per network of the registry."""
    rows = []
    for name in VARIANTS:
        costs = summarize(name)
        size = size_text(costs.image[:2])
        macs = f"{costs.macs / 1e6:,.1f} M"
        rows.append([f"`{name}`", f"{costs.params:,}", macs, size])
    return grid(["network", "parameters", "multiply-adds", "image size"], rows)


def page(releases: Mapping[str, Release]) -> str:
    """Returns docs/results.md, with the releases of classifiers."""
    lines = [INTRODUCTION]
    names = dict.fromkeys(dataset(release) for release in _sorted(releases))
    for name in names:
        some = [r for r in _sorted(releases) if dataset(r) == name]
        lines += ["", f"## {TITLES.get(name, name)}", "", _accuracies(some)]
        lines += _against_resnets(some)
        lines += ["", _public(name)] if name in TITLES else []
    lines += ["", "## How they were trained", "", _origins(_sorted(releases))]
    return "\n".join(lines) + "\n"


def update(page: str, table: str) -> str:
    """Returns a page of Markdown with a new table between its markers."""
    return MARKED.sub(lambda m: f"{m[1]}\n{table}\n\n{m[2]}", page)


def _accuracies(releases: Sequence[Release]) -> str:
    """Returns the table of one data set."""
    heading = ["weights", "parameters", "multiply-adds", "test top-1", "recipe"]
    heading += ["epochs", "paper", "authors' later run"]
    rows = []
    for release in releases:
        published = find_published(release.name, release.recipe)
        later = published.later if published else None
        rows.append(
            [
                f"`{release.name}`",
                f"{release.params:,}",
                f"{release.macs / 1e6:.2f} M",
                f"{accuracy(release)} ({len(release.runs)})",
                release.recipe,
                f"{release.runs[0].epochs:g}",
                f"{published.paper:.2f}" if published else "",
                "" if later is None else f"{later:.2f}",
            ]
        )
    return grid(heading, rows, WORDS)


def _against_resnets(releases: Sequence[Release]) -> list[str]:
    """Returns the costs and accuracies of shift networks relative to ResNets'.

    Args:
      releases: the releases of one data set.

    Returns:
      The lines of a table for each ResNet and the shift networks of its depth.
    """
    lines = []
    for plain in releases:
        others = [
            release
            for release in releases
            if family(release.architecture) == "shiftresnet"
            and depth(release.architecture) == depth(plain.architecture)
        ]
        if family(plain.architecture) != "resnet" or not others:
            continue
        rows = [
            [
                f"`{other.name}`",
                f"{other.params / plain.params:.2f}",
                f"{other.macs / plain.macs:.2f}",
                f"{100 * (other.mean() - plain.mean()):+.2f}",
            ]
            for other in others
        ]
        heading = ["weights", "parameters", "multiply-adds", "top-1, points"]
        lines += ["", f"Relative to `{plain.name}`:", "", grid(heading, rows, WORDS)]
    return lines


def _public(name: str) -> str:
    """Returns the public zoo's table of one data set."""
    heading = ["network", "parameters", "multiply-adds", "top-1"]
    rows = [
        [
            public.name,
            f"{public.params / 1e6:.2f} M",
            f"{public.macs / 1e6:.2f} M",
            f"{public.top1[name]:.2f}",
        ]
        for public in PUBLIC_ZOO
    ]
    return f"Networks of the [public zoo]({PUBLIC_URL}):\n\n{grid(heading, rows)}"


def _origins(releases: Iterable[Release]) -> str:
    """Returns the table of all runs: commands, hardware, hours and logs."""
    heading = ["weights", "seed", "test top-1", "hours", "hardware", "command", "log"]
    rows = [
        [
            f"`{release.name}`",
            str(run.seed),
            f"{100 * run.test['top1']:.2f}",
            f"{run.hours:.2f}",
            run.hardware,
            f"`{run.command}`",
            f"[log](../checkpoints/{run.log})",
        ]
        for release in releases
        for run in release.runs
    ]
    return f"{HOURS}\n\n{grid(heading, rows, WORDS)}"


def _sorted(releases: Mapping[str, Release]) -> list[Release]:
    """Sorts the classifiers by data set, family and size."""

    def place(release: Release) -> tuple[str, int, str, int, str]:
        kind = family(release.architecture)
        rank = [*FAMILIES, kind].index(kind)
        return release.dataset, rank, kind, release.params, release.name

    return sorted((r for r in releases.values() if "top1" in r.runs[0].test), key=place)
