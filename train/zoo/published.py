"""What the paper reports, to stand beside our results.

Test top-1 in percent, of one run each, at its best epoch on the test set: the paper's
tables, and the authors' own later runs of the shift networks
(https://github.com/alvinwan/shiftresnet-cifar).
"""

import dataclasses
from collections.abc import Mapping

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


# Parameters and multiply-adds with 10 classes; test_results.py counts them.
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
_HEAD = {"cifar10": (0, 0), "cifar100": (90 * 65, 90 * 64)}  # what 90 more classes add


@dataclasses.dataclass(frozen=True)
class Published:
    """Figures of one network on one data set.

    Attributes:
      params: number of parameters.
      macs: multiply-adds for one image.
      paper: test top-1 in the paper.
      later: test top-1 in the authors' later run; None if there is none.
    """

    params: int
    macs: int
    paper: float
    later: float | None = None


def _published(
    name: str, dataset: str, paper: float, later: float | None = None
) -> Published:
    """Adds what a network costs with the classes of a data set."""
    params, macs = (a + b for a, b in zip(_COSTS[name], _HEAD[dataset], strict=True))
    return Published(params, macs, paper, later)


PUBLISHED: Mapping[tuple[str, str], Published] = {
    **{
        (name, dataset): _published(
            name, dataset, figures[i], _LATER[dataset, depth][i]
        )
        for (dataset, depth), figures in _PAPER.items()
        for i, e in enumerate(_EXPANSIONS)
        for name in [f"shiftresnet{depth}_e{e}"]
    },
    **{
        (name, dataset): _published(name, dataset, top1)
        for (dataset, depth), top1 in _PLAIN.items()
        for name in [f"resnet{depth}"]
    },
}
