"""Settings of the process's memory allocator that training on a CPU needs.

By default glibc returns the temporaries of each step to the kernel and faults them in
again for the next one, which makes a step 1.5 to 1.7 times as long.
"""

import ctypes
import sys

# Names and numbers of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Tells the allocator to keep what is freed, for the next step.

    Returns:
      Whether it understood: glibc does, other allocators need no telling.
    """
    if not sys.platform.startswith("linux"):
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
