"""The result of runs that are each trained for other folds of the pairs."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from shiftjax.errors import InputError
from train import config as config_file
from train.config import Config
from train.faces.pairs import fold_metric
from train.logging.records import read_test


@dataclasses.dataclass(frozen=True)
class FoldResults:
    """The accuracies of all folds, each of the run that was trained for it.

    Attributes:
      accuracies: accuracy of each fold, in the order of the folds.
    """

    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the folds."""
        return float(np.mean(self.accuracies))

    @property
    def std(self) -> float:
        """Standard deviation over the folds, of a sample (`ddof=1`)."""
        return float(np.std(self.accuracies, ddof=1))

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, which LFW's results report."""
        return self.std / len(self.accuracies) ** 0.5


def read_folds(workdirs: Sequence[str]) -> FoldResults:
    """Reads the results of finished runs, which together have tested each fold once.

    Args:
      workdirs: the folders of the runs, in any order.

    Returns:
      The accuracy of each fold, at the threshold of its run.

    Raises:
      InputError: if a run is not finished, the runs differ in more than folds and seed,
        or their folds are not 1, 2, 3, ..., each once.
    """
    configs = [config_file.load_config(workdir) for workdir in workdirs]
    folds = [fold for config in configs for fold in config.faces.folds]
    if len(folds) < 2 or sorted(folds) != list(range(1, len(folds) + 1)):
        raise InputError(
            f"the runs test the folds {folds}: they must be 1, 2, 3, ..., each once"
        )
    first = _without_folds(configs[0])
    for workdir, config in zip(workdirs, configs, strict=True):
        if changed := config_file.differences(first, _without_folds(config)):
            raise InputError(
                f"{workdir} differs from {workdirs[0]} in more than the folds and the "
                f"seed: {changed[0]}"
            )
    found: dict[int, float] = {}
    for workdir, config in zip(workdirs, configs, strict=True):
        found |= _accuracies(workdir, config.faces.folds)
    return FoldResults(tuple(found[fold] for fold in sorted(found)))


def _without_folds(config: Config) -> Config:
    """Returns a configuration without folds, and with seed 0."""
    faces = dataclasses.replace(config.faces, folds=())
    return dataclasses.replace(config, faces=faces, seed=0)


def _accuracies(workdir: str, folds: Sequence[int]) -> dict[int, float]:
    """Returns the accuracy of each fold that a run tests."""
    test = read_test(workdir)
    if test is None:
        raise InputError(
            f"{workdir} is not finished: continue it with `python -m train resume "
            f"--workdir {workdir}`"
        )
    if len(folds) == 1:
        return {folds[0]: test["accuracy"]}
    if missing := [fold for fold in folds if fold_metric(fold) not in test]:
        raise InputError(
            f"{workdir}: its log has no {fold_metric(missing[0])}: an earlier version "
            "wrote the mean of all folds alone"
        )
    return {fold: test[fold_metric(fold)] for fold in folds}
