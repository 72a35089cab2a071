"""The list of the zoo: which networks are trained on what, how, and with which seeds.

Everything that a release needs follows from an `Entry`: its name, the configuration of
each run, and the folder that the run is kept in.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shiftjax.errors import unknown_name
from train import experiments
from train.config import Config, Optimizer, Schedule

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
    """

    model: str
    dataset: str
    recipe: str = "paper"
    seeds: tuple[int, ...] = (0,)

    @property
    def tag(self) -> str:
        """What follows the architecture in the release's name."""
        return self.dataset + ("" if self.recipe == "paper" else f"_{self.recipe}")

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
        model = dataclasses.replace(base.model, name=self.model)
        return dataclasses.replace(
            RECIPES[self.recipe](base),
            model=model,
            seed=seed,
            workdir=str(self.workdir(seed, root)),
        )

    def workdir(self, seed: int, root: Path) -> Path:
        """Returns the folder of the run of a seed."""
        return root / self.name / f"seed{seed}"


def _family(names: Sequence[str], seeds: tuple[int, ...]) -> list[Entry]:
    """The networks of one depth on both data sets."""
    return [Entry(n, d, "paper", seeds) for n in names for d in DATASETS]


ENTRIES: tuple[Entry, ...] = tuple(
    entry
    for depth, seeds in ((20, (0, 1, 2)), (56, (0,)), (110, (0,)))
    for entry in _family(
        [
            *(f"shiftresnet{depth}_e{e}" for e in (1, 3, 6, 9)),
            f"resnet{depth}",
            f"depthwise_resnet{depth}",
        ],
        seeds,
    )
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
