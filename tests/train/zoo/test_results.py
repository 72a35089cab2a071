"""The page, the table and the picture of results, from a manifest."""

import dataclasses
import json
import re
import types
from pathlib import Path

import pytest
import safetensors
from PIL import Image

from shiftjax import InputError, create_model, summarize
from shiftjax.registry import VARIANTS
from shiftjax.releases import manifest
from shiftjax.releases.manifest import Release, Run
from train import commands
from train.__main__ import run_command
from train.zoo import speeds
from train.zoo.entries import ENTRIES
from train.zoo.picture import draw
from train.zoo.published import PUBLIC_ZOO, PUBLISHED, find_published
from train.zoo.results import family, page, short_table, update, weights_table

ROOT = Path(__file__).parents[3]
RUNS = (
    Run(
        0,
        {"top1": 0.9},
        epochs=160.0,
        hours=1.5,
        hardware="2 cores",
        command="go",
        log="logs/a.gz",
    ),
    Run(1, {"top1": 0.91}, epochs=160.0, hours=2.5, hardware="1 NVIDIA H200"),
)
SHIFT = Release(
    "shiftresnet20_e3.cifar10_paper",
    "f",
    1,
    "0" * 64,
    95642,
    16433792,
    "tfds:cifar10",
    "paper",
    RUNS,
)
FAST = dataclasses.replace(
    SHIFT,
    name="shiftresnet20_e3.cifar10",
    recipe="fast",
    runs=(Run(0, {"top1": 0.92}, epochs=30.0),),
)
PLAIN = dataclasses.replace(
    SHIFT,
    name="resnet20.cifar100",
    dataset="tfds:cifar100",
    params=278324,
    runs=(Run(0, {"top1": 0.665, "top5": 0.9}, epochs=160.0),),
)
OWN = dataclasses.replace(PLAIN, name="resnet20.toys", dataset="folder:toys")
RELEASES = {r.name: r for r in (PLAIN, SHIFT, FAST, OWN)}


def test_published_figures_are_the_papers():
    """A few, read off its tables; each network of the zoo's lists has its own."""
    assert PUBLISHED["shiftresnet20_e3.cifar10"].paper == 90.08
    assert PUBLISHED["shiftresnet56_e6.cifar10"].later == 93.49
    assert PUBLISHED["shiftresnet110_e9.cifar100"].paper == 74.10
    assert PUBLISHED["resnet56.cifar100"].paper == 69.27
    assert PUBLISHED["resnet20.cifar10_block2_8"].paper == 88.33
    assert find_published("resnet20.cifar10_paper", "paper").paper == 91.35
    assert find_published("resnet20.cifar10", "fast").paper == 91.35
    assert find_published("resnet20.toys", "paper") is None
    assert len(PUBLISHED) == 2 * (12 + 3 + 9)


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_published_networks_cost_what_is_written(depth):
    """To the digit; the entries of the zoo are the networks meant.

    Of more than 20 layers the reduced ones: test_models.py counts the others.
    """
    for entry in ENTRIES:
        figures = find_published(entry.name, entry.recipe)
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


def test_the_public_zoo_is_cited():
    """Top-1 as its README has it; its ResNets are ours, to the digits it gives."""
    top1 = {public.name: tuple(public.top1.values()) for public in PUBLIC_ZOO}
    assert top1["ResNet-20"] == (92.60, 68.83)
    assert top1["ResNet-56"] == (94.37, 72.63)
    assert top1["ShuffleNetV2 x0.5"] == (90.13, 67.82)
    assert top1["MobileNetV2 x0.5"] == (92.88, 70.88)
    for public, name in zip(PUBLIC_ZOO, ("resnet20", "resnet56"), strict=False):
        figures = PUBLISHED[f"{name}.cifar10"]
        assert round(figures.params / 1e6, 2) == public.params / 1e6
        assert round(figures.macs / 1e6, 2) == public.macs / 1e6


def test_the_short_table():
    """Means by hand: of 0.9 and 0.91."""
    lines = short_table(RELEASES).splitlines()
    assert lines[2] == "| `resnet20.toys` | 278,324 | 16.4 M | 66.50 | 1 | paper |  |"
    ours = "| `shiftresnet20_e3.cifar10"
    assert lines[3].startswith(f"{ours}` |")
    assert lines[3].endswith("| 16.4 M | 92.00 | 1 | fast | 90.08 |")
    assert lines[4].startswith(f"{ours}_paper` |")
    assert lines[4].endswith("| 16.4 M | 90.50 ± 0.71 | 2 | paper | 90.08 |")
    assert lines[5].endswith("| 66.50 | 1 | paper | 66.25 |")


def test_the_table_of_weights_has_every_release():
    """Those of other tasks come last; of these, face networks have an accuracy."""
    style = dataclasses.replace(
        SHIFT, name="a_stylizer.starry", size=2_345_678, runs=(Run(0, {"loss": 1.0}),)
    )
    faces = dataclasses.replace(
        SHIFT, name="facenet.lfw", runs=(Run(0, {"accuracy": 0.8, "auc": 0.9}),)
    )
    releases = {release.name: release for release in (style, faces, SHIFT)}
    sizes = {style.name: "256", faces.name: "90", SHIFT.name: "32"}
    lines = weights_table(releases, sizes).splitlines()
    row = "| `shiftresnet20_e3.cifar10_paper` | 95,642 | 16.4 M | 90.50 ± 0.71 |"
    assert lines[2:] == [
        f"{row} 32 | 0.00 |  |",
        "| `a_stylizer.starry` | 95,642 | 16.4 M |  | 256 | 2.35 |  |",
        "| `facenet.lfw` | 95,642 | 16.4 M | 80.00 | 90 | 0.00 |  |",
    ]


def test_the_pages_are_those_of_the_releases():
    """`python -m train results` was called after the last release and benchmark."""
    folder = ROOT / "checkpoints"
    releases = manifest.read(folder)
    measured = speeds.read_speeds(ROOT / "benchmarks" / "results")
    sizes = {}
    for release in releases.values():
        with safetensors.safe_open(folder / release.file, "np") as file:
            sizes[release.name] = str(json.loads(file.metadata()["card"])["image_size"])
    readme = (ROOT / "README.md").read_text()
    weights = (ROOT / "docs" / "weights.md").read_text()
    assert (ROOT / "docs" / "results.md").read_text() == page(releases)
    assert f"\n\n{short_table(releases)}\n\n<!-- end" in readme
    assert f"\n\n{weights_table(releases, sizes, measured)}\n\n<!-- end" in weights


def test_the_page_has_every_release_and_run():
    text = page(RELEASES)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## toys",
        "## CIFAR-10",
        "## CIFAR-100",
        "## How they were trained",
    ]
    assert "95,642 | 16.43 M | 92.00 (1) | fast | 30 | 90.08 | 89.56 |\n" in text
    assert "16.43 M | 90.50 ± 0.71 (2) | paper | 160 | 90.08 | 89.56 |\n" in text
    assert "| 66.50 (1) | paper | 160 | 66.25 |  |\n" in text
    assert "| ResNet-20 | 0.27 M | 40.81 M | 92.60 |" in text
    assert "| ResNet-20 | 0.27 M | 40.81 M | 68.83 |" in text
    assert text.count("(https://github.com/chenyaofo/pytorch-cifar-models)") == 3
    assert (
        "| 0 | 90.00 | 1.50 | 2 cores | `go` | [log](../checkpoints/logs/a.gz) |"
        in (text)
    )
    assert "| 1 | 91.00 | 2.50 | 1 NVIDIA H200 |" in text
    assert "images/s" not in text


def test_shift_networks_are_compared_with_the_resnet_of_their_depth():
    """By hand: 95,642 of 278,324 parameters, 92.0 and 90.5 of 91.25%."""
    plain = dataclasses.replace(
        PLAIN, name="resnet20.cifar10", dataset="tfds:cifar10", macs=40_812_160,
        runs=(Run(0, {"top1": 0.9125}, epochs=40.0),),
    )  # fmt: skip
    deeper = dataclasses.replace(FAST, name="shiftresnet56_e3.cifar10")
    text = page({r.name: r for r in (plain, SHIFT, FAST, deeper, PLAIN)})
    table = text.split("Relative to `resnet20.cifar10`:\n\n")[1].split("\n\n")[0]
    assert table.splitlines()[2:] == [
        "| `shiftresnet20_e3.cifar10` | 0.34 | 0.40 | +0.75 |",
        "| `shiftresnet20_e3.cifar10_paper` | 0.34 | 0.40 | -0.75 |",
    ]
    assert text.count("Relative to") == 1  # no shift network has CIFAR-100 here


@pytest.fixture
def benchmark(tmp_path):
    """A folder with a benchmark of two batch sizes: 128 images in 50 ms, say."""

    def table(batch_size, times, dtype="float32"):
        facts = {"params": 95642, "macs": 16433792}
        ours = {"name": "shiftjax", "times": times, "facts": facts}
        other = {"name": "ResNet-20", "times": [9.0], "facts": {"params": 1}}
        about = {"model": "shiftresnet20_e3", "dtype": dtype, "batch_size": batch_size}
        return {"facts": about, "rows": [other, ours]}

    tables = [table(1, [0.001]), table(128, [0.04, 0.05, 0.09])]
    tables.append(table(256, [0.001], "bfloat16"))
    report = {
        "command": "python -m benchmarks inference",
        "machine": {"cpu": "Some CPU", "cores": 2},
        "tables": tables,
    }
    (tmp_path / "inference-cpu.json").write_text(json.dumps(report))
    return tmp_path


def test_speeds_are_those_that_were_measured(benchmark):
    """128 images in 0.05 s, the median; none of a network of other parameters."""
    measured = speeds.read_speeds(benchmark)
    assert measured is not None
    assert measured.find(SHIFT) == pytest.approx(2560)
    assert measured.find(PLAIN) is None
    assert measured.find(dataclasses.replace(SHIFT, params=101_402)) is None
    text = weights_table(RELEASES, dict.fromkeys(RELEASES, "32"), measured)
    assert "| 90.50 ± 0.71 | 32 | 0.00 | 2,560 |" in text
    assert "| 66.50 | 32 | 0.00 |  |" in text
    assert (
        "Images per second: 128 images, float32, on 2 cores of Some CPU: "
        "`python -m benchmarks inference`." in text
    )
    (benchmark / "inference-cpu.json").write_text("{}")
    with pytest.raises(InputError, match="is not a benchmark report"):
        speeds.read_speeds(benchmark)
    assert speeds.read_speeds(benchmark / "nowhere") is None


def test_the_picture_is_drawn(tmp_path):
    """Draws no release, only the published numbers, and both recipes."""
    only = {SHIFT.name: SHIFT}
    stylizer = dataclasses.replace(SHIFT, dataset="", runs=(Run(0, {"loss": 1.0}),))
    same = only | {"shift_stylizer.a": stylizer, OWN.name: OWN}
    pictures = []
    for i, releases in enumerate(({}, only, same, RELEASES)):
        draw(releases, tmp_path / f"{i}.png")
        with Image.open(tmp_path / f"{i}.png") as file:
            assert file.width == 1800
            pictures.append(file.tobytes())
    none, one, again, all_ = pictures
    assert one == again  # neither of these has a panel
    assert len({none, one, all_}) == 3


def test_the_table_between_the_markers_is_made_anew():
    readme = "a\n<!-- results: by x -->\nold\n<!-- end of results -->\nb\n"
    table = short_table(RELEASES)
    new = update(readme, table)
    assert new.startswith("a\n<!-- results: by x -->\n\n| weights |")
    assert new.endswith("|\n\n<!-- end of results -->\nb\n")
    assert update(new, table) == new
    assert update("no markers", table) == "no markers"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("resnet20", "resnet"), ("depthwise_resnet56", "depthwise_resnet")],
)
def test_families(name, kind):
    assert family(name) == kind


def test_the_command_writes_all(tmp_path, capsys, monkeypatch):
    card = types.SimpleNamespace(image_size=48)
    opened = types.SimpleNamespace(card=card)
    monkeypatch.setattr("shiftjax.weights.open_pretrained", lambda *_: opened)
    monkeypatch.setattr(commands, "prepare_process", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    assert run_command(["results"]) == 2
    assert "manifest.json does not exist" in capsys.readouterr().err
    (tmp_path / "checkpoints").mkdir()
    manifest.write_manifest(tmp_path / "checkpoints", RELEASES)
    assert run_command(["results"]) == 2
    assert "run it in a checkout" in capsys.readouterr().err
    docs = tmp_path / "docs"
    docs.mkdir()
    pages = tmp_path / "README.md", docs / "weights.md", docs / "zoo.md"
    for path in pages:
        path.write_text("<!-- results: by x -->\n<!-- end of results -->\n")
    some = {"shiftresnet20_e3": VARIANTS["shiftresnet20_e3"]}
    monkeypatch.setattr("train.zoo.results.VARIANTS", some)
    assert run_command(["results"]) == 0
    for path in pages[:2]:
        assert "shiftresnet20_e3.cifar10" in path.read_text()
    assert "| 48 |" in pages[1].read_text()
    rows = pages[2].read_text().splitlines()[4:-2]
    assert rows == ["| `shiftresnet20_e3` | 95,642 | 16.4 M | 32 |"]
    assert (docs / "results.md").read_text() == page(RELEASES)
    assert (docs / "accuracy.png").stat().st_size > 10_000
