"""The program: its help, its commands, and one line for each mistake of a user's."""

import dataclasses
import io
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import tyro

from shiftjax.cli.main import OWN, main
from train import commands, experiments, loop
from train.__main__ import COMMANDS, parse, run_command
from train.config import Schedule
from train.data.sources import load_source

TINY = ["--model.name", "resnet20", "--model.overrides", "depth", "8"]


@pytest.fixture(autouse=True)
def _own_settings(quick, monkeypatch):
    """Keeps the settings of this process, which hosts other tests."""
    monkeypatch.setattr(commands, "prepare_process", lambda *_: None)


def mistake(capsys, *words: object) -> str:
    """Runs the program, expects it to refuse, and returns the line that it says."""
    assert run_command([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("train: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    assert "Traceback" not in captured.err
    assert not re.search("[│╭╮╰╯─]", captured.err)
    return captured.err


@dataclasses.dataclass(frozen=True)
class Echo:
    """Print a name."""

    name: tyro.conf.Positional[str]

    def run(self, console):
        console.print(self.name, markup=False)


@pytest.mark.parametrize("program", [main, run_command])
def test_names_of_files_are_printed_as_they_are(program, monkeypatch):
    """Without a picture of a dog, and with a byte that is not UTF-8."""
    output = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict", write_through=True)
    for table in (OWN, COMMANDS):
        monkeypatch.setitem(table, "echo", Echo)
    monkeypatch.setattr(sys, "stdout", output)
    assert program(["echo", "img:dog:1/caf\udce9.jpg"]) == 0
    assert output.buffer.getvalue() == rb"img:dog:1/caf\udce9.jpg" + b"\n"


# --- help ---------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_the_overview_has_every_experiment_and_command(word, capsys):
    assert run_command([word]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    others = sorted(set(experiments.names()) - {"digits"})
    assert names == ["digits", *others, *sorted(COMMANDS)]
    for name in experiments.names():
        summary = experiments.describe(name).splitlines()[0]
        assert any(name in line and summary in line for line in lines)


@pytest.mark.parametrize(("name", "kind"), COMMANDS.items())
def test_the_commands_explain_their_options(name, kind, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        run_command([name, "--help"])
    assert not stopped.value.code
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert kind.__doc__ in text
    assert "--workdir [" not in text  # brackets are for what is optional
    for field in dataclasses.fields(kind):
        flag = field.name.replace("_", "-")
        assert flag in text or flag.upper() in text or field.name == "name"


def test_without_a_name_the_digits_are_trained():
    digits = experiments.load("digits")
    assert parse([]) == digits
    assert parse(["--epochs", "3"]) == dataclasses.replace(digits, epochs=3.0)
    assert parse(["cifar10"]) == experiments.load("cifar10")


# --- mistakes -----------------------------------------------------------------------


STEPS = ("--schedule.kind", "steps", "--schedule.boundaries")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["digit"], ["experiment or command 'digit'", "did you mean 'digits'?"]),
        (["evalute"], ["did you mean 'evaluate'?"]),
        (["cifar1O"], ["did you mean 'cifar10'"]),
        (["digits", "--epoch", "3"], ["--epoch", "did you mean --epochs"]),
        (["digits", "extra"], ["extra"]),
        (["digits", "--epochs"], ["--epochs"]),
        (["digits", "--epochs", "ten"], ["--epochs", "ten"]),
        (["digits", "--epochs", "-1"], ["--epochs -1.0: it must be"]),
        (["digits", "--epochs", "nan"], ["--epochs nan: it must be"]),
        (["digits", "--log-steps", "1.5"], ["--log-steps", "1.5"]),
        (["digits", "--model.dtype", "float16"], ["--model.dtype", "bfloat16"]),
        (["digits", "--model.overrides", "depth"], ["--model.overrides"]),
        (["digits", "--batch-size", "6"], ["batch_size=6", "multiple of 4"]),
        (["digits", "--devices", "5"], ["devices=5", "has 4"]),
        (["digits", "--optimizer.freeze-statistics"], ["needs --optimizer.freeze"]),
        (
            ["digits", "--augment.crop-decoder", "opencv"],
            ["--augment.crop-decoder needs --augment.random-resized-crop"],
        ),
        (["digits", "--schedule.kind", "steps"], ["needs --schedule.boundaries"]),
        (
            ["digits", *STEPS, "1.5", "8", "--schedule.warmup-epochs", "2"],
            ["--schedule.boundaries 1.5: it is within the warm-up of 2.0 epochs"],
        ),
        (["digits", "--model.name", "resnet21"], ["did you mean 'resnet20'"]),
        (["digits", "--data.source", "digit"], ["did you mean 'digits'"]),
        (["digits", "--data.source", "folder:no/such"], ["no/such"]),
        (["digits", "--workdir", "s4://bucket/run"], ["s4://", "or below gs://"]),
        (["evaluate", "--workdir", "s4://bucket/run"], ["s4://", "or below gs://"]),
        (["evaluate"], ["--workdir"]),
        (["resume"], ["--workdir"]),
        (["resume", "--workdir", "none"], ["none holds no run"]),
        (["folds", "--workdir", "none", "no"], ["none holds no run"]),
        (["release", "--workdir", "none"], ["--tag"]),
        (["release", "--workdir", "none", "--tag", "a"], ["none holds no run"]),
        (["zoo", "--only", "resnet2O.cifar10"], ["did you mean 'resnet20.cifar10'"]),
        (["zoo", "--jobs", "0"], ["--jobs 0: it must be at least 1"]),
        (["prepare"], ["python -m train prepare --help"]),
        (["prepare", "cifar11"], ["did you mean 'cifar10'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_said_in_one_line(words, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = mistake(capsys, *words)
    for text in told:
        assert text in line
    assert not list(tmp_path.iterdir())  # nothing is written


def test_a_mistake_in_the_network_is_said_in_one_line(capsys, tmp_path):
    words = ["--model.name", "resnet20", "--model.overrides", "depth", "9"]
    line = mistake(capsys, "digits", *words, "--workdir", tmp_path / "run")
    assert "depth=9: it must be 6 n + 2" in line


def test_an_override_may_be_a_word():
    words = "digits --model.overrides depth 8 momentum 0.5 implementation reference"
    overrides = {"depth": 8, "momentum": 0.5, "implementation": "reference"}
    assert parse(words.split()).model.overrides == overrides


def test_a_missing_data_set_is_named_with_what_to_run(capsys, tmp_path):
    place = ["--workdir", tmp_path / "run", "--data.data-dir", tmp_path]
    line = mistake(capsys, "cifar10", *place)
    assert "cifar10" in line
    assert str(tmp_path) in line
    assert "train prepare cifar10" in line


@pytest.mark.parametrize("place", ["a file", "under a file"])
def test_a_workdir_that_cannot_be_written_is_named(place, capsys, tmp_path):
    path = tmp_path / "file"
    path.write_text("text")
    workdir = path if place == "a file" else path / "run"
    line = mistake(capsys, "digits", *TINY, "--workdir", workdir)
    assert f"--workdir {workdir} cannot be written" in line
    assert path.read_text() == "text"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_workdir_that_the_locale_cannot_name_is_refused_at_once(
    encoding, capsys, tmp_path, monkeypatch
):
    """By Latin-1 it would have a name for Python, and another one for Orbax."""
    monkeypatch.setattr(os, "fsencode", lambda path: str(path).encode(encoding))
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: encoding)
    for word in ("digits", "evaluate", "resume"):
        line = mistake(capsys, word, "--workdir", tmp_path / "café")
        assert "caf\\xe9' cannot be named here" in line
        assert f"encoded as {encoding}: set LC_ALL=C.UTF-8, or use ASCII" in line
    assert not list(tmp_path.iterdir())


def test_a_workdir_whose_name_is_no_utf8_is_refused_at_once(capsys, tmp_path):
    workdir = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    line = mistake(capsys, "digits", "--workdir", workdir)
    assert r"caf\udce9' cannot be named here" in line


def test_the_workdir_of_another_run_is_refused(capsys, finished, command_line):
    other = dataclasses.replace(finished.config, seed=1)
    line = mistake(capsys, *command_line(other))
    assert "holds another run: --seed was 0, is 1" in line


def test_a_run_that_diverges_ends_with_the_step_and_an_advice(
    capsys, tiny, command_line, tmp_path
):
    schedule = Schedule("cosine", 1e30, warmup_epochs=1)
    config = tiny(tmp_path / "run", schedule=schedule, save_epochs=0.4)
    assert run_command(command_line(config)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("train: ")
    assert captured.err.count("\n") == 1
    assert re.search(r"step \d+ ", captured.err)
    assert "--schedule.learning-rate" in captured.err


@pytest.mark.parametrize("code", [0, 75])
def test_a_run_that_was_asked_to_stop_ends_with_its_code(
    code, tiny, command_line, tmp_path, stop_at
):
    words = command_line(tiny(tmp_path / "run", stopped_exit_code=code))
    stop_at(3)
    assert run_command(words) == code
    stop_at(0)  # never
    assert run_command(words) == 0


@pytest.mark.parametrize("kind", ["empty", "missing", "damaged"])
def test_a_folder_that_cannot_be_evaluated_is_named(kind, capsys, tmp_path):
    workdir = tmp_path / "run"
    if kind != "missing":
        workdir.mkdir()
    if kind == "damaged":
        (workdir / "config.json").write_text('{"seed": ')
    line = mistake(capsys, "evaluate", "--workdir", workdir)
    assert str(workdir) in line
    assert ("cannot be read" if kind == "damaged" else "holds no run") in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--split", "tests"], "unknown split 'tests': did you mean 'test'"),
        (["--step", "7"], "no checkpoint of step 7"),
        (["--devices", "0"], "--devices 0: it must be at least 1"),
        (["--devices", "5"], "devices=5: this process has 4"),
    ],
)
def test_what_cannot_be_evaluated_of_a_run_is_named(words, told, capsys, finished):
    line = mistake(capsys, "evaluate", "--workdir", finished.config.workdir, *words)
    assert told in line


def test_a_mistake_is_the_exit_code_of_the_process(start):
    process = start("digit")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("train: unknown experiment or command 'digit'")
    assert err.count("\n") == 1


# --- what is printed ----------------------------------------------------------------


def test_a_finished_run_says_its_accuracy_and_what_to_do_next(
    capsys, finished, command_line, tmp_path
):
    """The command that it names prints the same accuracy."""
    workdir = tmp_path / "run"
    shutil.copytree(finished.config.workdir, workdir)
    config = dataclasses.replace(finished.config, workdir=str(workdir))
    assert run_command(command_line(config)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    accuracy = f"test top-1 {100 * finished.outcome.test['top1']:.2f}%"
    loss = f"loss {finished.outcome.test['loss']:.4f}"
    assert f"{accuracy}  {loss}  360 examples\n" in captured.out
    assert Path(re.search(r"curves in (.*)\n", captured.out)[1]).is_file()
    (command,) = re.findall(r"next: python -m train (.*)\n", captured.out)
    assert run_command(command.split()) == 0
    loss = finished.outcome.test["loss"]
    wanted = f"{accuracy}  loss {loss:.4f}  360 examples, step 20\n"
    assert capsys.readouterr().out == wanted


def test_a_split_and_a_step_are_evaluated_as_asked(capsys, finished):
    words = ["--split", "train", "--step", "15", "--devices", "4"]
    assert run_command(["evaluate", "--workdir", finished.config.workdir, *words]) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(
        r"train top-1 \d+\.\d\d%  loss \d\.\d{4}  40 examples, step 15\n", out
    )


def test_an_unfinished_run_says_how_to_resume(capsys, monkeypatch):
    """The workdir as it is, also with what the console could take for markup."""
    outcome = loop.Outcome(None, 1234, False, {})  # type: ignore[arg-type]
    monkeypatch.setattr(loop, "train", lambda run, console: outcome)
    assert run_command(["digits", "--workdir", "runs/[red]a"]) == 0
    assert capsys.readouterr().out == (
        "stopped after step 1,234, saved in runs/[red]a: resume with the same command\n"
    )


@pytest.mark.parametrize("program", ["shiftjax", "train"])
def test_a_missing_package_is_one_line_with_its_extra(capsys, monkeypatch, program):
    """Also one that is imported only when the data are opened."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)

    def load(*_, **__):
        load_source("digits", "test", image_size=8)

    monkeypatch.setattr("train.evaluation.evaluate_weights", load)
    monkeypatch.setattr(commands, "train_run", load)
    if program == "shiftjax":
        code, name = main(["evaluate", "resnet20.digits"]), "shiftjax evaluate"
    else:
        code, name = run_command(["digits"]), "python -m train"
    assert code == 2
    needs = f"`{name}` needs sklearn: pip install 'shiftjax[train]'"
    assert capsys.readouterr().err == f"{program}: {needs}\n"


def test_a_file_that_the_system_denies_is_named(capsys, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied", "/data/cifar10")

    monkeypatch.setattr(commands.Prepare, "run", denied)
    said = mistake(capsys, "prepare", "cifar10")
    assert said == "train: /data/cifar10: Permission denied\n"


def test_another_fault_of_the_system_keeps_its_traceback(monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error", "/data/cifar10")

    monkeypatch.setattr(commands.Prepare, "run", broken)
    with pytest.raises(OSError, match="Input/output error"):
        run_command(["prepare", "cifar10"])
