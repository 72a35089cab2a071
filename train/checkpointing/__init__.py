"""Training state on disk: saved in the background, verified when it is read.

`checkpoints` decides what is saved, kept and trusted; `store` writes and reads it with
Orbax, which nothing else knows; `manifest` describes a state and verifies it; `host`
takes a state off the devices.
"""

from train.checkpointing.checkpoints import Checkpoints, Restored

__all__ = ["Checkpoints", "Restored"]
