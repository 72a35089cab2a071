"""Data parallelism: the one file that knows `jax.pmap`.

A program is written for one device and knows only `AXIS`, the name of the axis over
which it averages; here it is mapped over the devices of all hosts. The state has no
leading axis of replicas: it is one tree, the same on every device, so it can be saved
and read as it is, on any number of devices.

`jax.pmap` is `jit(shard_map)` underneath. The second backend, "shard_map", writes that
out and runs the same programs, so the wrapper can be changed in this file alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from shiftjax.errors import InputError

AXIS = "batch"

Backend = Literal["pmap", "shard_map"]

# function(state, data, items, count) -> results, on one device.
Program = Callable[[Any, Any, Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Replicas:
    """The devices that share each batch.

    Attributes:
      devices: this process's; every process has as many.
      backend: what maps a program over them.

    Example:
      >>> replicas = Replicas.local(1)
      >>> total = replicas.parallelize(
      ...     lambda state, data, items, count: jax.lax.psum(items.sum(), AXIS))
      >>> float(total(0.0, 0.0, replicas.split(np.ones((3, 4), np.float32)), 0))
      12.0
    """

    devices: tuple[Any, ...]
    backend: Backend = "pmap"

    @classmethod
    def local(cls, count: int | None = None, backend: Backend = "pmap") -> "Replicas":
        """Takes this process's first `count` devices, or all of them.

        Raises:
          InputError: if there are not so many.
        """
        devices = jax.local_devices()
        if count is not None and jax.process_count() > 1:
            raise InputError(
                f"devices={count}: a run on several hosts uses all devices of each"
            )
        if count is not None and not 1 <= count <= len(devices):
            raise InputError(
                f"devices={count}: this process has {len(devices)}, of kind "
                f"{devices[0].device_kind}"
            )
        return cls(tuple(devices[:count]), backend)

    @property
    def count(self) -> int:
        """Number of replicas, on all hosts."""
        return len(self.devices) * jax.process_count()

    def per_device(self, batch_size: int) -> int:
        """Returns one device's share of a global batch.

        Raises:
          InputError: if the batch cannot be shared out evenly.
        """
        share, rest = divmod(batch_size, self.count)
        if share < 1 or rest:
            raise InputError(
                f"batch_size={batch_size}: {self.count} devices share it, so it must "
                f"be a multiple of {self.count}"
            )
        return share

    def replicate(self, tree: Any) -> Any:
        """Puts a copy of each array on every device."""
        return jax.device_put(tree, NamedSharding(self._mesh(), PartitionSpec()))

    def split(self, items: Any) -> Any:
        """Cuts a tree of `[steps, this host's batch, ...]` over this host's devices.

        Returns:
          The `items` of a mapped program; each device sees
          `[steps, its share of the batch, ...]`.
        """
        if self.backend == "pmap":

            def cut(x: np.ndarray) -> np.ndarray:
                shape = (len(x), len(self.devices), -1, *x.shape[2:])
                return np.moveaxis(x.reshape(shape), 1, 0)

            return jax.tree.map(cut, items)
        sharding = NamedSharding(self._mesh(), PartitionSpec(None, AXIS))
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, x), items
        )

    def parallelize(
        self, program: Program, *, donate_state: bool = False
    ) -> Callable[..., Any]:
        """Maps a program over the devices.

        Args:
          program: `program(state, data, items, count)` on one device: `items` is its
            share of `split`; all else, and every result, is the same on each device.
          donate_state: whether the state's memory may be used for the results.

        Returns:
          A compiled function of the same arguments.
        """
        donate = (0,) if donate_state else ()
        if self.backend == "pmap":
            return jax.pmap(
                program,
                axis_name=AXIS,
                in_axes=(None, None, 0, None),
                out_axes=None,
                donate_argnums=donate,
                devices=self.devices if jax.process_count() == 1 else None,
            )
        whole, share = PartitionSpec(), PartitionSpec(None, AXIS)
        mapped = jax.shard_map(
            program,
            mesh=self._mesh(),
            in_specs=(whole, whole, share, whole),
            out_specs=whole,
            check_vma=False,  # else gradients are summed over the axis a second time
        )
        return jax.jit(mapped, donate_argnums=donate)

    def _mesh(self) -> Mesh:
        """The mesh that arrays live on: pmap wants this process's devices alone."""
        alone = self.backend == "pmap" or jax.process_count() == 1
        return Mesh(np.asarray(self.devices if alone else jax.devices()), (AXIS,))
