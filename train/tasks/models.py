"""The network that a configuration names."""

from typing import Any

import shiftjax
from shiftjax.errors import InputError
from shiftjax.module import Unit
from train.config import Config


def make_model(config: Config, **decided: Any) -> Unit:
    """Makes the network of a run.

    Args:
      config: the configuration of the run.
      **decided: attributes of the network that the task sets, from data or flags.

    Raises:
      UnknownNameError: if there is no such network or option.
      InputError: if `--model.overrides` sets an attribute of `decided`.
    """
    decided["dtype"] = None if config.model.dtype == "float32" else config.model.dtype
    reserved = decided.keys() & config.model.overrides
    if reserved:
        raise InputError(
            f"--model.overrides {min(reserved)}: it has a flag, or the data decide it"
        )
    return shiftjax.create_model(config.model.name, **decided, **config.model.overrides)
