"""Damaged checkpoints, which are skipped and can be saved again."""

import os
import re
import shutil
from pathlib import Path

import pytest

from shiftjax.errors import InputError
from tests.train.checkpoint_states import (
    TEMPLATE,
    assert_same,
    data_file,
    make_state,
    save_steps,
)
from train.checkpointing import Checkpoints


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


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of three checkpoints, which must stay as it is."""
    folder = tmp_path_factory.mktemp("saved")
    save_steps(folder, [1, 2, 3])
    return folder


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_falls_back_and_the_step_can_be_saved_again(
    saved, tmp_path, caplog, kind
):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
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
