"""Settings of the process's memory allocator for computing on a CPU.

By default glibc returns the temporaries of each step to the kernel, and faults them in
again for the next one: a third to a half of the time of training goes there.
"""

import ctypes
import importlib.util
import sys
from importlib import metadata

import jax

# Names and numbers of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory(platform: str | None = None) -> bool:
    """Makes the allocator keep freed memory, which the next step takes again.

    Call it before the first array: threads that JAX has started before keep allocators
    of their own. The process then holds the most memory that it has needed, until it
    ends. Nothing is set where it would be of no use: without glibc, and on an
    accelerator, whose memory is not the allocator's.

    Args:
      platform: what is computed on, "cpu", "gpu" or "tpu"; by default JAX's backend,
        which is started if there may be an accelerator.

    Returns:
      True if the allocator is set.

    Example:
      >>> import shiftjax.allocator
      >>> kept = shiftjax.allocator.keep_freed_memory()
    """
    if not sys.platform.startswith("linux"):
        return False
    if platform is None:
        platform = "cpu" if _is_cpu_alone() else jax.default_backend()
    if platform != "cpu":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = {
        _MMAP_MAX: 0,  # large blocks come from the heap, not each from the kernel
        _TRIM_THRESHOLD: -1,  # which is never given back
        _TOP_PAD: 2**28,  # and grows by this many bytes
        _ARENA_MAX: 1,  # and is one for all threads
    }
    return all(mallopt(name, value) for name, value in options.items())


def _is_cpu_alone() -> bool:
    """Tells, without starting a backend, that JAX can compute on the CPU alone."""
    if named := jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        return named == "cpu"
    plugins = metadata.entry_points(group="jax_plugins")
    packages = ("jax_plugins", "libtpu")
    return not plugins and not any(map(importlib.util.find_spec, packages))
