"""The experiments, one file each: a `CONFIG`, and its expected time and accuracy."""

import importlib
import pkgutil
import shlex
from types import ModuleType

from shiftjax.errors import unknown_name
from train.config import FREE, Config, concerns, flatten


def names() -> list[str]:
    """Returns the names of all experiments, sorted.

    Example:
      >>> "digits" in names()
      True
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


def command(config: Config) -> str:
    """Returns the command line, quoted for a shell, that gives the same results.

    It names the experiment that needs the fewest options; of several, the one with the
    run's folder.

    Example:
      >>> import dataclasses
      >>> command(dataclasses.replace(load("digits"), seed=3))
      'python -m train digits --seed 3'
    """
    candidates = []
    for name in names():
        base = load(name)
        words = [name, *_options(base, config)]
        candidates.append((len(words), base.workdir != config.workdir, words))
    *_, words = min(candidates)
    return shlex.join(["python", "-m", "train", *words])


def _options(base: Config, config: Config) -> list[str]:
    """Returns the options that turn a configuration into one of the same results."""
    before, after = flatten(base), flatten(config)
    words: list[str] = []
    for name, value in after.items():
        if name in FREE or value == before[name] or not concerns(name, config.task):
            continue
        group, _, field = name.rpartition(".")
        prefix = f"{group}." if group else ""
        flag = field.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{prefix}{'' if value else 'no-'}{flag}")
            continue
        if isinstance(value, dict):
            value = [part for item in value.items() for part in item]
        many = value if isinstance(value, list | tuple) else [value]
        words += [f"--{prefix}{flag}", *map(str, many)]
    return words


def _module(name: str) -> ModuleType:
    if name not in names():
        raise unknown_name("experiment", name, names())
    return importlib.import_module(f"{__name__}.{name}")
