"""Keeping freed memory: whether it does, where it is called, and where it is not."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from shiftjax import allocator

ROOT = Path(__file__).parents[2]

MEASURE = """
import ctypes, resource, sys
from shiftjax.allocator import keep_freed_memory

if sys.argv[1:] == ["keep"]:
    assert keep_freed_memory("cpu") is True

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def fill():
    for _ in range(4):
        block = ctypes.c_void_p(libc.malloc(40 * 2**20))
        libc.memset(block, 1, 40 * 2**20)
        libc.free(block)

fill()
before = faults()
fill()
print(faults() - before)
"""

glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallopt"),
    reason="glibc's mallopt is of Linux",
)


def run(program: str, *words: str) -> str:
    """Returns the output of a program in a process with the system's allocator."""
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("MALLOC", "GLIB"))
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=clean | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout


def faults(*words: str) -> int:
    """Page faults of filling four blocks of 40 MiB, one after the other, again."""
    return int(run(MEASURE, *words))


@glibc
def test_freed_memory_is_taken_again_without_a_page_fault():
    """Even of huge pages, of 2 MiB, four blocks have 80."""
    assert faults("keep") < 80
    assert faults() >= 80  # by default a block above 32 MiB is mapped anew each time


TRIM = """
import ctypes
from shiftjax.allocator import keep_freed_memory

def heap():
    with open("/proc/self/maps") as maps:
        ranges = [line.split()[0].split("-") for line in maps if "[heap]" in line]
    return sum(int(end, 16) - int(start, 16) for start, end in ranges)

assert keep_freed_memory("cpu") is True
before = heap()
ctypes.CDLL(None).malloc_trim(0)
print(before, heap())
"""


@glibc
def test_a_library_that_trims_the_heap_leaves_it_as_long():
    """A heap that grows again has small pages: protobuf trims at every message."""
    before, after = map(int, run(TRIM).split())
    half = os.sysconf("SC_PHYS_PAGES") // 2 * os.sysconf("SC_PAGE_SIZE")
    assert before == after
    assert after >= half


class Malloc:
    """Gives one block, of which nothing exists, or none."""

    address: int | None = 0x10000010

    def __init__(self, libc):
        self.libc = libc

    def __call__(self, size):
        self.size = size.value
        self.libc.held |= {self.address} - {None}
        return self.address


class Libc:
    """A libc that notes what is set, and has the heap at an odd address."""

    def __init__(self):
        self.options = {}
        self.advised = []
        self.held = set()
        self.beyond = 0
        self.malloc = Malloc(self)

    def mallopt(self, name: int, value: int) -> int:
        self.options[name] = value
        return 1

    def madvise(self, start, length, advice) -> int:
        self.advised.append((start.value, length.value, advice.value))
        return 0

    def free(self, block) -> None:
        self.held.remove(block.value)

    def sbrk(self, increment) -> None:
        assert not self.held  # else the page would not lie beyond what is free
        self.beyond += increment.value


@pytest.fixture
def libc(monkeypatch):
    """Puts a noting libc in the place of the process's own, on Linux."""
    made = Libc()
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: made)
    return made


def test_what_is_set_is_what_glibc_calls_so(libc):
    """M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX and M_ARENA_MAX of malloc.h."""
    assert allocator.keep_freed_memory() is True  # JAX's backend is the CPU here
    assert libc.options == {-1: -1, -2: 268435456, -4: 0, -8: 1}


def test_huge_pages_are_asked_for_on_whole_pages_of_half_the_memory(libc, monkeypatch):
    """1,000 pages of 4 KiB; a block of 500 at 16 bytes into a page has 499 whole."""
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}
    monkeypatch.setattr(allocator.os, "sysconf", sizes.__getitem__)
    assert allocator.keep_freed_memory("cpu") is True
    assert libc.malloc.size == 500 * 4096
    assert libc.advised == [(0x10001000, 499 * 4096, 14)]
    assert not libc.held
    assert libc.beyond == 4096


def test_a_limit_of_address_space_leaves_pages_as_they_are(libc):
    libc.malloc.address = None
    assert allocator.keep_freed_memory("cpu") is True
    assert libc.advised == []


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_an_accelerator_changes_nothing(libc, platform, monkeypatch):
    assert allocator.keep_freed_memory(platform) is False
    monkeypatch.setattr(allocator, "_is_cpu_alone", lambda: False)
    monkeypatch.setattr(allocator.jax, "default_backend", lambda: platform)
    assert allocator.keep_freed_memory() is False
    assert libc.options == {}


@pytest.mark.parametrize(
    ("platforms", "installed", "alone"),
    [
        ("cpu", "libtpu", True),
        ("cuda,cpu", "", False),
        (None, "", True),
        (None, "libtpu", False),
        (None, "jax_plugins", False),
    ],
)
def test_a_cpu_alone_is_known_without_starting_a_backend(
    libc, monkeypatch, platforms, installed, alone
):
    """Threads of a backend that has started have allocators of their own."""
    started = []
    monkeypatch.setattr(
        allocator.jax, "default_backend", lambda: started.append("") or "gpu"
    )
    monkeypatch.setattr(
        allocator.importlib.util, "find_spec", lambda name: name == installed or None
    )
    monkeypatch.setattr(allocator.metadata, "entry_points", lambda group: ())
    before = jax.config.values["jax_platforms"]
    jax.config.update("jax_platforms", platforms)
    try:
        assert allocator.keep_freed_memory() is alone
    finally:
        jax.config.update("jax_platforms", before)
    assert started == ([] if alone else [""])


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_change_nothing(libc, system, monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", system)
    assert allocator.keep_freed_memory("cpu") is False
    assert libc.options == {}


def test_another_allocator_changes_nothing(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert allocator.keep_freed_memory("cpu") is False
