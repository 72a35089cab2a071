"""The experiments: each can be run as its docstring says."""

import re
import sys
from pathlib import Path

import pytest

from shiftjax import list_models
from shiftjax.errors import UnknownNameError
from train import config, experiments
from train.__main__ import parse, run_command
from train.commands import Prepare
from train.data.sources import SOURCES
from train.zoo import entries

NAMES = experiments.names()


def commands(text: str) -> list[list[str]]:
    """The command lines in a docstring; a backslash at the end continues a line."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = (line.strip() for line in joined.splitlines())
    return [line.split() for line in lines if line.startswith("python -m train")]


def test_each_file_is_an_experiment():
    files = Path(experiments.__file__).parent.glob("*.py")
    assert sorted(path.stem for path in files if path.stem != "__init__") == NAMES
    assert "digits" in NAMES  # what runs without a name


def test_a_new_file_is_all_that_a_new_experiment_takes(tmp_path, monkeypatch, capsys):
    text = (Path(experiments.__file__).parent / "digits.py").read_text()
    text = text.replace("CONFIG = Config(", "CONFIG = Config(\n    seed=7,")
    (tmp_path / "sevenths.py").write_text(text)
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "train.experiments.sevenths", raising=False)
    run = parse(["sevenths", "--epochs", "2"])
    assert (run.seed, run.epochs) == (7, 2.0)
    assert experiments.command(run) == "python -m train sevenths --epochs 2.0"
    assert run_command(["--help"]) == 0
    words = capsys.readouterr().out.split()
    assert words[words.index("sevenths") + 1] == "ShiftResNet-20,"


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_can_be_run(name):
    run = experiments.load(name)
    config.validate(run)
    assert run.model.name in list_models()
    assert run.data.source.partition(":")[0] in SOURCES


def test_experiments_have_workdirs_of_their_own():
    assert len({experiments.load(name).workdir for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_names_the_command(name):
    text = experiments.describe(name)
    assert ["python", "-m", "train", name] in commands(text)
    summary = text.splitlines()[0]
    assert summary.endswith(".")
    assert len(summary) <= 85  # with the quotes, a line; the overview shows it


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_in_the_docstring_are_understood(name):
    parsed = [parse(words[3:]) for words in commands(experiments.describe(name))]
    runs = [command for command in parsed if isinstance(command, config.Config)]
    assert experiments.load(name) in runs
    for run in runs:
        config.validate(run)
    prepared = {command.name for command in parsed if isinstance(command, Prepare)}
    assert prepared <= {name}


def test_the_papers_schedule_is_the_papers():
    """And those of the zoo: section 4.1 of the paper, and its authors' code."""
    (words,) = (w for w in commands(experiments.describe("cifar10")) if "82" in w)
    run = parse(words[3:])
    paper = entries.paper(experiments.load("cifar10"))
    assert config.differences(paper, run) == []
    schedule = run.schedule
    values = (schedule.kind, schedule.learning_rate, schedule.factor)
    assert values == ("steps", 0.1, 0.1)
    assert schedule.boundaries == (82, 124)
    assert schedule.warmup_epochs == 0
    assert run.batch_size == 128


def test_an_unknown_experiment_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        experiments.load("digit")
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10'"):
        experiments.describe("cifar1O")
