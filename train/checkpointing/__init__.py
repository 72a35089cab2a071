"""Training state on disk: saved in the background, verified when it is read.

`checkpoints` decides which steps are saved, kept and trusted; `store` writes and reads
them, and alone depends on Orbax; `manifest` describes a state and verifies it; `host`
copies a state from the devices.
"""

from train.checkpointing.checkpoints import Checkpoints, Restored

__all__ = ["Checkpoints", "Restored"]
