"""Commands beside training on two processes: they give what one process gives."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from shiftjax.errors import InputError
from tests.train.processes import TIMEOUT, free_port, wait, words_of
from tests.train.runs import copy_of
from train import commands, comparison, evaluation, hosts
from train.__main__ import parse
from train.config import Hosts
from train.evaluation import evaluate_run
from train.logging.records import read_metrics


@pytest.fixture
def both(start):
    """Returns a function that runs a command on two processes of two devices."""

    def both(*words, other=()):
        options = [Hosts(f"localhost:{free_port()}", 2, 0, TIMEOUT)]
        options += [dataclasses.replace(options[0], index=1)]
        each = [words, (*words, *other)]
        return wait(
            [
                start(*map(str, own), *words_of(hosts), devices=2)
                for own, hosts in zip(each, options, strict=True)
            ]
        )

    return both


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("split", "examples"), [("test", 360), ("train", 40)])
def test_two_processes_evaluate_as_one_does(both, finished, split, examples):
    """360 examples in a step of 512 for four devices, each of them counted once."""
    workdir = finished.config.workdir
    codes, texts = both("evaluate", "--workdir", workdir, "--split", split)
    assert codes == [0, 0], texts
    (line, _), (other, _) = texts
    assert other == ""  # the first process alone prints
    alone = evaluate_run(workdir, split, devices=1)
    found = re.fullmatch(
        rf"{split} top-1 (.*)%  loss (.*)  {examples} examples, step 20\n", line
    )
    assert found, line
    assert found[1] == f"{100 * alone['top1']:.2f}"
    assert float(found[2]) == pytest.approx(alone["loss"], abs=1e-4)  # as printed


def test_two_processes_resume_a_run(both, finished, tmp_path):
    """Four devices trained the whole run; here two of each process end it."""
    config = copy_of(finished, tmp_path / "run")
    shutil.rmtree(Path(config.workdir) / "checkpoints" / "20")
    codes, texts = both("resume", "--workdir", config.workdir)
    assert codes == [0, 0], texts
    assert f"resuming {config.workdir} at step 15" in texts[0][0]
    assert texts[1][0] == ""
    last = read_metrics(config.workdir)[-1]
    assert (last["step"], last["split"], last["examples"]) == (20, "test", 360)
    assert last["top1"] == pytest.approx(finished.outcome.test["top1"], abs=1.1 / 360)
    assert last["loss"] == pytest.approx(finished.outcome.test["loss"], rel=1e-4)


def test_processes_that_evaluate_other_splits_are_told_so(both, finished):
    words = "evaluate", "--workdir", finished.config.workdir
    codes, texts = both(*words, other=("--split", "train"))
    assert codes == [2, 2], texts
    wanted = "train: process 1 has other options: --split was test, is train\n"
    assert [errors for _, errors in texts] == [wanted, wanted]


@pytest.mark.parametrize("command", ["evaluate", "resume"])
def test_the_commands_take_the_options_of_hosts(command):
    options = Hosts("first:8476", 4, 3, 7)
    command = parse([command, "--workdir", "run", *words_of(options)])
    assert command.hosts == options


@pytest.mark.parametrize("command", [commands.Evaluate, commands.Resume])
def test_the_commands_join_a_cluster_by_themselves(command):
    assert command("run").hosts == Hosts()


@pytest.mark.usefixtures("quick")
def test_processes_that_read_other_checkpoints_are_told_so(finished, monkeypatch):
    """As when the run is being trained, and one process found a newer one."""

    def exchange(text, *_):
        return [text, "15"]

    monkeypatch.setattr(evaluation.coordination, "exchange", exchange)
    for name in ("compare", "compare_facts"):
        monkeypatch.setattr(comparison, name, lambda _: None)
    monkeypatch.setattr(hosts, "all_do", lambda action: action())
    with pytest.raises(InputError, match=r"steps 20, 15 in .*: give one .* --step"):
        evaluate_run(finished.config.workdir, devices=1)
