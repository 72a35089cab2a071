"""Checkpoints: what is saved comes back bit for bit, or not at all."""

import json
import re
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax.errors import InputError, MissingFileError
from tests.train.checkpoint_states import (
    CHECKPOINTER,
    TEMPLATE,
    assert_same,
    make_state,
    run_python,
    save_steps,
)
from train.checkpointing import Checkpoints

OPEN_FILES = Path("/proc/self/fd")

# --- what goes in comes out -----------------------------------------------------------


def test_state_comes_back_bit_for_bit(tmp_path):
    state = make_state(3)
    metadata = {"model": "resnet20", "shape": (32, 32), "schedule": {"rate": 0.1}}
    with Checkpoints(tmp_path / "a" / "b") as checkpoints:
        checkpoints.save(7, state, metadata, {"top1": 0.5, "loss": float("nan")})
    with Checkpoints(tmp_path / "a" / "b") as checkpoints:
        restored = checkpoints.restore(TEMPLATE)
    assert_same(restored.state, state)
    assert restored.step == 7
    assert restored.metadata == metadata | {"shape": [32, 32]}  # as JSON has it
    assert restored.metrics == {"top1": 0.5}
    assert restored.skipped == ()
    assert type(restored.state.params["head"]["bias"]) is np.ndarray
    drawn = [jax.random.normal(s.rng["one"], (4,)) for s in (restored.state, state)]
    np.testing.assert_array_equal(*drawn)


@pytest.mark.skipif(not OPEN_FILES.exists(), reason="lists open files as Linux does")
def test_saves_leave_no_thread_and_no_open_file(tmp_path):
    """A run of thousands of saves would reach the limit of one or the other."""

    def held() -> tuple[int, int]:
        return threading.active_count(), len(list(OPEN_FILES.iterdir()))

    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        counts = []
        for step in range(1, 7):
            checkpoints.save(step, {"array": np.arange(step)}, {})
            checkpoints.wait()
            counts.append(held())
    assert counts[5] <= counts[2]  # the first saves start what all of them use


def test_template_may_be_a_state_and_a_state_numpy_and_numbers(tmp_path):
    state = {"array": np.arange(6, dtype=np.int8).reshape(2, 3).T, "scalar": 1.5}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        got = checkpoints.restore(state).state
    np.testing.assert_array_equal(got["array"], [[0, 3], [1, 4], [2, 5]])
    assert (got["array"].dtype, got["scalar"]) == (np.int8, 1.5)


def test_newest_or_the_step_asked_for(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(TEMPLATE) is None
        assert checkpoints.steps() == []
    save_steps(tmp_path, [1, 9, 10])
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 9, 10]
        assert checkpoints.restore(TEMPLATE).step == 10
        assert_same(checkpoints.restore(TEMPLATE, step=9).state, make_state(9))
        with pytest.raises(MissingFileError, match=r"step 5 .*there: 1, 9, 10\)"):
            checkpoints.restore(TEMPLATE, step=5)


def test_saved_arrays_may_be_donated_or_written_at_once(tmp_path):
    @jax.jit
    def zeros(tree):
        return jax.tree.map(jnp.zeros_like, tree)

    overwrite = jax.jit(zeros, donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(1, 6):
            params = jax.tree.map(lambda x: x + 0, make_state(step).params)
            counter = np.array([step])
            checkpoints.save(step, {"params": params, "counter": counter}, {})
            overwrite(params)
            counter[:] = -1
            for leaf in jax.tree.leaves(params):
                leaf.delete()
            want = {"params": make_state(step).params, "counter": np.array([step])}
            assert_same(checkpoints.restore(want).state, want)


def test_save_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    gate, wait, opened = threading.Event(), CHECKPOINTER.wait, []

    def wait_for_gate(self):
        opened.append(gate.wait(10))
        wait(self)

    monkeypatch.setattr(CHECKPOINTER, "wait", wait_for_gate)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        gate.set()
        checkpoints.wait()
        assert opened == [True]
        assert checkpoints.steps() == [1]


SAVE_ON_FOUR_DEVICES = """
import logging, sys
logging.basicConfig(level=logging.INFO)
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from train.checkpointing import Checkpoints

mesh = Mesh(jax.devices(), ("batch",))
assert mesh.size == 4
tree = {"kernel": np.arange(12, dtype=np.float32), "rng": jax.random.key(5)}
tree = jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, tree, {}, {"top1": 0.1})
"""


def test_saved_on_four_devices_restored_on_one_and_nothing_printed(tmp_path):
    process = run_python(
        SAVE_ON_FOUR_DEVICES,
        tmp_path,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "")
    assert not re.search(r"absl|orbax|Warning|Traceback", err), err
    wanted = {"kernel": np.arange(12, dtype=np.float32), "rng": jax.random.key(5)}
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(wanted).state
    placed = jax.device_put(restored, jax.devices()[0])
    assert_same(placed, wanted)


def test_manifest_says_what_made_the_checkpoint(tmp_path):
    save_steps(tmp_path, [4])
    manifest = json.loads((tmp_path / "4" / "manifest" / "data.json").read_text())
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["metadata"] == {"seed": 4}
    stored = manifest["arrays"]["params/stem/kernel"]
    assert (stored["dtype"], stored["shape"]) == ("float32", [64, 33])


# --- what is kept ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep_last": 2}, [5, 6]),
        ({"keep_last": 2, "best_metric": "top1"}, [2, 5, 6]),
        ({"keep_last": 2, "best_metric": "top1", "keep_best": 0}, [5, 6]),
        ({"keep_last": 1, "best_metric": "top1", "keep_best": 2}, [2, 5, 6]),
        ({"keep_last": 1, "best_metric": "top1", "best_mode": "min"}, [1, 6]),
        ({"keep_last": 1, "best_metric": "absent", "keep_best": 3}, [6]),
    ],
)
def test_keeps_the_last_and_the_best_across_runs(tmp_path, options, kept):
    top1 = [0.1, 0.9, float("nan"), 0.7, 0.7, 0.6]  # of the equal ones, the newer
    state = {"x": np.zeros(3)}
    for start in (0, 3):  # the second run reads the metrics of the first
        with Checkpoints(tmp_path, **options) as checkpoints:
            checkpoints.restore(state)
            for step in range(start + 1, start + 4):
                checkpoints.save(step, state, {}, {"top1": top1[step - 1]})
    assert Checkpoints(tmp_path).steps() == kept


def test_a_step_is_saved_once(tmp_path):
    save_steps(tmp_path, [1, 2])
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(TEMPLATE, step=1).step == 1
        checkpoints.save(1, make_state(1), {})  # as restored: nothing to do
        with pytest.raises(InputError, match="already holds a checkpoint of step 2"):
            checkpoints.save(2, make_state(2), {})
        checkpoints.save(3, make_state(3), {"try": 1})
        checkpoints.save(3, make_state(3), {"try": 2})
        assert checkpoints.restore(TEMPLATE).metadata == {"try": 1}


# --- what does not fit ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"a": (2,), "b": (3,), "c": (1,)}, r"1 missing \(c\)$"),
        ({"a": (2,)}, r"1 extra \(b\)$"),
        ({"a": (2,), "b": (3, 1)}, r"shape \(b: stored \[3\], wanted \[3, 1\]\)$"),
        (
            {"a": (2,), "b": (3,), "dtype": "bfloat16"},
            r"2 of another dtype \(a: stored",
        ),
        (
            {f"n{i}": (1,) for i in range(9)},
            r"9 missing \(n0, n1, n2, \.\.\.\); 2 extra",
        ),
    ],
)
def test_another_state_is_refused(tmp_path, template, message):
    state = {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)}
    dtype = template.pop("dtype", "float32")
    template = {k: jax.ShapeDtypeStruct(v, dtype) for k, v in template.items()}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.save(2, state, {})
        with pytest.raises(InputError, match=message) as caught:
            checkpoints.restore(template)
        assert "\n" not in str(caught.value)
        assert checkpoints.restore(state).step == 2  # none was set aside for it


def test_another_kind_of_key_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"rng": jax.random.key(0, impl="rbg")}, {})
        with pytest.raises(InputError, match=r"stored key<rbg>, wanted key<fry>"):
            checkpoints.restore({"rng": jax.random.key(0)})
