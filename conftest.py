"""What all tests and doctests share: four CPU devices and one random generator."""

import os
from collections.abc import Iterator

import pytest

DEVICES = 4

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


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A random generator of the test's own, from `--seed`."""
    return np.random.default_rng(request.config.getoption("seed"))


@pytest.fixture
def float64() -> Iterator[None]:
    """Lets JAX compute in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def devices() -> list[jax.Device]:
    """Four devices, whatever the machine has: those of the CPU."""
    return jax.devices("cpu")[:DEVICES]
