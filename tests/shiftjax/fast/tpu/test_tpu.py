"""The kernel for TPUs: a ReLU of its own, and its compilation for a TPU.

`tests/shiftjax/fast/test_kernels.py` compares the kernel with its definition.
"""

import importlib.util
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax.fast.tpu.plan import TPUPlan
from shiftjax.fast.tpu.rows import where_positive

pytestmark = pytest.mark.usefixtures("quick")


def test_a_relu_on_packed_words():
    """Every positive number of bfloat16 lets a number through, and zero does not."""
    bits = np.arange(0, 0x7F81, dtype=np.uint32)  # from zero to infinity
    values = np.full((2, len(bits)), 0x5A5A_A5A5, np.uint32).view(np.int32)
    words = np.stack([bits, np.roll(bits, 1) << 16 | bits]).view(np.int32)
    plan = TPUPlan(1, 1, 1, 16, 16, 16, jnp.dtype(jnp.bfloat16), ((0, 16, 0, 0),))
    kept = np.asarray(where_positive(plan, words, values)).view(np.uint16)
    expected = np.where(words.view(np.uint16) > 0, values.view(np.uint16), 0)
    np.testing.assert_array_equal(kept, expected)


# The compiler for TPUs.

COMPILE = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from shiftjax.fast.tpu import shift_project

topology = topologies.get_topology_desc("v5e:2x2", platform="tpu")
mesh = Mesh(np.array(topology.devices[:1]), ("core",))
core = NamedSharding(mesh, PartitionSpec())

def both(*arrays):
    *inputs, g = arrays
    y, pull = jax.vjp(shift_project, *inputs)
    return y, pull(g)

x = jax.ShapeDtypeStruct((128, 5, 7, 16), jnp.bfloat16)
shapes = [(16, 48), (48,), (48, 16)]
weights = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
step = jax.jit(both, in_shardings=core, out_shardings=core).trace(x, *weights, x)
compiled = step.lower(lowering_platforms=("tpu",)).compile()
print(json.dumps({"calls": compiled.as_text().count("tpu_custom_call")}))
"""
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
}


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for a TPU needs libtpu: pip install libtpu",
)
def test_it_compiles_for_a_tpu(monkeypatch):
    """In a process of its own, since libtpu reads its environment when it is loaded."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    run = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1])["calls"] >= 2
