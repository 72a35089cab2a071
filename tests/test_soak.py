"""The soak with few kills."""

import collections
import os
import sys

import pytest

from tests import soak
from tests.soak import Kill, Run

KILLS, SEED = 1, 0  # the first process while it saves


@pytest.mark.skipif(
    "SHIFTJAX_SOAK" not in os.environ, reason="SHIFTJAX_SOAK=1 runs it, in two minutes"
)
def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path, capsys):
    code = soak.main(kills=KILLS, seed=SEED, folder=tmp_path / "soak")
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert f"{KILLS} kills in " in printed
    assert "0 faults" in printed


def test_all_kinds_of_kills_come_equally_often():
    drawn = soak.plan(180, 1)
    counts = collections.Counter((kill.moment, kill.victims) for kill in drawn)
    assert set(counts.values()) == {20}
    assert len(counts) == 9
    assert drawn == soak.plan(180, 1) != soak.plan(180, 2)


@pytest.fixture
def made(tmp_path):
    """Returns a function that makes a run whose processes run some code."""

    def made(code: str) -> Run:
        return Run(tmp_path / "run", [sys.executable, "-c", code])

    for step in ("10", "20"):
        (tmp_path / "run" / "checkpoints" / step).mkdir(parents=True)
    return made


def test_a_lost_checkpoint_is_found(made):
    run = made("")
    run.look()
    assert run.faults == []
    (run.workdir / "checkpoints" / "20").rmdir()
    run.look()
    assert run.faults == ["checkpoint 20 is lost, 10 is left"]


@pytest.mark.parametrize(
    ("step", "wrong"), [(20, []), (10, ["resumed at 10, not at checkpoint 20"])]
)
def test_a_start_at_an_older_checkpoint_is_found(made, step, wrong):
    """The first start waits to be killed, the second one notes the step."""
    run = made(
        "import pathlib, sys, time; path = pathlib.Path(sys.argv[2])\n"
        "if not (path / 'killed').exists(): time.sleep(600)\n"
        f"if sys.argv[-1] == '0': (path / 'starts.jsonl').write_text"
        f"""('{{"step": {step}}}\\n')"""
    )
    kill = Kill("starting", "both", 0.5)
    run.strike(kill, 1.0)
    (run.workdir / "killed").touch()
    run.start()
    run.end(60, {})
    assert run.faults == wrong
    assert (kill.restarts, kill.resumed) == (1, not wrong)
    assert soak.table([kill]).splitlines()[
        4
    ] == "| starting | both | 1 | 1 |  | 0 | " + ("0 |" if wrong else "1 |")


def test_a_soak_that_is_stopped_knows_its_kills(made):
    first, second = made(""), made("")
    second.read_record()
    assert (second.kills, second.faults) == ([], [])
    first.kills = [Kill("training", "both", 0.5, 1.5, True, 2, True)]
    first.kills.append(Kill("saving", "first", 0.25))
    first.faults = ["a fault"]
    first.write_record()
    second.read_record()
    assert (second.kills, second.faults) == (first.kills, first.faults)
    (second.workdir / "starts.jsonl").write_text('{"step": 0}\n')
    second.look()  # the start after the second kill
    assert second.faults == ["a fault"]
    assert second.kills[1].resumed


def test_a_process_that_does_not_end_is_found_and_killed(made):
    run = made("import time; time.sleep(600)")
    run.start()
    run.end(0.1, {0: -9, 1: -9})
    assert run.faults == [f"process {index} lived for 0 s more" for index in range(2)]
    assert run.has_ended()


def test_an_exit_code_that_no_kill_explains_is_found(made):
    run = made("print('the reason'); raise SystemExit(3)")
    run.start()
    run.end(60, {1: 3})
    assert run.faults == ["process 0 ended with 3: the reason\n"]
