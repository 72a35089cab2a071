"""Published results for comparison: the paper's, and a public zoo's.

Test top-1 is in percent, of one run each, at its best epoch on the test set. It comes
from the paper's tables, and from the authors' later runs of the shift networks
(https://github.com/alvinwan/shiftresnet-cifar). The results of the best-known public
zoo for CIFAR (https://github.com/chenyaofo/pytorch-cifar-models) are its README's.
"""

import dataclasses
from collections.abc import Mapping

TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}

_EXPANSIONS = (1, 3, 6, 9)
_PAPER = {
    ("cifar10", 20): (86.66, 90.08, 90.59, 91.69),
    ("cifar10", 56): (89.71, 92.11, 92.69, 92.74),
    ("cifar10", 110): (90.34, 91.98, 93.17, 92.79),
    ("cifar100", 20): (55.62, 62.32, 68.64, 69.82),
    ("cifar100", 56): (65.21, 69.77, 72.13, 73.64),
    ("cifar100", 110): (67.84, 71.83, 72.56, 74.10),
}
_LATER = {
    ("cifar10", 20): (85.78, 89.56, 91.07, 91.79),
    ("cifar10", 56): (89.69, 92.48, 93.49, 93.17),
    ("cifar10", 110): (90.67, 92.42, 93.03, 93.36),
    ("cifar100", 20): (55.05, 65.83, 69.73, 70.77),
    ("cifar100", 56): (63.20, 69.77, 72.33, 73.43),
    ("cifar100", 110): (68.01, 72.10, 73.17, 73.71),
}
_PLAIN = {
    ("cifar10", 20): 91.35,
    ("cifar10", 56): 92.01,
    ("cifar10", 110): 92.46,
    ("cifar100", 20): 66.25,
    ("cifar100", 56): 69.27,
    ("cifar100", 110): 72.11,
}


# ResNets reduced to the sizes of the shift networks with E = 1, 3, 6: for CIFAR-10 in
# the width within the blocks, for CIFAR-100 in all widths. We chose the reductions that
# give the nearest size. According to the paper's authors, the 76.82, 74.30 and 79.02 of
# 110 layers on CIFAR-10 are due to a fault.
_BLOCK = {
    20: {8.1: 85.84, 2.8: 88.33, 1.4: 90.09},
    56: {8.1: 87.46, 2.8: 89.40, 1.4: 89.89},
    110: {8.1: 76.82, 2.8: 74.30, 1.4: 79.02},
}
_NET = {
    20: {6.6: 49.58, 2.6: 58.16, 1.4: 63.22},
    56: {7.2: 56.62, 2.7: 64.49, 1.5: 67.45},
    110: {7.8: 60.44, 2.7: 66.61, 1.5: 68.87},
}
# Reductions of each depth by data set: the reduced width, and the factors.
REDUCTIONS = {
    (dataset, depth): (option, tuple(accuracies))
    for dataset, option, table in (
        ("cifar10", "block_reduction", _BLOCK),
        ("cifar100", "net_reduction", _NET),
    )
    for depth, accuracies in table.items()
}
# Parameters and multiply-adds with 10 classes, as counted by the tests.
_COSTS = {
    "resnet20": (272_474, 40_813_184),
    "resnet56": (855_770, 125_747_840),
    "resnet110": (1_730_714, 253_149_824),
    "shiftresnet20_e1": (34_906, 5_948_032),
    "shiftresnet20_e3": (95_642, 16_433_792),
    "shiftresnet20_e6": (186_746, 32_162_432),
    "shiftresnet20_e9": (277_850, 47_891_072),
    "shiftresnet56_e1": (102_106, 15_385_216),
    "shiftresnet56_e3": (294_554, 44_745_344),
    "shiftresnet56_e6": (583_226, 88_785_536),
    "shiftresnet56_e9": (871_898, 132_825_728),
    "shiftresnet110_e1": (202_906, 29_540_992),
    "shiftresnet110_e3": (592_922, 87_212_672),
    "shiftresnet110_e6": (1_177_946, 173_720_192),
    "shiftresnet110_e9": (1_762_970, 260_227_712),
}
_HEAD = {
    "cifar10": (0, 0),
    "cifar100": (90 * 65, 90 * 64),
}  # the cost of 90 more classes
_REDUCED_COSTS = {
    ("cifar10", 20, 1.4): (191_918, 28_482_176),
    ("cifar10", 20, 2.8): (96_206, 14_049_920),
    ("cifar10", 20, 8.1): (32_396, 4_225_664),
    ("cifar10", 56, 1.4): (600_278, 87_317_120),
    ("cifar10", 56, 2.8): (296_726, 42_361_472),
    ("cifar10", 56, 8.1): (94_352, 11_745_920),
    ("cifar10", 110, 1.4): (1_212_818, 175_569_536),
    ("cifar10", 110, 2.8): (597_506, 84_828_800),
    ("cifar10", 110, 8.1): (187_286, 23_026_304),
    ("cifar100", 20, 1.4): (198_408, 28_337_688),
    ("cifar100", 20, 2.6): (103_365, 14_182_908),
    ("cifar100", 20, 6.6): (41_194, 5_845_344),
    ("cifar100", 56, 1.5): (570_527, 83_085_392),
    ("cifar100", 56, 2.7): (304_868, 42_868_696),
    ("cifar100", 56, 7.2): (110_597, 14_509_756),
    ("cifar100", 110, 1.5): (1_148_741, 167_190_608),
    ("cifar100", 110, 2.7): (612_776, 86_248_408),
    ("cifar100", 110, 7.8): (206_892, 28_245_400),
}


@dataclasses.dataclass(frozen=True)
class Published:
    """The published results of one network on one data set.

    Attributes:
      dataset: "cifar10" or "cifar100".
      params: the number of parameters.
      macs: the multiply-adds for one image.
      paper: the test top-1 in the paper, in percent.
      later: the test top-1 in the authors' later run; None if there is none.
    """

    dataset: str
    params: int
    macs: int
    paper: float
    later: float | None = None


def reduction_name(option: str, reduction: float) -> str:
    """Returns the name of a reduction, for the tag of a release.

    Example:
      >>> reduction_name("block_reduction", 2.8)
      'block2_8'
    """
    return f"{option.partition('_')[0]}{reduction}".replace(".", "_")


def _published(
    name: str, dataset: str, paper: float, later: float | None = None
) -> Published:
    """Adds the costs of a network with the classes of a data set."""
    params, macs = (a + b for a, b in zip(_COSTS[name], _HEAD[dataset], strict=True))
    return Published(dataset, params, macs, paper, later)


# By the name of the release, without its recipe.
PUBLISHED: Mapping[str, Published] = {
    **{
        f"{name}.{dataset}": _published(name, dataset, paper, later)
        for (dataset, depth), accuracies in _PAPER.items()
        for e, paper, later in zip(
            _EXPANSIONS, accuracies, _LATER[dataset, depth], strict=True
        )
        for name in [f"shiftresnet{depth}_e{e}"]
    },
    **{
        f"{name}.{dataset}": _published(name, dataset, top1)
        for (dataset, depth), top1 in _PLAIN.items()
        for name in [f"resnet{depth}"]
    },
    **{
        f"resnet{depth}.{dataset}_{reduction_name(option, r)}": Published(
            dataset,
            *_REDUCED_COSTS[dataset, depth, r],
            (_BLOCK if dataset == "cifar10" else _NET)[depth][r],
        )
        for (dataset, depth), (option, reductions) in REDUCTIONS.items()
        for r in reductions
    },
}


# Results that are due to a fault, according to the paper's authors.
DOUBTFUL = frozenset(
    f"resnet110.cifar10_{reduction_name('block_reduction', r)}" for r in _BLOCK[110]
)


@dataclasses.dataclass(frozen=True)
class Public:
    """A network of the public zoo.

    Attributes:
      name: the name in its README.
      params: the number of parameters, with 10 classes.
      macs: the multiply-adds for one image, with 10 classes.
      top1: the test top-1 in percent, by data set.
    """

    name: str
    params: float
    macs: float
    top1: Mapping[str, float]


PUBLIC_URL = "https://github.com/chenyaofo/pytorch-cifar-models"
PUBLIC_ZOO = tuple(
    Public(name, params * 1e6, macs * 1e6, {"cifar10": ten, "cifar100": hundred})
    for name, params, macs, ten, hundred in (
        ("ResNet-20", 0.27, 40.81, 92.60, 68.83),
        ("ResNet-56", 0.86, 125.75, 94.37, 72.63),
        ("ShuffleNetV2 x0.5", 0.35, 10.90, 90.13, 67.82),
        ("MobileNetV2 x0.5", 0.70, 27.97, 92.88, 70.88),
    )
)


def find_published(name: str, recipe: str) -> Published | None:
    """Returns the published results of a release's network, if there are any.

    Args:
      name: the name of the release.
      recipe: the training recipe; the name may end in it.
    """
    return PUBLISHED.get(name.removesuffix(f"_{recipe}"))
