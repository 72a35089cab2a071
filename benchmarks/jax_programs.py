"""Programs of JAX to time."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from benchmarks.cases import Program
from shiftjax.fast.dispatch import default_platform

# A pure function, and a function that makes its arguments. The latter is run to time
# the former, and only traced (`jax.eval_shape`) to compile for a device that is not
# there.
Traced = tuple[Callable[..., Any], Callable[[], tuple]]


def random(shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Returns normally distributed numbers, with a fixed seed."""
    return jax.random.normal(jax.random.key(0), shape, "float32").astype(dtype)


def make_program(traced: Traced, copies: int = 1, **facts: int) -> Program:
    """Makes a program of a function.

    Args:
      traced: the function, and the function that makes its arguments.
      copies: number of copies of the arguments, which together exceed the caches; a
        call is one dispatch for all of them.
      **facts: facts for its row.
    """
    function, arguments = traced
    filled = jax.jit(arguments)
    groups = [filled() for _ in range(copies)]

    def on_all(groups: list[tuple]) -> list[Any]:
        return [function(*group) for group in groups]

    program, memory = compile_program(on_all, groups)
    return Program(
        lambda: program(groups),
        jax.block_until_ready,
        steps=copies,
        queued=is_queue(),
        memory_bytes=memory if copies == 1 else None,
        peak_bytes=peak_bytes,
        facts=facts,
    )


def compile_program(function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    """Compiles a function for its arguments.

    Returns:
      The compiled function, and the bytes that a call needs besides its arguments,
      according to the compiler: the peak of the process may be that of compilation.
    """
    if not hasattr(function, "lower"):
        function = jax.jit(function)
    lowered: Any = function.lower(*arguments)  # pyright: ignore
    program = lowered.compile()
    analysis = program.memory_analysis()
    if analysis is None:
        return program, 0
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return program, analysis.temp_size_in_bytes + results


def parameter_count(variables: Mapping[str, Any]) -> int:
    """Returns the number of parameters among a network's variables."""
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def is_queue() -> bool:
    """Returns True if calls are asynchronous, and can be queued."""
    return default_platform() != "cpu"


def peak_bytes() -> int | None:
    """Returns the peak memory of the device, or None if it is unknown."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
