"""The command: 0 on success, 2 and one line on a mistake."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import shiftjax
from shiftjax import list_models
from shiftjax.cli.main import main

ROOT = Path(__file__).parents[3]


def test_list(capsys):
    assert main(["list"]) == 0
    captured = capsys.readouterr()
    names = captured.out.splitlines()
    assert sorted(names) == list_models()
    assert names.index("resnet20") < names.index("resnet56") < names.index("resnet110")
    (families,) = captured.err.splitlines()
    for depth in (20, 56, 110):
        assert f"shiftresnet{depth} --options expansion=NUMBER" in families


def test_list_with_wildcards(capsys):
    assert main(["list", "shiftresnet20_*"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == list_models("shiftresnet20_*")
    assert captured.err == ""


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"shiftjax {shiftjax.__version__}\n"


def test_summary(capsys):
    assert main(["summary", "shiftresnet20_e3"]) == 0
    out = capsys.readouterr().out
    assert "95,642" in out
    assert "16,433,792" in out


def test_summary_of_other_images(capsys):
    options = ["--image-size", "64", "--channels", "1"]
    assert main(["summary", "resnet20", *options]) == 0
    out = capsys.readouterr().out
    assert "64 x 64 x 1" in out
    assert f"{272_474 - 2 * 9 * 16:,}" in out  # a stem of one channel, not three


def test_summary_of_a_network_with_options(capsys):
    """ShiftResNet-20 with an expansion of 3, of which the paper counts the params."""
    assert main(["summary", "shiftresnet20", "--options", "expansion=3"]) == 0
    assert "95,642" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "expansion": "--options expansion: write it as NAME=VALUE",
        "=3": "--options =3: write it as NAME=VALUE",
        "expansion=three": "expansion='three': it must be a number",
        "expanison=3": "unknown option of shiftresnet20_e3 'expanison': did you mean",
        "channels=3": "unknown option of shiftresnet20_e3 'channels'",
        "name_or_model=3": "unknown option of shiftresnet20_e3 'name_or_model'",
        "name=3": "unknown option of shiftresnet20_e3 'name'",
        "depht=8": "unknown option of shiftresnet20_e3 'depht': did you mean 'depth'",
    }.items(),
)
def test_an_option_that_does_not_fit_is_named(capsys, text, message):
    assert main(["summary", "shiftresnet20_e3", "--options", text]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("shiftjax: ")
    assert message in line


HELP = {
    (): ["list", "summary", "List the networks by name."],
    ("list",): ["--pretrained", "shell wildcards", "(default: '*')"],
    ("summary",): [
        "Name of a network, from `shiftjax list`",
        "--image-size",
        "(default: 3)",
    ],
    ("predict",): ["shiftjax predict [-h] [PREDICT OPTIONS] IMAGE...", "(required)"],
    ("verify",): ["shiftjax verify [-h] [RELEASE...] [--all]"],
    ("evaluate",): ["shiftjax evaluate [-h] [EVALUATE OPTIONS] WEIGHTS"],
    ("convert",): ["--class-names NAME...", "--mean NUMBER...", "--std NUMBER..."],
}


@pytest.mark.parametrize("command", HELP)
def test_help_names_every_option(capsys, command):
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--help"])
    assert exit_.value.code == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())  # as one line
    for word in HELP[command]:
        assert word in out


MISTAKES = {
    "unknown model": (["summary", "resnet2O"], "did you mean 'resnet20'"),
    "family without its option": (
        ["summary", "shiftresnet20"],
        "shiftresnet20 needs --options expansion=NUMBER; or use shiftresnet20_e1",
    ),
    "such a family to convert to": (
        ["convert", "net.pth", "--model", "shiftresnet56", "-o", "net.safetensors"],
        "shiftresnet56 needs --options expansion=NUMBER; or use shiftresnet56_e1",
    ),
    "nothing matches": (["list", "vgg*"], "'vgg*': `shiftjax list` prints"),
    "no weights match": (
        ["list", "resnet50*", "--pretrained"],
        "'resnet50*': `shiftjax list --pretrained` prints",
    ),
    "image size": (["summary", "resnet20", "--image-size", "-3"], "image_size=-3"),
    "image size 0": (["summary", "resnet20", "--image-size", "0"], "image_size=0"),
    "channels": (["summary", "resnet20", "--channels", "0"], "channels=0"),
    "not a number": (["summary", "resnet20", "--channels", "x"], "--channels"),
    "unknown command": (["lst"], "unknown command 'lst': did you mean 'list'?"),
    "no pixels": (["summary", "resnet20", "--image-size", "x"], "['x']. (see "),
    "unknown option": (["summary", "resnet20", "--image-siz", "3"], "--image-size"),
    "no model": (["summary"], "summary"),
    "no command": ([], "list"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(capsys, name):
    arguments, words = MISTAKES[name]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("shiftjax: ")
    assert words in line


def test_a_mistake_is_told_once_without_utf8(capsys, monkeypatch):
    """There the box of tyro has no frame, and its title is a line."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert main(["summary", "resnet20", "--image-siz", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("shiftjax: Unrecognized options: --image-siz, 3; did you")


def test_as_a_program():
    """`python -m shiftjax.cli.main`, from another folder, with its exit code."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "shiftjax.cli.main", *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=120,
        )

    good, bad = run("list", "resnet*"), run("summary", "resnet2O")
    assert (good.returncode, good.stderr) == (0, "")
    assert sorted(good.stdout.split()) == list_models("resnet*")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("shiftjax: unknown model 'resnet2O'")
    assert bad.stderr.count("\n") == 1
