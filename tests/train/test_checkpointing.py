"""Checkpoints: what is saved comes back bit for bit, or not at all."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1

from shiftjax.errors import InputError, MissingFileError
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


# --- what goes in comes out ---------------------------------------------------------


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


# --- what is kept -------------------------------------------------------------------


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


# --- what does not fit --------------------------------------------------------------


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


# --- what is damaged ----------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def damage_step(directory: Path, step: int, kind: str) -> None:
    path = directory / str(step)
    manifest = path / "manifest" / "data.json"
    if kind == "flipped value":
        flip(data_file(directory, step))
    elif kind == "truncated values":
        os.truncate(data_file(directory, step), 100)
    elif kind == "lost values":
        data_file(directory, step).unlink()
    elif kind == "truncated index":
        os.truncate(path / "state" / "manifest.ocdbt", 30)
    elif kind == "truncated tables":
        for table in (path / "state" / "d").iterdir():
            os.truncate(table, table.stat().st_size // 2)
    elif kind == "edited manifest":
        manifest.write_text(manifest.read_text().replace('"seed": 3', '"seed": 4'))
    elif kind == "other manifest":
        manifest.write_text("[]")
    elif kind == "lost manifest":
        manifest.unlink()
    elif kind == "empty directory":
        for file in sorted(path.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()


DAMAGE = {
    "flipped value": "params/.* does not match its sha256",
    "truncated values": "state is broken",
    "lost values": "state is broken",
    "truncated index": "state is broken",
    "truncated tables": "state is broken",
    "edited manifest": "manifest does not match its sha256",
    "other manifest": "manifest does not match its sha256",
    "lost manifest": "manifest is broken",
    "empty directory": "manifest is broken",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_falls_back_and_the_step_can_be_saved_again(tmp_path, caplog, kind):
    save_steps(tmp_path, [1, 2, 3])
    damage_step(tmp_path, 3, kind)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(TEMPLATE)
        assert_same(restored.state, make_state(2))
        (message,) = restored.skipped
        assert re.search(f"step 3 is damaged: .*{DAMAGE[kind]}", message)
        assert checkpoints.steps() == [1, 2, 3]  # reading changes nothing
        checkpoints.save(3, make_state(3), {"again": True})
    assert (tmp_path / "3.corrupt").is_dir()
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(TEMPLATE)
    assert (restored.step, restored.metadata) == (3, {"again": True})
    assert_same(restored.state, make_state(3))
    assert not [entry for entry in caplog.records if entry.exc_info]  # no tracebacks


def test_damage_of_an_older_step_does_not_stop_a_save(tmp_path):
    save_steps(tmp_path, [1, 2])
    (tmp_path / "1" / "manifest" / "data.json").write_text("{")
    (tmp_path / "0").mkdir()
    (tmp_path / "notes.txt").write_text("not a step")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(TEMPLATE).step == 2
        checkpoints.save(3, make_state(3), {})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
    assert {"0.corrupt", "1.corrupt"} <= {path.name for path in tmp_path.iterdir()}


def test_damage_to_what_this_run_has_saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), {"try": 1})
        checkpoints.wait()
        damage_step(tmp_path, 2, "flipped value")
        assert checkpoints.restore(TEMPLATE).step == 1
        checkpoints.save(2, make_state(2), {"try": 2})
        assert checkpoints.restore(TEMPLATE).metadata == {"try": 2}


def test_a_directory_that_is_taken_away(tmp_path):
    with Checkpoints(tmp_path / "run") as checkpoints:
        (tmp_path / "run").rmdir()
        with pytest.raises(InputError, match="run: No such file or directory"):
            checkpoints.save(1, make_state(1), {})


def test_the_same_step_may_be_damaged_twice(tmp_path):
    for _ in range(2):
        with Checkpoints(tmp_path) as checkpoints:
            if checkpoints.steps():
                checkpoints.restore(TEMPLATE)
            else:
                save_steps(tmp_path, [1])
            checkpoints.save(2, make_state(2), {})
        damage_step(tmp_path, 2, "lost manifest")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(TEMPLATE).step == 1
        checkpoints.save(2, make_state(2), {})
    assert {"2.corrupt", "2.corrupt1"} <= {path.name for path in tmp_path.iterdir()}


def test_nothing_whole_is_an_error_not_a_new_start(tmp_path):
    save_steps(tmp_path, [1, 2])
    for step in (1, 2):
        damage_step(tmp_path, step, "flipped value")
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(
            InputError, match=r"step 2 is .*; .*step 1 is .*move"
        ) as caught:
            checkpoints.restore(TEMPLATE)
        assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match="step 1 is damaged"):
            checkpoints.restore(TEMPLATE, step=1)
    assert Checkpoints(tmp_path).steps() == [1, 2]


# --- what the file system does ------------------------------------------------------


@pytest.mark.parametrize("directory", ["file", "file/below", "/proc/nowhere"])
def test_a_directory_that_cannot_be_made(tmp_path, directory):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"checkpoint.*{directory}: "):
        Checkpoints(tmp_path / directory)


@pytest.mark.parametrize("options", [{"keep_last": 0}, {"keep_best": -1}])
def test_numbers_out_of_range(tmp_path, options):
    with pytest.raises(InputError, match="at least"):
        Checkpoints(tmp_path, **options)


def test_a_failed_save_surfaces_later_and_can_be_tried_again(tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError(28, os.strerror(28))

    state = make_state(1)
    message = f"checkpoint.*{tmp_path}: No space left on device"
    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(CHECKPOINTER, "save_checkpointables_async", full_disk)
            checkpoints.save(1, state, {})
            with pytest.raises(InputError, match=message):
                checkpoints.save(2, state, {})
            checkpoints.wait()  # an error is raised once
            checkpoints.save(2, state, {})
            with pytest.raises(InputError, match=message):
                checkpoints.wait()
        checkpoints.save(2, state, {})
        checkpoints.wait()
        assert checkpoints.steps() == [2]


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_disk(tmp_path, monkeypatch):
    def read_only(*args, **kwargs):
        raise PermissionError(13, os.strerror(13))

    def train():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, {"x": np.zeros(1)}, {})
            raise FloatingPointError("loss is nan")

    monkeypatch.setattr(CHECKPOINTER, "save_checkpointables_async", read_only)
    with pytest.raises(FloatingPointError, match="loss is nan") as caught:
        train()
    assert "Permission denied" in caught.value.__notes__[0]


FULL_DISK = """
import resource, sys
import numpy as np
from shiftjax.errors import InputError
from train.checkpointing import Checkpoints

state = {"x": np.random.default_rng(0).normal(size=100_000)}
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, state, {})
    checkpoints.wait()
    for size in (10, 100_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        checkpoints.save(2, state, {})
        try:
            checkpoints.wait()
        except InputError as error:
            print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert checkpoints.restore(state).step == 1
    checkpoints.save(2, state, {})
    checkpoints.wait()
    print(checkpoints.steps())
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    checkpoints.save(3, state, {})
    try:
        checkpoints.wait()
    except InputError as error:
        print(error)
print("closed")
"""


def test_a_real_limit_of_the_file_system(tmp_path):
    process = run_python(FULL_DISK, tmp_path)
    out, err = process.communicate(timeout=120)
    line = f"cannot keep checkpoints in {tmp_path}: File too large"
    lines = [line, line, "[1, 2]", line, "closed"]
    assert (process.returncode, out.splitlines()) == (0, lines), err
    assert not re.search("Traceback|ERROR", err), err


SAVE_FOR_EVER = """
import itertools, sys
import numpy as np
from train.checkpointing import Checkpoints

template = {f"x{i}": np.zeros(2000) for i in range(20)}
with Checkpoints(sys.argv[1], keep_last=2) as checkpoints:
    restored = checkpoints.restore(template)
    start = restored.step if restored else 0
    for step in itertools.count(start + 1):
        checkpoints.save(step, {name: x + step for name, x in template.items()}, {})
        checkpoints.wait()
        print(step, flush=True)
"""


def test_killed_while_saving(tmp_path):
    template = {f"x{i}": np.zeros(2000) for i in range(20)}
    for _ in range(3):
        process = run_python(SAVE_FOR_EVER, tmp_path)
        reported = 0
        for _ in range(3):
            reported = int(process.stdout.readline())
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*tmp")) and time.monotonic() < deadline:
            pass
        process.send_signal(signal.SIGKILL)
        out, err = process.communicate()
        reported = max([reported, *map(int, out.split())])
        assert list(tmp_path.glob("*tmp")), err  # it was killed in the midst
        with Checkpoints(tmp_path) as checkpoints:
            restored = checkpoints.restore(template)
            assert restored.step >= reported
            for x in restored.state.values():
                np.testing.assert_array_equal(x, np.full(2000, restored.step))
            checkpoints.save(restored.step + 5, restored.state, {})
        assert not list(tmp_path.glob("*tmp"))  # what it left is gone


def test_manifest_says_what_made_the_checkpoint(tmp_path):
    save_steps(tmp_path, [4])
    manifest = json.loads((tmp_path / "4" / "manifest" / "data.json").read_text())
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["metadata"] == {"seed": 4}
    stored = manifest["arrays"]["params/stem/kernel"]
    assert (stored["dtype"], stored["shape"]) == ("float32", [64, 33])
