"""The list of the zoo: which networks are trained on what, how, and with which seeds.

Everything that a release needs follows from an `Entry`: its name, the configuration of
each run, and the folder that the run is kept in.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from shiftjax.errors import unknown_name
from train import experiments
from train.config import Config, Optimizer, Schedule
from train.zoo.published import REDUCTIONS, reduced

PAPER_EPOCHS, PAPER_BOUNDARIES = 160, (82.0, 124.0)


def paper(config: Config) -> Config:
    """The paper's schedule: 160 epochs, the last of which counts.

    Plain SGD with momentum, weight decay on every parameter, random crop and flip, all
    50,000 pictures; nothing is chosen on the test set.
    """
    return dataclasses.replace(
        config,
        epochs=PAPER_EPOCHS,
        optimizer=Optimizer(),
        schedule=Schedule(kind="steps", boundaries=PAPER_BOUNDARIES),
    )


RECIPES: Mapping[str, Callable[[Config], Config]] = {"paper": paper}
DATASETS = ("cifar10", "cifar100")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Attributes:
      model: an architecture of `shiftjax.list_models()`.
      dataset: an experiment, whose data are taken.
      recipe: of `RECIPES`.
      seeds: one run each.
      overrides: attributes of the network to set.
      variant: what names these, in the tag.
    """

    model: str
    dataset: str
    recipe: str = "paper"
    seeds: tuple[int, ...] = (0,)
    overrides: Mapping[str, float] = dataclasses.field(default_factory=dict)
    variant: str = ""

    @property
    def tag(self) -> str:
        """What follows the architecture in the release's name."""
        recipe = "" if self.recipe == "paper" else self.recipe
        return "_".join(filter(None, (self.dataset, self.variant, recipe)))

    @property
    def name(self) -> str:
        """The release's name.

        Example:
          >>> Entry("shiftresnet20_e3", "cifar10").name
          'shiftresnet20_e3.cifar10'
        """
        return f"{self.model}.{self.tag}"

    def config(self, seed: int, root: Path) -> Config:
        """Returns the configuration of the run of a seed, kept within a folder."""
        base = experiments.load(self.dataset)
        model = dataclasses.replace(
            base.model, name=self.model, overrides=dict(self.overrides)
        )
        return dataclasses.replace(
            RECIPES[self.recipe](base),
            model=model,
            seed=seed,
            workdir=str(self.workdir(seed, root)),
        )

    def workdir(self, seed: int, root: Path) -> Path:
        """Returns the folder of the run of a seed."""
        return root / self.name / f"seed{seed}"


def _family(depth: int, seeds: tuple[int, ...]) -> Iterator[Entry]:
    """The networks of one depth: with shifts, plain and depthwise, and reduced."""
    names = [f"shiftresnet{depth}_e{e}" for e in (1, 3, 6, 9)]
    for name in (*names, f"resnet{depth}", f"depthwise_resnet{depth}"):
        for dataset in DATASETS:
            yield Entry(name, dataset, seeds=seeds)
    for dataset in DATASETS:
        option, reductions = REDUCTIONS[dataset, depth]
        for r in reductions:
            variant = reduced(option, r)
            options = {option: r}
            yield Entry(
                f"resnet{depth}",
                dataset,
                seeds=seeds,
                overrides=options,
                variant=variant,
            )


ENTRIES: tuple[Entry, ...] = tuple(
    entry
    for depth, seeds in ((20, (0, 1, 2)), (56, (0,)), (110, (0,)))
    for entry in _family(depth, seeds)
)


def select(pattern: str) -> list[Entry]:
    """Returns the entries whose name matches a pattern of shell wildcards.

    Raises:
      UnknownNameError: if none does; the nearest are named.
    """
    chosen = [e for e in ENTRIES if fnmatch.fnmatchcase(e.name, pattern)]
    if not chosen:
        raise unknown_name("entry of the zoo", pattern, [e.name for e in ENTRIES])
    return chosen
