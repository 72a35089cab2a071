"""The documentation's code runs, and its commands are ones that the programs take."""

import json
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import shiftjax
from shiftjax import list_models
from shiftjax.cli import main
from shiftjax.cli.arguments import parse_command_line
from train.__main__ import parse
from train.data.sources import load_source

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "_build" not in path.parts
}
NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def code(text: str) -> list[str]:
    return blocks(text, r"(?:python|{code-cell})")


def cells(path: Path, kind: str) -> list[str]:
    notebook = json.loads(path.read_text())
    return [
        "".join(cell["source"])
        for cell in notebook["cells"]
        if cell["cell_type"] == kind
    ]


def commands(start: str) -> list[str]:
    """The command lines of all pages that start with a word, each once."""
    texts = [*PAGES.values(), *("\n\n".join(cells(p, "markdown")) for p in NOTEBOOKS)]
    shell = "\n".join(block for text in texts for block in blocks(text, "sh"))
    lines = [x.split("#")[0].strip() for x in shell.replace("\\\n", " ").splitlines()]
    return list(dict.fromkeys(x for x in lines if x.startswith(start)))


def run(sources: list[str], name: str) -> dict:
    """Runs code in one namespace, as a reader's session would."""
    namespace: dict = {"__name__": name}
    for source in sources:
        exec(compile(source, name, "exec"), namespace)
    return namespace


CHECKED = ("README.md", "docs/getting_started.md", "docs/nnx.md", "docs/operation.md")
# `make docs` runs the others that it can run.
RUN = [
    name
    for name, text in PAGES.items()
    if code(text) and (name in CHECKED or "file_format: mystnb" not in text)
]


@pytest.mark.parametrize("name", RUN)
def test_the_code_of_a_page_runs(name):
    namespace = run(code(PAGES[name]), name)
    if name == "README.md":
        assert namespace["features"]["stage3"].shape == (2, 8, 8, 64)
    if name == "docs/getting_started.md":
        assert int(namespace["logits"].argmax()) == namespace["digits"].target[7]
    if name == "docs/operation.md":  # the halo exchange, on several devices
        moved, x = namespace["moved"], namespace["x"]
        assert len(moved.sharding.device_set) > 1
        np.testing.assert_array_equal(moved, shiftjax.shift(x))
        assert np.asarray(x).std() > 0.5
    if name == "docs/nnx.md":
        norm = nnx.to_pure_dict(namespace["state"])["stem"]["norm"]
        params, statistics = (
            x["stem"]["norm"] for x in namespace["variables"].values()
        )
        jax.tree.map(np.testing.assert_array_equal, norm, params | statistics)
        assert namespace["losses"][0] > namespace["losses"][2]


def test_the_readme_lists_every_network():
    """A name that starts with "_" has the beginning of the one before it."""
    section = PAGES["README.md"].partition("## The networks")[2].partition("\n## ")[0]
    found = set()
    for row in re.findall(r"^\| `.*", section, re.MULTILINE):
        name = ""
        for word in re.findall("`(.+?)`", row):
            name = name.rpartition("_")[0] + word if word.startswith("_") else word
            found.add(name)
            if "also with 56 and 110 layers" in row:
                found |= {name.replace("20", depth) for depth in ("56", "110")}
    assert found == set(list_models())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(path):
    """And what is learned in it is learned: 1 in 2 is chance."""
    namespace = run(cells(path, "code"), path.name)
    if path.name == "fine_tuning.ipynb":
        assert namespace["accuracy"](namespace["head"]) > 0.9
        assert namespace["tuned_accuracy"] > 0.9
        assert namespace["model"].num_classes == 2
        tested = np.rint((np.asarray(namespace["test_images"]) + 1) * 127.5)
        assert len(tested) == 360
        seen = load_source("digits", "train+validation", image_size=32).images
        assert not rows(tested.astype(np.uint8)) & rows(seen)


def rows(images: np.ndarray) -> set[bytes]:
    """Returns the set of the images of an array."""
    return {image.tobytes() for image in images}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_results(path):
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


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
def images(tmp_path, monkeypatch):
    """A working directory with the images that the commands name."""
    (tmp_path / "images").mkdir()
    for name in ("photo.jpg", "images/one.png"):
        Image.new("RGB", (40, 30), "teal").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("train.commands.prepare_process", lambda *_: None)


def needs_a_checkpoint(line: str) -> bool:
    """Returns True if a command needs a file that readers do not have."""
    files = [".t7", ".pth", ".caffemodel", "weights.safetensors", "--directory weights"]
    return any(file in line for file in [*files, "draw-pairs faces"])


# One of these compiles for half a minute, and its own tests run it.
QUICK = [line for line in commands("shiftjax ") if " analyze " not in line]


@pytest.mark.parametrize("line", commands("shiftjax analyze"))
def test_other_library_commands_parse(line):
    command = parse_command_line(main.every_command(), "", shlex.split(line)[1:])
    assert command.paths


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("line", QUICK)
def test_library_commands_run(line, capsys):
    code = main.main(shlex.split(line)[1:])
    captured = capsys.readouterr()
    if needs_a_checkpoint(line):
        assert code == 2
        assert re.search("no file|no folder|does not exist", captured.err)
        return
    assert code == 0
    assert captured.out
    if line == "shiftjax evaluate shiftresnet20_e3.digits":
        assert "98.89%" in captured.out  # as the README says
    if "summary" in line:
        assert "95,642" in captured.out
        assert "16,433,792" in captured.out
