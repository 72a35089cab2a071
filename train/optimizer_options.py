"""The options of the optimizer and of its learning rate."""

import dataclasses
from typing import Literal

from train.options import option


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Stochastic gradient descent with momentum, Adam, or Muon."""

    kind: Literal["sgd", "adam", "muon"] = "sgd"
    """SGD, Adam with its usual constants, or Muon for hidden kernels beside SGD."""
    momentum: float = option(0.9, low=0, high=1)
    """Momentum: the share of the last update that is kept (sgd, muon)."""
    nesterov: bool = False
    """Use Nesterov momentum (sgd, muon)."""
    weight_decay: float = option(5e-4, low=0)
    """L2 penalty: this times the parameters is added to the gradient."""
    decay: Literal["all", "kernels"] = "all"
    """Decay all parameters, or only the kernels (no BatchNorm, no biases, no
    displacements)."""
    clip_norm: float | None = option(None, above=0)
    """Largest norm of the gradient; a larger gradient is scaled down to it."""
    freeze: tuple[str, ...] = ()
    """Parameters that are not trained: shell wildcards of their paths, as 'stem*'."""
    freeze_statistics: bool = False
    """Keep the running statistics of BatchNorm too where the paths of freeze match."""
    muon_rate: float = option(0.5, low=0)
    """Learning rate of hidden kernels, as a multiple of the schedule's (muon)."""
    muon_decay: float = option(0.02, low=0)
    """Weight decay of hidden kernels, times their learning rate (muon)."""
    rates: dict[str, float] = dataclasses.field(default_factory=dict, hash=False)
    """Learning rates of parameters, as multiples of the schedule's, by shell wildcards
    of their paths: '*/offsets' 0.01."""
    normalize_offsets: bool = False
    """Divide the gradient of each learned displacement by its length, as Active Shift
    does."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate over the run."""

    kind: Literal["steps", "cosine", "one_cycle", "constant"] = "cosine"
    """Steps at the boundaries, half a cosine to 0, a triangle, or a constant rate."""
    learning_rate: float = option(0.1, low=0)
    """The highest learning rate."""
    warmup_epochs: float = option(0.0, low=0)
    """Epochs of a linear rise from 0 (one_cycle: up to the peak)."""
    boundaries: tuple[float, ...] = ()
    """Epochs after which the rate falls (steps)."""
    factor: float = option(0.1, low=0, high=1)
    """Factor of the rate at each boundary (steps)."""

    @property
    def is_open_ended(self) -> bool:
        """True if the number of epochs changes no learning rate."""
        return self.kind in ("constant", "steps")
