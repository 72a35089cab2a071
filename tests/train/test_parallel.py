"""Replicas: every device sees its share, and all agree, under both backends."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax.errors import InputError
from train import coordination, parallel
from train.machine import cores
from train.parallel import AXIS, Replicas, replica_count

BACKENDS = ["pmap", "shard_map"]
DEVICES = 4
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("quick")


def gather(state, data, items, count):
    """Gathers the arguments of each device."""
    seen = {"state": state, "data": data, "items": items, "count": count}
    return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS), seen)


def copies(x: jax.Array) -> list[np.ndarray]:
    """The array as each device has it."""
    return [np.asarray(shard.data) for shard in x.addressable_shards]


# --- the devices --------------------------------------------------------------------


def test_all_devices_or_the_first_ones():
    assert Replicas.local().devices == tuple(jax.local_devices())
    assert Replicas.local().count == DEVICES
    assert Replicas.local(3).devices == tuple(jax.local_devices()[:3])
    assert Replicas.local(3).count == 3


def test_the_devices_of_all_hosts(monkeypatch):
    assert Replicas.local(3).all_devices == tuple(jax.local_devices()[:3])
    replicas, here = Replicas.local(), jax.local_devices()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "devices", lambda: [*here, *"abcd"])
    assert replicas.all_devices == (*here, *"abcd")
    assert len(replicas.all_devices) == replicas.count == 2 * DEVICES


@pytest.mark.parametrize("count", [-1, 0, 5])
def test_devices_that_are_not_there_are_refused(count):
    with pytest.raises(InputError, match=f"devices={count}: .* has {DEVICES}"):
        Replicas.local(count)


def test_a_batch_is_shared_evenly():
    assert Replicas.local().per_device(128) == 32
    assert Replicas.local(1).per_device(5) == 5
    assert Replicas.local(3).per_device(3) == 1


@pytest.mark.parametrize("batch_size", [0, 1, 3, 130])
def test_a_batch_that_cannot_be_shared_is_refused(batch_size):
    with pytest.raises(InputError, match=f"batch_size={batch_size}: .* multiple of 4"):
        Replicas.local().per_device(batch_size)


@pytest.mark.parametrize(
    ("batch_size", "cores", "count"),
    [(128, 1, 1), (128, 2, 2), (127, 2, 1), (64, 8, 1), (512, 16, 8), (448, 6, 4)],
)
def test_cores_of_a_cpu_have_equal_shares_of_64_images(batch_size, cores, count):
    assert replica_count(batch_size, cores) == count


SPLIT = """
import jax
from train.parallel import cores, split_cpu
{}
print(len(jax.devices()))
"""


@pytest.mark.parametrize(
    ("code", "flags", "count"),
    [
        ("split_cpu(128, 3)", "", 3),
        ("split_cpu(64)", "", 1),
        ("split_cpu(64 * len(cores()))", "", len(cores())),
        ("split_cpu(128, 0)", "", 1),  # which is refused when the run is checked
        ("split_cpu(128, 3)", "--xla_force_host_platform_device_count=2", 2),
        ("jax.config.update('jax_num_cpu_devices', 2); split_cpu(128, 3)", "", 2),
        ("jax.devices(); split_cpu(128, 3)", "", 1),
    ],
)
def test_the_cores_of_a_cpu_become_devices_unless_it_is_said(code, flags, count):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SPLIT.format(code)],
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{count}\n", "")


# --- what the devices get -----------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_replicate_puts_the_whole_on_every_device(backend):
    tree = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.int32(3)}
    replicated = Replicas.local(backend=backend).replicate(tree)
    for name, x in replicated.items():
        assert x.shape == np.shape(tree[name])
        assert {shard.device for shard in x.addressable_shards} == set(jax.devices())
        for copy in copies(x):
            np.testing.assert_array_equal(copy, tree[name])


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_device_sees_its_share_of_each_step(backend, devices):
    """Device d has the d-th part of every batch, in order; all else is the same."""
    steps, batch = 3, 8
    replicas = Replicas.local(devices, backend)
    items = {
        "index": np.arange(steps * batch, dtype=np.int32).reshape(steps, batch),
        "images": np.random.default_rng(0).integers(
            0, 256, (steps, batch, 2, 2, 3), np.uint8
        ),
    }
    state = replicas.replicate({"w": np.arange(3.0, dtype=np.float32)})
    data = replicas.replicate(np.arange(5))
    seen = jax.device_get(
        replicas.parallelize(gather)(
            state, data, replicas.split(items), np.int32(steps)
        )
    )
    share = batch // devices
    assert seen["items"]["index"].shape == (devices, steps, share)
    for d in range(devices):
        for name, x in items.items():
            part = x[:, d * share : (d + 1) * share]
            np.testing.assert_array_equal(seen["items"][name][d], part)
        np.testing.assert_array_equal(seen["state"]["w"][d], np.arange(3))
        np.testing.assert_array_equal(seen["data"][d], np.arange(5))
        assert seen["count"][d] == steps


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_one_tree_without_an_axis_of_replicas(backend):
    """They can be given back as the state, and saved as they are."""
    replicas = Replicas.local(backend=backend)

    def program(state, data, items, count):
        return state + jax.lax.psum(items.sum() * data * count, AXIS)

    run = replicas.parallelize(program)
    state = replicas.replicate(jnp.zeros(3))
    items = replicas.split(np.ones((2, 8), np.float32))
    for repetition in (1, 2):
        state = run(state, np.float32(2), items, np.int32(5))
        assert state.shape == (3,)
        assert len(copies(state)) == DEVICES
        for copy in copies(state):
            np.testing.assert_array_equal(copy, np.full(3, 160.0 * repetition))


@pytest.mark.parametrize("backend", BACKENDS)
def test_data_may_be_none(backend):
    replicas = Replicas.local(backend=backend)
    run = replicas.parallelize(
        lambda state, data, items, count: state if data is None else 0
    )
    state = replicas.replicate(jnp.ones(2))
    items = replicas.split({"index": np.zeros((1, 4), np.int32)})
    np.testing.assert_array_equal(run(state, None, items, np.int32(1)), np.ones(2))


@pytest.mark.parametrize("donate", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_states_memory_is_given_away_when_asked(backend, donate):
    replicas = Replicas.local(backend=backend)

    def program(state, data, items, count):
        return state + jax.lax.psum(items.sum(), AXIS)

    run = replicas.parallelize(program, donate_state=donate)
    state = replicas.replicate(jnp.zeros((64, 64)))
    items = replicas.split(np.ones((1, 4), np.float32))
    result = run(state, None, items, np.int32(1))
    assert state.is_deleted() is donate
    np.testing.assert_array_equal(result, np.full((64, 64), 4.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_averaged_once(backend):
    """With shard_map's own checks a mean over the axis would be taken twice."""
    replicas = Replicas.local(backend=backend)
    inputs = np.arange(8, dtype=np.float32).reshape(1, 8)

    def program(state, data, items, count):
        gradient = jax.grad(lambda w: (w * items[0]).mean())(state)
        return jax.lax.pmean(gradient, AXIS)

    run = replicas.parallelize(program)
    state = replicas.replicate(jnp.float32(2))
    gradient = run(state, None, replicas.split(inputs), np.int32(1))
    assert float(gradient) == inputs.mean()


def test_hosts_compile_a_program_before_one_starts_it(monkeypatch):
    """Else the one with a warm cache gives up while the other one compiles."""
    calls = []

    class Program:
        def __call__(self, *arguments):
            calls.append("run")
            return sum(x.sum() for x in arguments)

        def lower(self, *arguments):
            return SimpleNamespace(compile=lambda: calls.append("compile"))

    monkeypatch.setattr(coordination, "meet", lambda: calls.append("meet"))
    run = parallel.started_together(Program())
    state, data = np.ones(2), np.ones(3)
    assert run(state, data, np.ones((4, 1)), np.int32(1)) == 10
    assert calls == ["compile", "meet", "run"]
    run(state, data, np.zeros((4, 1)), np.int32(2))
    assert calls[3:] == ["run"]
    run(state, data, np.zeros((5, 1)), np.int32(2))
    assert calls[4:] == ["compile", "meet", "run"]
