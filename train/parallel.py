"""Data parallelism: the only file that uses `jax.pmap`.

A program is written for one device and knows only `AXIS`, the name of the axis over
which it averages. This module maps it over the devices of all hosts. The state has no
leading axis of replicas: it is one tree, equal on every device, so it can be saved and
restored on any number of devices.

`jax.pmap` is `jit(shard_map)` underneath. The second backend, "shard_map", spells this
out and runs the same programs.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from shiftjax.errors import InputError
from train import coordination
from train.machine import cores

AXIS = "batch"
LEAST_SHARE = 64  # images; with fewer, cores of a CPU wait for each other too often

Backend = Literal["pmap", "shard_map"]

# function(state, data, items, count) -> results, on one device.
Program = Callable[[Any, Any, Any, Any], Any]


def replica_count(batch_size: int, most: int) -> int:
    """Returns the number of CPU cores over which a batch is best split.

    Args:
      batch_size: images in a step.
      most: number of cores.

    Returns:
      The largest number of equal shares of at least `LEAST_SHARE` images; else 1.

    Example:
      >>> replica_count(128, 16), replica_count(64, 2), replica_count(192, 2)
      (2, 1, 2)
    """
    most = min(most, batch_size // LEAST_SHARE)
    return max((n for n in range(1, most + 1) if batch_size % n == 0), default=1)


def split_cpu(batch_size: int, count: int | None = None) -> None:
    """Makes JAX devices of the cores of a CPU; call it before the first array.

    To XLA a CPU is one device, which splits single operations over its cores and runs
    most of a step on one of them. The function changes nothing if the number of devices
    was given to JAX (by `jax_num_cpu_devices` or a flag of XLA), if the backend has
    been started, or on several hosts.

    Args:
      batch_size: images in a step.
      count: number of devices; by default `replica_count`.
    """
    flag = "--xla_force_host_platform_device_count"
    given = jax.config.values["jax_num_cpu_devices"]
    if given >= 0 or flag in os.environ.get("XLA_FLAGS", ""):
        return
    if jax.distributed.is_initialized():
        return
    if count is None:
        count = replica_count(batch_size, len(cores()))
    with contextlib.suppress(RuntimeError):  # the backend has been started
        jax.config.update("jax_num_cpu_devices", max(count, 1))


@dataclasses.dataclass(frozen=True)
class Replicas:
    """The devices that share each batch.

    Attributes:
      devices: the devices of this process; every process has the same number.
      backend: the transformation that maps a program over them.

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
        """Takes the first `count` devices of this process, or all of them.

        Raises:
          InputError: if there are fewer devices.
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

    @property
    def all_devices(self) -> tuple[Any, ...]:
        """The devices on all hosts."""
        return self.devices if jax.process_count() == 1 else tuple(jax.devices())

    def per_device(self, batch_size: int) -> int:
        """Returns one device's share of a global batch.

        Raises:
          InputError: if the batch cannot be split evenly.
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
        """Splits a tree of `[steps, this host's batch, ...]` over this host's devices.

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

    def split_shapes(self, items: Any) -> Any:
        """Returns the shapes of `split`, from those of the batches of all hosts."""
        if self.backend == "shard_map":
            return items

        def cut(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            steps, batch, *rest = x.shape
            shape = (self.count, steps, batch // self.count, *rest)
            return jax.ShapeDtypeStruct(shape, x.dtype)

        return jax.tree.map(cut, items)

    def lower(self, function: Any, *shapes: Any) -> Any:
        """Lowers a mapped program for devices that need not be there.

        Args:
          function: the result of `parallelize`.
          *shapes: trees of `jax.ShapeDtypeStruct`, its arguments.

        Returns:
          What `jax.jit(...).lower` returns.
        """
        if self.backend == "pmap":
            return function.lower(*shapes)
        platform = self.devices[0].platform
        return function.trace(*shapes).lower(lowering_platforms=(platform,))

    def parallelize(
        self, program: Program, *, donate_state: bool = False
    ) -> Callable[..., Any]:
        """Maps a program over the devices.

        Args:
          program: `program(state, data, items, count)` on one device: `items` is its
            share of `split`; other arguments and all results are equal on each device.
          donate_state: if True, the memory of the state may be used for the results.

        Returns:
          A compiled function of the same arguments.
        """
        mapped = self._map(program, (0,) if donate_state else ())
        return mapped if jax.process_count() == 1 else started_together(mapped)

    def _map(self, program: Program, donate: tuple[int, ...]) -> Callable[..., Any]:
        """Maps a program over the devices; `donate` are the arguments to donate."""
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
            check_vma=False,  # otherwise gradients are summed over the axis twice
        )
        return jax.jit(mapped, donate_argnums=donate)

    def _mesh(self) -> Mesh:
        """Returns the mesh of the arrays: pmap needs only this process's devices."""
        chosen = self.devices if self.backend == "pmap" else self.all_devices
        return Mesh(np.asarray(chosen), (AXIS,))


def started_together(program: Any) -> Callable[..., Any]:
    """Makes every host compile a program before any of them starts it.

    On CPUs, a collective waits 30 seconds for the other hosts. One of them may have to
    compile for longer than that, while another one finds the program in its cache.

    Args:
      program: a compiled function of a state, data, items and a count.

    Returns:
      A function of the same arguments. It compiles and waits when the shapes are new.
    """
    compiled: set[Any] = set()

    @functools.wraps(program)
    def run(state: Any, data: Any, items: Any, count: Any) -> Any:
        kinds = tuple((x.shape, x.dtype) for x in jax.tree.leaves((data, items)))
        if kinds not in compiled:
            program.lower(state, data, items, count).compile()
            coordination.meet()
            compiled.add(kinds)
        return program(state, data, items, count)

    return run
