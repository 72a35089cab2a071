"""What `python -m train NAME --help` says of the configuration."""

import ast
import dataclasses
import inspect
import re

import pytest

from tests.train.configurations import as_flag, names, value_of
from train import experiments
from train.__main__ import run_command
from train.config import Config
from train.tasks import TASKS


def docstrings() -> dict[str, str]:
    """The text under each field, by dotted name, read from the source."""
    groups = {Config: ""} | {
        type(getattr(Config(), field.name)): f"{field.name}."
        for field in dataclasses.fields(Config)
        if dataclasses.is_dataclass(getattr(Config(), field.name))
    }
    found = {}
    for group, prefix in groups.items():
        (definition,) = ast.parse(inspect.getsource(group)).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                assert isinstance(field.target, ast.Name)
                assert isinstance(text.value, ast.Constant)
                found[f"{prefix}{field.target.id}"] = text.value.value
    return found


@pytest.fixture
def help_text(capsys, monkeypatch) -> str:
    """The output of `python -m train digits --help`, in one line without frames."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        run_command(["digits", "--help"])
    assert stopped.value.code == 0
    return " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


def test_every_field_is_explained_in_the_help(help_text):
    texts = docstrings()
    assert set(texts) == set(names())
    for name, text in texts.items():
        flag = as_flag(name)
        assert re.search(
            rf"{re.escape(flag)}[ ,].{{1,80}}?{re.escape(' '.join(text.split()))} ",
            help_text,
        ), flag


def test_the_help_lists_the_tasks(help_text):
    assert f"--task: {', '.join(TASKS)}." in help_text


def test_the_help_has_the_defaults_of_the_experiment(help_text):
    run = experiments.load("digits")
    for name in ("seed", "epochs", "log_steps", "schedule.learning_rate"):
        found = re.search(rf"{as_flag(name)} .*?\(default: (.*?)\)", help_text)
        assert found
        assert float(found[1]) == value_of(run, name)
