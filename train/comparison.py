"""Comparison of the hosts of a run, before their first step.

They exchange their values, and stop together if one has others than the first.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax

from shiftjax.errors import InputError
from train import config as config_file
from train import coordination
from train.config import Config


def compare(config: Config) -> None:
    """Checks that all processes have the same options, but for those of each host.

    Raises:
      InputError: on every process, if one has others.
    """

    def differences(first: dict[str, Any], other: dict[str, Any]) -> list[str]:
        both = config_file.from_dict(first), config_file.from_dict(other)
        return config_file.differences(*both, config_file.PER_HOST)

    _compare(dataclasses.asdict(config), differences)


def compare_options(options: Mapping[str, Any]) -> None:
    """Checks that all processes have the same options of a command beside training.

    Args:
      options: values that JSON can hold, by the names of their flags.

    Raises:
      InputError: on every process, if one has others.
    """
    _compare(
        options,
        lambda first, other: [
            f"--{name} was {value}, is {other[name]}"
            for name, value in first.items()
            if other[name] != value
        ],
    )


def _compare(
    values: Mapping[str, Any], differences: Callable[[Any, Any], list[str]]
) -> None:
    """Raises an error that has the differences of the first process that differs."""
    texts = coordination.exchange(json.dumps(values))
    first, *others = map(json.loads, texts)
    for process, other in enumerate(others, 1):
        if changed := differences(first, other):
            raise InputError(
                f"process {process} has other options: {'; '.join(changed)}"
            )


def compare_facts(facts: Mapping[str, Any]) -> None:
    """Checks that all processes have the same facts, such as the number of examples.

    Args:
      facts: values that JSON can hold, by what they are.

    Raises:
      InputError: on every process, if one has others.
    """
    first, *others = map(json.loads, coordination.exchange(json.dumps(facts)))
    for process, other in enumerate(others, 1):
        for name, value in first.items():
            if other.get(name) != value:
                raise InputError(
                    f"process {process} differs in {name}: it has {other.get(name)}, "
                    f"and process 0 has {value}"
                )


def compare_devices() -> None:
    """Checks that all processes have the same number of devices, as `compare_facts`."""
    compare_facts({"the number of devices": jax.local_device_count()})
