"""States to save, their comparison, and processes that save them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from orbax.checkpoint import v1

from train.checkpointing import Checkpoints

ROOT = Path(__file__).parents[2]
CHECKPOINTER = v1.training.Checkpointer  # to make it fail or wait


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any
    rng: Any
    ema: Any
    name: str = flax.struct.field(pytree_node=False, default="state")


def make_state(seed: int) -> State:
    """A state with one of everything, different for each seed."""
    numbers = np.random.default_rng(seed)
    params = {
        "stem": {"kernel": jnp.asarray(numbers.normal(size=(64, 33)), jnp.float32)},
        "head": {"bias": jnp.asarray(numbers.normal(size=7), jnp.bfloat16)},
        "none": {},
    }
    optimizer = optax.chain(optax.clip(1.0), optax.adam(optax.constant_schedule(0.1)))
    return State(
        step=jnp.int32(seed),
        params=params,
        opt_state=optimizer.init(params),
        rng={
            "one": jax.random.key(seed),
            "many": jax.random.split(jax.random.key(1), 3),
        },
        ema=None,
    )


TEMPLATE = jax.eval_shape(lambda: make_state(0))


def raw(leaf) -> tuple[str, tuple[int, ...], bytes]:
    """A leaf's dtype, shape and bytes, by a way of its own."""
    kind = str(leaf.dtype)
    if kind.startswith("key"):
        leaf = jax.random.key_data(leaf)
    return kind, leaf.shape, np.asarray(leaf).tobytes()


def assert_same(got, wanted) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert raw(one) == raw(other)


def save_steps(directory: Path, steps, **options) -> None:
    with Checkpoints(directory, **options) as checkpoints:
        for step in steps:
            checkpoints.save(
                step, make_state(step), {"seed": step}, {"top1": step / 10}
            )


def data_file(directory: Path, step: int) -> Path:
    """The file with the arrays' values: the largest that the loader reads."""
    files = (directory / str(step) / "state").rglob("*/d/*")
    return max(files, key=lambda path: path.stat().st_size)


def run_python(code: str, *args: object, **environment: str):
    """Starts Python on a snippet, with the repository to import from."""
    added = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, args)],
        env=os.environ | added,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
