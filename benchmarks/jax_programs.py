"""How our cases become programs to time."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def random(shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Returns normally distributed numbers, always the same."""
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    """Compiles a function for its arguments.

    Returns:
      The compiled function, and the bytes that a call needs beside its arguments, by
      the compiler's count: the process's peak may be that of the compiler.
    """
    if not hasattr(function, "lower"):
        function = jax.jit(function)
    program = function.lower(*arguments).compile()  # pyright: ignore
    analysis = program.memory_analysis()
    if analysis is None:
        return program, 0
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return program, analysis.temp_size_in_bytes + results


def parameters(variables: Mapping[str, Any]) -> int:
    """Returns the number of parameters among a network's variables."""
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def is_queue() -> bool:
    """Whether calls can be queued on the device while Python goes on."""
    return jax.default_backend() != "cpu"


def peak_bytes() -> int | None:
    """Returns the most memory that the device has given out, if it counts."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
