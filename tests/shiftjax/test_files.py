"""Files are written whole or not at all; a failure is an InputError of one line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from shiftjax import InputError, convert, image_files
from shiftjax.apps import export, face_pairs, figures, predict, stylize
from shiftjax.convert import torch_files
from shiftjax.files import user_path, write_atomically
from shiftjax.weights import Card, Pretrained, open_pretrained, save
from tests.shiftjax.conftest import random_variables


def test_a_file_replaces_another(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"longer than the new content")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", [False, True])
def test_what_cannot_be_written(tmp_path, folder):
    """Into a folder that does not exist, or in place of a folder."""
    path = tmp_path / "a" / "net.onnx"
    if folder:
        path.mkdir(parents=True)
    with pytest.raises(InputError, match=r"net\.onnx cannot be written: \w+"):
        write_atomically(path, b"new")
    assert [x for x in tmp_path.rglob("*") if x.is_file()] == []


def test_a_tilde_is_the_home(tmp_path, rng, monkeypatch):
    """In every function that takes the path of a user."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    options = {"depth": 8, "num_classes": 1}
    card = Card("resnet20", options, ("a",), 8, (0.5,) * 3, (0.5,) * 3)
    images = np.zeros((1, 8, 8, 3), np.float32)
    variables = random_variables(rng, card.model(), images)
    save("~/net.safetensors", variables, card)
    assert open_pretrained("~/net.safetensors").card.options["depth"] == 8
    state_dict = convert.to_torch(variables, "resnet20", **options)
    save_file(state_dict, home / "torch.safetensors")
    converted = convert.from_torch("~/torch.safetensors", "resnet20", **options)
    assert converted["params"].keys() == variables["params"].keys()
    with pytest.raises(
        InputError, match=r"net\.safetensors: it is not a file of torch"
    ):
        torch_files.read_torch_file("~/net.safetensors")
    monkeypatch.setattr(export, "to_stablehlo", lambda *_, **__: b"program")
    size = export.export(Pretrained(card.model(), variables, card), "~/net.stablehlo")
    assert (home / "net.stablehlo").stat().st_size == size
    figures.save_plot(lambda path: Path(path).write_text("plot"), "~/plot.png")
    assert (home / "plot.png").read_text() == "plot"
    for name in ("Ada/Ada_0001", "Ada/Ada_0002", "Bo/Bo_0001"):
        file = home / "people" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)
    assert len(image_files.find_images("~/people")) == 3
    assert len(list(predict._files(["~/people", "~/people/Bo/Bo_0001.png"]))) == 4
    assert stylize.targets(["~/people/Bo"], "~/out") == [
        (home / "people" / "Bo" / "Bo_0001.png", home / "out" / "Bo_0001.png")
    ]
    pairs = face_pairs.draw_pairs("~/people", folds=1, count=1)
    face_pairs.write_pairs("~/pairs.txt", pairs)
    assert face_pairs.read_pairs("~/pairs.txt", "~/people", min_folds=1) == pairs
    assert list(tmp_path.iterdir()) == [home]


def test_a_name_that_begins_with_a_tilde_stays():
    """Where no user has it, as the names of unsaved documents."""
    assert user_path("~$photo.png") == Path("~$photo.png")
    with pytest.raises(InputError, match=r"there is no file ~\$net\.safetensors"):
        open_pretrained("~$net.safetensors")
