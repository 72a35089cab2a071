"""Checkpoints on a disk that fails or is full, and in a process that is killed."""

import os
import re
import signal
import time

import numpy as np
import pytest

from shiftjax.errors import InputError
from tests.train.checkpoint_states import CHECKPOINTER, make_state, run_python
from train.checkpointing import Checkpoints


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


def test_a_disk_that_was_full_for_a_moment_costs_one_save(
    tmp_path, monkeypatch, caplog
):
    """The next save is on the disk when it returns, as that of a last step must be."""
    save, calls = CHECKPOINTER.save_checkpointables_async, []

    def full_at_first(*args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            raise OSError(28, os.strerror(28))
        return save(*args, **kwargs)

    monkeypatch.setattr(CHECKPOINTER, "save_checkpointables_async", full_at_first)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        checkpoints.save(2, make_state(2), {})
        assert checkpoints.steps() == [2]
    (said,) = caplog.messages
    assert said.endswith("No space left on device; step 2 is saved instead")


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
