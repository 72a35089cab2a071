"""Two processes of two devices each: they train as one does, stop together, and resume.

They sum over the devices in another order than one process does, so the parameters
agree to rounding; between runs of two processes they agree to the bit.
"""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from shiftjax.errors import InputError
from tests.train.processes import TIMEOUT, free_port, wait
from train import hosts
from train.assemble import set_up
from train.checkpointing import Checkpoints
from train.config import Data, Hosts, Schedule, load_config
from train.exits import LOST, TemporaryError
from train.logging.records import METRICS_FILE, read_metrics

ROOT = Path(__file__).parents[2]


# --- meeting ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        (Hosts(coordinator="a:1"), "count"),
        (Hosts(count=2, index=0), "coordinator"),
        (Hosts(coordinator="a:1", count=2), "index"),
    ],
)
def test_the_options_go_together(options, missing):
    with pytest.raises(InputError, match=f"--hosts.{missing} is missing"):
        hosts.join(options)


@pytest.mark.parametrize("address", ["a", "a:", ":1", "a:b", "a:0", "a:65536", "::1"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(InputError, match="must be HOST:PORT") as caught:
        hosts.join(Hosts(address, 2, 1))
    assert f"--hosts.coordinator {address}: " in str(caught.value)
    assert not isinstance(caught.value, TemporaryError)


def test_a_name_that_does_not_resolve_is_named():
    with pytest.raises(TemporaryError, match=r"no\.invalid does not resolve"):
        hosts.join(Hosts("no.invalid:8476", 2, 1))


@pytest.mark.parametrize("address", ["", "127.0.0.1"])
def test_a_port_in_use_is_named_by_the_first_process(address):
    with socket.create_server((address, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TemporaryError, match=f"cannot listen on port {port}"):
            hosts.join(Hosts(f"localhost:{port}", 2, 0))


@pytest.mark.parametrize("index", [2, 7])
def test_a_process_beyond_the_last_is_refused(index):
    with pytest.raises(InputError, match=f"--hosts.index {index}: .* 0 to 1"):
        hosts.join(Hosts("localhost:1", 2, index))


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({"SLURM_STEP_NUM_TASKS": "16"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_NTASKS": "16"}, False),  # a shell within an allocation, not a task
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"MEGASCALE_NUM_SLICES": "2", "TPU_WORKER_HOSTNAMES": "a"}, True),
    ],
)
def test_a_cluster_is_known_by_its_environment(environment, several):
    assert hosts.in_cluster(environment) is several


@pytest.mark.parametrize("name", ["accel0", "vfio/0"])
def test_a_host_of_tpus_is_known_by_its_devices(name, tmp_path, monkeypatch):
    assert not hosts.on_tpu(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    for spec in (None, "found"):
        monkeypatch.setattr("importlib.util.find_spec", lambda _, spec=spec: spec)
        assert hosts.on_tpu(tmp_path) is (spec is not None)


def test_a_host_of_tpus_that_no_cluster_tells_of_trains_alone(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", refuse)
    monkeypatch.setattr(hosts, "on_tpu", lambda _: True)
    hosts.join(Hosts())
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    with pytest.raises(InputError, match=r"cannot connect .*coordinator_address"):
        hosts.join(Hosts())


def test_a_request_to_stop_starts_no_accelerator():
    """Else the process that looks after a zoo would take its runs' memory."""
    code = (
        "import jax; from train.stopping import StopRequest; StopRequest(); "
        "jax.config.update('jax_num_cpu_devices', 3); assert len(jax.devices()) == 3"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_one_process_agrees_with_itself(tmp_path):
    done = []
    hosts.first_does(lambda: done.append(1))
    hosts.all_do(lambda: done.append(2))
    hosts.check_shared(tmp_path)
    assert done == [1, 2]
    assert hosts.agreed(True)
    assert not hosts.agreed(False)
    with pytest.raises(InputError, match="wrong"):
        hosts.first_does(lambda: _raise("wrong"))
    with pytest.raises(InputError, match="wrong"):
        hosts.all_do(lambda: _raise("wrong"))


def _raise(message: str) -> None:
    raise InputError(message)


@pytest.mark.parametrize("kind", [InputError, TemporaryError])
def test_all_processes_end_with_the_code_of_the_first(kind, monkeypatch):
    """Else a scheduler that would restart the first gives up because of the others."""
    texts = []

    def exchange(text):
        texts.append(text)
        return [texts[0], text]

    def refuse():
        raise kind("runs/a is in use: wait")

    monkeypatch.setattr("train.coordination.exchange", exchange)
    for index in (0, 1):
        monkeypatch.setattr("train.coordination.index", lambda index=index: index)
        with pytest.raises(InputError, match=r"^runs/a is in use: wait$") as caught:
            hosts.first_does(refuse)
        assert type(caught.value) is kind
    assert len(texts) == 2


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["temporary", ""], TemporaryError),
        (["", "lasting"], InputError),
        (["temporary", "lasting"], InputError),
    ],
)
def test_processes_end_with_the_code_of_those_that_failed(kinds, expected, monkeypatch):
    monkeypatch.setattr("train.coordination.exchange", lambda text: [*kinds, text])
    first = next(i for i, kind in enumerate(kinds) if kind)
    with pytest.raises(InputError, match=f"process {first} failed, see") as caught:
        hosts.all_do(lambda: None)
    assert type(caught.value) is expected


# --- two processes ------------------------------------------------------------------


def restored(workdir):
    setup = set_up(dataclasses.replace(load_config(Path(workdir)), devices=1))
    with Checkpoints(Path(workdir) / "checkpoints") as checkpoints:
        return checkpoints.restore(jax.eval_shape(setup.initial_state))


def until_step(workdir, step, processes):
    """Waits until the record has reached a step."""
    deadline = time.monotonic() + TIMEOUT
    path = Path(workdir) / METRICS_FILE
    while time.monotonic() < deadline:
        for process in processes:
            assert process.poll() is None, process.communicate()
        if path.exists() and path.stat().st_size:
            records = read_metrics(workdir)
            if records and records[-1]["step"] >= step:
                return
        time.sleep(0.02)
    raise TimeoutError(f"step {step} was not reached")


def test_two_processes_train_as_one_does(tmp_path, pair, tiny, run):
    config = tiny(tmp_path / "two", epochs=1.6, schedule=Schedule("constant", 0.001))
    codes, said = wait(pair(config, config))
    assert codes == [0, 0], said
    assert "4 steps of 16 on 4 cpu device(s)" in said[0][0]
    assert "4 cpu" not in said[1][0]  # the first process alone speaks
    alone, _ = run(dataclasses.replace(config, workdir=str(tmp_path / "one")))
    two = restored(tmp_path / "two")
    assert two.step == alone.steps == 4
    wanted = jax.device_get(alone.state)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
        two.state.variables,
        wanted.variables,
    )
    records = [read_metrics(tmp_path / name)[-1] for name in ("two", "one")]
    assert [record["split"] for record in records] == ["test", "test"]
    assert records[0]["examples"] == records[1]["examples"] == 360
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], rel=1e-4)
    (start,) = (tmp_path / "two" / "starts.jsonl").read_text().splitlines()
    assert json.loads(start)["devices"] == ["cpu"] * 4  # of both processes
    stored = json.loads((tmp_path / "two" / "config.json").read_text())
    assert stored["hosts"] == dataclasses.asdict(Hosts())


def test_stopped_and_killed_runs_go_on_to_the_same_bits(tmp_path, pair, tiny):
    config = tiny(tmp_path / "whole", epochs=24.0, save_epochs=4.0, eval_epochs=12.0)
    codes, said = wait(pair(config, config))
    assert codes == [0, 0], said
    config = dataclasses.replace(config, workdir=str(tmp_path / "broken"))

    processes = pair(config, config)
    until_step(config.workdir, 6, processes)
    processes[1].send_signal(signal.SIGTERM)
    codes, said = wait(processes)
    assert codes == [0, 0], said
    assert "resume with the same command" in said[0][0]
    stopped = restored(config.workdir).step
    assert 6 <= stopped < 40

    processes = pair(config, config)
    until_step(config.workdir, stopped + 6, processes)
    processes[1].kill()
    codes, said = wait(processes, hosts.HEARTBEAT_SECONDS * 2)
    assert codes[0] == LOST, said
    assert said[0][1].splitlines()[-1].startswith("train: process 0 of 2 stops: ")

    codes, said = wait(pair(config, config))
    assert codes == [0, 0], said
    whole, broken = restored(tmp_path / "whole"), restored(config.workdir)
    assert whole.step == broken.step == 60
    jax.tree.map(np.testing.assert_array_equal, broken.state, whole.state)


def test_folders_that_are_not_shared_are_found_out(tmp_path, pair, tiny):
    configs = [tiny(tmp_path / name) for name in ("first", "second")]
    codes, said = wait(pair(*configs))
    assert codes == [2, 2], said
    for _, errors in said:
        assert "is not one folder for all hosts: process 1" in errors


def test_a_mistake_on_one_host_ends_all(tmp_path, pair, tiny):
    config = tiny(tmp_path / "run")
    data = Data("folder:images", image_size=8, validation_examples=2)
    config = dataclasses.replace(config, data=data)
    folders = tmp_path / "a", tmp_path / "b"
    images(folders[0] / "images")
    folders[1].mkdir()
    codes, said = wait(pair(config, config, folders=folders))
    assert codes == [2, 2], said
    assert "process 1 failed" in said[0][1]
    assert "images" in said[1][1]
    assert not (tmp_path / "run").exists()


def images(folder):
    """Writes a data set of two classes, of twenty images each."""
    for kind in ("black", "white"):
        (folder / kind).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (8, 8), kind).save(folder / kind / f"{number}.png")


def test_processes_with_other_options_are_told_which(tmp_path, pair, tiny):
    """Else each would take its own, and their parameters would part in silence."""
    config = tiny(tmp_path / "run")
    data = dataclasses.replace(config.data, data_dir=str(tmp_path / "own"))
    other = dataclasses.replace(config, seed=7, steps_per_dispatch=3, data=data)
    codes, said = wait(pair(config, other))
    assert codes == [2, 2], said
    wanted = (
        "train: process 1 has other options: --seed was 0, is 7; "
        "--steps-per-dispatch was None, is 3\n"
    )
    assert [errors for _, errors in said] == [wanted, wanted]
    assert not (tmp_path / "run").exists()


def test_processes_with_other_devices_are_told_how_many(tmp_path, pair, tiny):
    config = tiny(tmp_path / "run")
    codes, said = wait(pair(config, config, devices=(2, 1)))
    assert codes == [2, 2], said
    wanted = (
        "train: process 1 differs in the number of devices: it has 1, and process 0 "
        "has 2\n"
    )
    assert [errors for _, errors in said] == [wanted, wanted]
    assert not (tmp_path / "run").exists()


def test_processes_that_do_not_meet_say_so(tmp_path, start, command_line, tiny):
    options = Hosts(f"localhost:{free_port()}", 2, 0, timeout=3)
    config = dataclasses.replace(tiny(tmp_path), hosts=options)
    process = start(*command_line(config), devices=2)
    codes, said = wait([process])
    assert codes == [LOST], said
    assert "did not connect within 3 s (this is process 0 of 2)" in said[0][1]
    assert said[0][1].count("\n") == 1


WAIT = """
import sys
from train import coordination, hosts
from train.config import Hosts

hosts.HEARTBEAT_SECONDS = 10
hosts.join(Hosts(sys.argv[1], 3, int(sys.argv[2]), 200))
with hosts.ending_together():
    coordination.exchange("")
    print("ready", flush=True)
    coordination.meet()
"""


@pytest.mark.parametrize("lost", [0, 2])
def test_all_others_end_with_one_line_when_one_is_killed(lost):
    """Within the heartbeat and a few seconds, also when JAX itself would abort."""
    address = f"localhost:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WAIT, address, str(index)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    victim = processes.pop(lost)
    victim.kill()
    victim.communicate()
    codes, said = wait(processes, 30)
    assert codes == [LOST, LOST], said
    for _, errors in said:
        last = errors.splitlines()[-1]
        assert re.fullmatch("train: process [0-2] of 3 stops: .* resumes the run", last)
