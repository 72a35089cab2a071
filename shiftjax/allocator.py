"""Settings of the process's memory allocator for computation on a CPU.

By default glibc returns the temporaries of each step to the kernel, and faults their
pages in again for the next step. That takes a third to a half of the training time.
"""

import ctypes
import importlib.util
import os
import sys
from importlib import metadata
from typing import Any

import jax

from shiftjax.fast.dispatch import default_platform

# Names and numbers of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_MADV_HUGEPAGE = 14  # of madvise(2)


def keep_freed_memory(platform: str | None = None) -> bool:
    """Makes the allocator keep freed memory, so that the next step reuses it.

    Call it before the first array: threads that JAX started earlier keep allocators of
    their own. The process then holds its peak memory until it ends. Nothing is set
    where it would not help: without glibc, and on an accelerator, whose memory is not
    managed by this allocator.

    Args:
      platform: platform of the computation, "cpu", "gpu" or "tpu"; by default JAX's
        backend, which is started if there may be an accelerator.

    Returns:
      True if the allocator was set.

    Example:
      >>> import shiftjax.allocator
      >>> kept = shiftjax.allocator.keep_freed_memory()
    """
    if not sys.platform.startswith("linux"):
        return False
    if platform is None:
        platform = "cpu" if _is_cpu_alone() else default_platform()
    if platform != "cpu":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    options = {
        _MMAP_MAX: 0,  # large blocks come from the heap, not each from the kernel
        _TRIM_THRESHOLD: -1,  # the heap is never given back
        _TOP_PAD: 2**28,  # the heap grows by this many bytes
        _ARENA_MAX: 1,  # all threads share one heap
    }
    kept = all(libc.mallopt(name, value) for name, value in options.items())
    if kept:
        _ask_for_huge_pages(libc)
    return kept


def _ask_for_huge_pages(libc: Any) -> None:
    """Asks the kernel for huge pages for the heap, where it gives them on request.

    Only existing address space can be marked. The heap is therefore grown to half of
    the machine's memory, none of which is used until something is stored in it.
    """
    libc.malloc.restype = ctypes.c_void_p
    page = os.sysconf("SC_PAGE_SIZE")
    size = os.sysconf("SC_PHYS_PAGES") // 2 * page
    block = libc.malloc(ctypes.c_size_t(size))
    if block is None:  # the process has a lower limit of memory
        return
    first = -(-block // page) * page
    length = (block + size - first) // page * page
    libc.madvise(
        ctypes.c_void_p(first), ctypes.c_size_t(length), ctypes.c_int(_MADV_HUGEPAGE)
    )
    libc.free(ctypes.c_void_p(block))
    # A page after the heap keeps it from being shortened. Without it, protobuf calls
    # malloc_trim whenever it frees a message, and the heap grows again in small pages.
    libc.sbrk(ctypes.c_ssize_t(page))


def _is_cpu_alone() -> bool:
    """Returns True if JAX can only compute on the CPU, without starting a backend."""
    if named := jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        return named == "cpu"
    plugins = metadata.entry_points(group="jax_plugins")
    packages = ("jax_plugins", "libtpu")
    return not plugins and not any(map(importlib.util.find_spec, packages))
