"""The README's code runs, and its commands are ones that the programs take."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from shiftjax import cli
from train.__main__ import parse

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(start: str) -> list[str]:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith(start)]


def test_python_blocks_run_in_order():
    """They share one namespace, as a reader's session would."""
    assert blocks("python")
    namespace: dict = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["features"]["stage3"].shape == (2, 8, 8, 64)


@pytest.mark.parametrize("line", commands("python -m train"))
def test_training_commands_parse(line):
    arguments = shlex.split(line)[3:]
    if "--help" in arguments:
        with pytest.raises(SystemExit) as exit_:
            parse(arguments)
        assert exit_.value.code == 0
    else:
        parse(arguments)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder as the commands suppose it: a photograph, and a folder of pictures."""
    (tmp_path / "pictures").mkdir()
    for name in ("photo.jpg", "pictures/one.png"):
        Image.new("RGB", (40, 30), "teal").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("train.commands.prepare_process", lambda: None)


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("line", commands("shiftjax"))
def test_library_commands_run(line, capsys):
    assert cli.main(shlex.split(line)[1:]) == 0
    printed = capsys.readouterr().out
    if "summary" in line:
        assert "95,642" in printed
        assert "16,433,792" in printed
    else:
        assert printed
