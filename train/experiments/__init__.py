"""The experiments, one file each: its `CONFIG`, and what to expect of it."""

import importlib
import pkgutil
from types import ModuleType

from shiftjax.errors import unknown_name
from train.config import Config


def names() -> list[str]:
    """Returns the names of all experiments, sorted.

    Example:
      >>> names()
      ['cifar10', 'cifar100', 'digits']
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Config:
    """Returns an experiment's configuration.

    Raises:
      UnknownNameError: if there is no such experiment.
    """
    return _module(name).CONFIG


def describe(name: str) -> str:
    """Returns an experiment's docstring: command, time and accuracy."""
    return _module(name).__doc__ or ""


def _module(name: str) -> ModuleType:
    if name not in names():
        raise unknown_name("experiment", name, names())
    return importlib.import_module(f"{__name__}.{name}")
