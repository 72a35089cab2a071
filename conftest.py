"""What all tests and doctests share: four CPU devices and one random generator."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DEVICES = 4
MOST_MAPPINGS = 20_000  # of memory; Linux allows 65,530 in a process

# Read when JAX starts a backend.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} "
    f"--xla_force_host_platform_device_count={DEVICES}"
).strip()
# Programs kept from other sessions would hide that one no longer compiles.
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import jax  # noqa: E402 (after its environment)
import numpy as np  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--seed`."""
    parser.addoption("--seed", type=int, default=0, help="seed of all random numbers")


def pytest_report_header(config: pytest.Config) -> str:
    """Says what the tests ran on."""
    devices = f"{jax.default_backend()} of jax {jax.__version__}"
    return f"random numbers: --seed={config.getoption('seed')}; devices: {devices}"


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of all random numbers."""
    return request.config.option.seed


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """A random generator of the test's own."""
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Drops compiled programs, of which each takes some mappings of memory.

    Without it, a process of many tests reaches Linux's limit, and crashes in LLVM.
    """
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_text().count("\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def float64() -> Iterator[None]:
    """Lets JAX compute in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def devices() -> list[jax.Device]:
    """Four devices, whatever the machine has: those of the CPU."""
    return jax.devices("cpu")[:DEVICES]


@pytest.fixture
def refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets a method of paths fail in the test's folder, as without permission."""

    def refuse(method: str) -> None:
        original = getattr(Path, method)

        def call(path: Path, *arguments: Any) -> Any:
            if path.is_relative_to(tmp_path):
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *arguments)

        monkeypatch.setattr(Path, method, call)

    return refuse
