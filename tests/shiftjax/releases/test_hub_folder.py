"""The folder of a release for the hub: its metadata, its page, and its weights."""

import dataclasses
import json
import shutil
import sys

import jax
import numpy as np
import pytest

import shiftjax
from shiftjax.cli.main import main
from shiftjax.errors import InputError
from shiftjax.releases import manifest
from shiftjax.releases.hub_folder import model_card, write_hub_folder
from shiftjax.weights import Pretrained, open_pretrained

yaml = pytest.importorskip("yaml", reason="it comes with the hub's client, an extra")
hub = pytest.importorskip("huggingface_hub", reason="the hub's client is an extra")

NAME = "shiftresnet20_e1.cifar100"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "new" / "folder"
    return write_hub_folder(NAME, path, repository="ada/shift")


def parts(text):
    """The metadata between the first two lines of ---, and the page."""
    empty, metadata, page = text.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(metadata), page


def test_the_metadata_have_the_accuracy_of_the_weights(folder):
    metadata, _ = parts((folder / "README.md").read_text())
    task = {"type": "image-classification"}
    dataset = {"type": "uoft-cs/cifar100", "name": "CIFAR-100", "split": "test"}
    assert metadata == {
        "license": "apache-2.0",
        "library_name": "shiftjax",
        "pipeline_tag": "image-classification",
        "tags": ["jax", "flax", "shift"],
        "datasets": ["uoft-cs/cifar100"],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": NAME,
                "results": [
                    {
                        "task": task,
                        "dataset": dataset,
                        "metrics": [
                            {"type": "accuracy", "value": 0.5904, "name": "test top-1"},
                            {"type": "accuracy", "value": 0.8572, "name": "test top-5"},
                        ],
                    }
                ],
            }
        ],
    }


def test_the_hubs_client_reads_the_card(folder):
    card = hub.ModelCard.load(folder / "README.md")
    assert card.data.library_name == "shiftjax"
    assert [result.metric_value for result in card.data.eval_results] == [
        0.5904,
        0.8572,
    ]
    assert card.data.model_name == NAME


def test_the_page_says_how_to_load_and_what_was_measured(folder):
    _, page = parts((folder / "README.md").read_text())
    assert page.startswith(f"\n# {NAME}\n")
    assert f'load_pretrained(\n    "{NAME}", directory="hf:ada/shift"\n)' in page
    assert "40,756 parameters, 5,953,792\nmultiply-adds" in page
    assert "| 0 | 59.04% | 85.72% | 40 | 1 core of AMD EPYC | `python -m train" in page


@pytest.mark.usefixtures("quick")
def test_the_folder_is_loaded_like_the_release(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "manifest.json",
        "model.safetensors",
    ]
    model, variables = shiftjax.load_pretrained(NAME, directory=folder)
    _, wanted = shiftjax.load_pretrained(NAME)
    images = np.sin(np.arange(32 * 32 * 3, dtype=np.float32)).reshape(1, 32, 32, 3)
    apply = jax.jit(model.apply)
    np.testing.assert_array_equal(apply(variables, images), apply(wanted, images))
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "shiftresnet20_e1"
    assert len(config["class_names"]) == 100


@pytest.mark.parametrize(
    ("architecture", "pipeline", "test"),
    [
        ("shift_facenet", "image-feature-extraction", {"loss": 1.5, "accuracy": 0.9}),
        ("stylizer", "image-to-image", {"loss": 2.25}),
    ],
)
def test_networks_without_classes_have_no_accuracy_of_classes(
    architecture, pipeline, test
):
    """The set that a face network is tested on is not the one that it has learned."""
    card = dataclasses.replace(
        open_pretrained(NAME).card, architecture=architecture, dataset="folder:photos"
    )
    run = manifest.Run(seed=3, test=test)
    release = dataclasses.replace(
        manifest.find(NAME), name=f"{architecture}.mine", runs=(run,)
    )
    model = shiftjax.create_model(architecture)
    pretrained = Pretrained(model, {}, card, release)
    metadata, page = parts(model_card(pretrained, release, "ada/shift"))
    assert metadata["pipeline_tag"] == pipeline
    assert metadata.keys().isdisjoint({"model-index", "metrics", "datasets"})
    assert "trained on photos" in page
    metric, value = list(test.items())[-1]
    assert f"| seed | {metric} |" in page
    assert f"| 3 | {value} |" in page


def test_the_command_says_how_to_upload(tmp_path, capsys):
    out = tmp_path / "my digits"
    words = ["hub", "shiftresnet20_e3.digits", "-o", str(out)]
    assert main([*words, "--repository", "ada/digits"]) == 0
    assert capsys.readouterr().out == f"{out}: next, hf upload ada/digits '{out}'\n"
    assert manifest.release_names(out) == ["shiftresnet20_e3.digits"]


def test_a_manifest_of_other_releases_is_not_overwritten(tmp_path, folder):
    """The folder may be written again, but not in place of a folder of releases."""
    release = manifest.find(NAME)
    for place, releases in {
        "others": {"resnet20.mine": dataclasses.replace(release, name="resnet20.mine")},
        "releases": {NAME: release},
    }.items():
        (tmp_path / place).mkdir()
        manifest.write_manifest(tmp_path / place, releases)
        with pytest.raises(InputError, match=f"{place} has the release .*another"):
            write_hub_folder(NAME, tmp_path / place)
        assert manifest.read(tmp_path / place) == releases
        assert [path.name for path in (tmp_path / place).iterdir()] == [manifest.FILE]
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    assert write_hub_folder(NAME, again) == again


@pytest.mark.parametrize("tests", [[], [{}], [{"top1": 0.5}, {"accuracy": 0.5}]])
def test_a_release_without_results_has_no_model_card(tests):
    runs = tuple(manifest.Run(seed, test) for seed, test in enumerate(tests))
    pretrained = open_pretrained(NAME)
    release = dataclasses.replace(pretrained.release, runs=runs)
    with pytest.raises(InputError, match=f"{NAME} has no result"):
        model_card(pretrained, release, "ada/shift")


def test_what_cannot_be_written(tmp_path, folder, monkeypatch):
    with pytest.raises(InputError, match=r"did you mean 'shiftresnet20_e1\.cifar100'"):
        write_hub_folder("shiftresnet20_e1.cifar1000", tmp_path)
    with pytest.raises(InputError, match="give the name of a release"):
        write_hub_folder(str(folder / "model.safetensors"), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file cannot be written"):
        write_hub_folder(NAME, tmp_path / "file")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'shiftjax\[hub\]'"):
        write_hub_folder(NAME, tmp_path / "other")
    assert not (tmp_path / "other").exists()
