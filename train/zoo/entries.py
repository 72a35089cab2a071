"""The list of the zoo: its networks with their data sets, recipes and seeds.

An `Entry` determines everything that a release needs: its name, and the configuration
and the folder of each run.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from shiftjax.errors import unknown_name
from train import experiments, files
from train.config import Augment, Config, Optimizer, Schedule
from train.zoo.published import REDUCTIONS, reduction_name

Root = files.Folder | Path  # a local folder, or one in a store
PAPER_EPOCHS, PAPER_BOUNDARIES = 160, (82.0, 124.0)


def fast(config: Config) -> Config:
    """Returns the experiment's own recipe; see `train/experiments/cifar10.py`."""
    return config


def paper(config: Config) -> Config:
    """Returns the paper's recipe: 160 epochs, evaluated after the last one.

    It is SGD with momentum, weight decay on every parameter, random crop and flip, on
    all 50,000 images; nothing is chosen on the test set.
    """
    return dataclasses.replace(
        config,
        epochs=PAPER_EPOCHS,
        batch_size=128,
        augment=Augment(crop_padding=4),
        optimizer=Optimizer(),
        schedule=Schedule(kind="steps", boundaries=PAPER_BOUNDARIES),
    )


RECIPES: Mapping[str, Callable[[Config], Config]] = {"fast": fast, "paper": paper}
DATASETS = ("cifar10", "cifar100")
SEEDS = (0, 1, 2)  # of the networks whose spread is reported


@dataclasses.dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Attributes:
      model: an architecture of `shiftjax.list_models()`.
      dataset: the experiment whose data set is used.
      recipe: a name in `RECIPES`; the default, `fast`, is not part of the tag.
      seeds: the seeds, one for each run.
      overrides: attributes of the network to set.
      variant: the name of these attributes in the tag.
    """

    model: str
    dataset: str
    recipe: str = "fast"
    seeds: tuple[int, ...] = (0,)
    overrides: Mapping[str, float] = dataclasses.field(default_factory=dict)
    variant: str = ""

    @property
    def tag(self) -> str:
        """The part of the release's name after the architecture."""
        recipe = "" if self.recipe == "fast" else self.recipe
        return "_".join(filter(None, (self.dataset, self.variant, recipe)))

    @property
    def name(self) -> str:
        """The release's name.

        Example:
          >>> Entry("shiftresnet20_e3", "cifar10").name
          'shiftresnet20_e3.cifar10'
        """
        return f"{self.model}.{self.tag}"

    def config(self, seed: int, root: Root) -> Config:
        """Returns the configuration of a seed's run, in a folder below `root`."""
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

    def workdir(self, seed: int, root: Root) -> Root:
        """Returns the folder of a seed's run."""
        return root / self.name / f"seed{seed}"


def _shift(
    depth: int, *expansions: int, seeds: tuple[int, ...] = (0,)
) -> Iterator[Entry]:
    """Lists the shift networks of one depth on both data sets."""
    for expansion in expansions:
        for dataset in DATASETS:
            yield Entry(f"shiftresnet{depth}_e{expansion}", dataset, seeds=seeds)


def _plain(depth: int) -> Iterator[Entry]:
    """Lists the ResNets of one depth, also reduced to the shift networks' sizes."""
    for dataset in DATASETS:
        yield Entry(f"resnet{depth}", dataset)
    for dataset in DATASETS:
        option, reductions = REDUCTIONS[dataset, depth]
        for r in reductions:
            variant = reduction_name(option, r)
            yield Entry(
                f"resnet{depth}", dataset, overrides={option: r}, variant=variant
            )


def _depthwise(depth: int) -> Iterator[Entry]:
    """Lists the depthwise network of one depth on both data sets."""
    for dataset in DATASETS:
        yield Entry(f"depthwise_resnet{depth}", dataset)


ENTRIES: tuple[Entry, ...] = (  # in the order of training
    *_shift(20, 1, 3, 6, 9, seeds=SEEDS),
    *_plain(20),
    Entry("shiftresnet20_e1", "cifar10", "paper", seeds=SEEDS),
    *(Entry("shiftresnet20_e3", dataset, "paper") for dataset in DATASETS),
    *_shift(56, 1, 3, 6, 9),
    *_shift(110, 1, 3, 6, 9),
    *(entry for depth in (56, 110) for entry in _plain(depth)),
    *(entry for depth in (20, 56, 110) for entry in _depthwise(depth)),
)


def select_entries(pattern: str) -> list[Entry]:
    """Returns the entries whose name matches a pattern of shell wildcards.

    Raises:
      UnknownNameError: if none does, with the nearest names.
    """
    chosen = [e for e in ENTRIES if fnmatch.fnmatchcase(e.name, pattern)]
    if not chosen:
        raise unknown_name("entry of the zoo", pattern, [e.name for e in ENTRIES])
    return chosen
