"""The page, the table and the picture of results, from a manifest."""

import dataclasses
import re

import pytest
from PIL import Image

from shiftjax import create_model, manifest, summarize
from shiftjax.manifest import Release, Run
from train import commands
from train.__main__ import main
from train.zoo.entries import ENTRIES
from train.zoo.published import PUBLISHED, find
from train.zoo.results import draw, family, page, short_table, update

RUNS = (
    Run(0, {"top1": 0.9}, hours=1.5, hardware="2 cores", command="go", log="logs/a.gz"),
    Run(1, {"top1": 0.91}, hours=2.5, hardware="1 NVIDIA H200"),
)
SHIFT = Release(
    "shiftresnet20_e3.cifar10",
    "f",
    1,
    "",
    95642,
    16433792,
    "tfds:cifar10",
    "paper",
    RUNS,
)
PLAIN = dataclasses.replace(
    SHIFT,
    name="resnet20.cifar100",
    dataset="tfds:cifar100",
    params=278324,
    runs=(Run(0, {"top1": 0.665, "top5": 0.9}),),
)
OWN = dataclasses.replace(PLAIN, name="resnet20.toys", dataset="folder:toys")
RELEASES = {r.name: r for r in (PLAIN, SHIFT, OWN)}


def test_published_figures_are_the_papers():
    """A few, read off its tables; each network of the zoo's lists has its own."""
    assert PUBLISHED["shiftresnet20_e3.cifar10"].paper == 90.08
    assert PUBLISHED["shiftresnet56_e6.cifar10"].later == 93.49
    assert PUBLISHED["shiftresnet110_e9.cifar100"].paper == 74.10
    assert PUBLISHED["resnet56.cifar100"].paper == 69.27
    assert PUBLISHED["resnet20.cifar10_block2_8"].paper == 88.33
    assert find("resnet20.cifar10_modern", "modern").paper == 91.35
    assert find("resnet20.toys", "paper") is None
    assert len(PUBLISHED) == 2 * (12 + 3 + 9)


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_published_networks_cost_what_is_written(depth):
    """To the digit; the entries of the zoo are the networks meant.

    Of more than 20 layers the reduced ones: test_models.py counts the others.
    """
    for entry in ENTRIES:
        figures = find(entry.name, entry.recipe)
        if not re.search(rf"resnet{depth}\D", entry.name) or figures is None:
            continue
        if depth > 20 and not entry.overrides:
            continue
        classes = 10 if entry.dataset == "cifar10" else 100
        model = create_model(entry.model, num_classes=classes, **entry.overrides)
        counted = summarize(model)
        assert (figures.params, figures.macs) == (counted.params, counted.macs)
        assert figures.dataset == entry.dataset


def test_every_network_of_the_paper_is_in_the_zoo():
    assert {entry.name for entry in ENTRIES if entry.recipe == "fast"} >= set(PUBLISHED)


def test_the_short_table():
    """Means by hand: of 0.9 and 0.91."""
    lines = short_table(RELEASES).splitlines()
    assert lines[2] == "| `resnet20.toys` | 278,324 | 16.4 M | 66.50 | 1 |  |"
    assert (
        "`shiftresnet20_e3.cifar10` | 95,642 | 16.4 M | 90.50 ± 0.71 | 2 | 90.08"
        in (lines[3])
    )
    assert lines[4].endswith("| 66.50 | 1 | 66.25 |")


def test_the_page_has_every_release_and_run():
    text = page(RELEASES)
    assert "## CIFAR-10\n" in text
    assert "## CIFAR-100\n" in text
    assert "## toys\n" in text
    assert "| 90.50 ± 0.71 | 90.08 | 89.56 |" in text
    assert "| 66.50 | 90.00 | 66.25 |  |" in text  # with top-5, where there is one
    assert (
        "| 0 | 90.00 | 1.50 | 2 cores | `go` | [log](../checkpoints/logs/a.gz) |"
        in (text)
    )
    assert "| 1 | 91.00 | 2.50 | 1 NVIDIA H200 |" in text


def test_the_picture_is_drawn(tmp_path):
    """Also of no release, with the paper's figures alone: other pixels."""
    draw(RELEASES, tmp_path / "a.png")
    draw({}, tmp_path / "b.png")
    pictures = []
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as file:
            pictures.append((file.size, file.tobytes()))
    assert pictures[0][0] == pictures[1][0]
    assert pictures[0][1] != pictures[1][1]


def test_the_table_between_the_markers_is_made_anew():
    readme = "a\n<!-- results: by x -->\nold\n<!-- end of results -->\nb\n"
    new = update(readme, RELEASES)
    assert new.startswith("a\n<!-- results: by x -->\n\n| weights |")
    assert new.endswith("|\n\n<!-- end of results -->\nb\n")
    assert update(new, RELEASES) == new
    assert update("no markers", RELEASES) == "no markers"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("resnet20", "resnet"), ("depthwise_resnet56", "depthwise_resnet")],
)
def test_families(name, kind):
    assert family(name) == kind


def test_the_command_writes_all(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(commands, "prepare_process", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert main(["results"]) == 2
    assert "manifest.json is not there" in capsys.readouterr().err
    (tmp_path / "checkpoints").mkdir()
    manifest.write(tmp_path / "checkpoints", RELEASES)
    assert main(["results"]) == 2
    assert "run it in a checkout" in capsys.readouterr().err
    (tmp_path / "docs").mkdir()
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results: by x -->\n<!-- end of results -->\n")
    assert main(["results"]) == 0
    assert "shiftresnet20_e3.cifar10" in readme.read_text()
    assert (tmp_path / "docs" / "results.md").read_text() == page(RELEASES)
    assert (tmp_path / "docs" / "accuracy.png").stat().st_size > 10_000
