"""Weights from Caffe: files built by hand, and the authors' network in NumPy."""

import importlib.util
import sys
import types

import jax
import numpy as np
import pytest

from shiftjax import InputError, MissingFileError, create_model
from shiftjax.apps.predict import normalize_images
from shiftjax.cli.main import main
from shiftjax.convert import from_caffe
from shiftjax.convert.caffe import PREPARATION, imagenet_classes
from shiftjax.convert.caffe_files import read_caffe_file
from shiftjax.weights import Card, open_pretrained
from tests.shiftjax.convert import caffe_writer as writer

pytestmark = pytest.mark.usefixtures("quick")

SMALL = {"width": 3, "blocks": (2, 1)}


def steps(blocks):
    """The authors' numbers of the blocks, and their strides."""
    yield 0, 0, 1
    for stage, count in enumerate(blocks, 1):
        for index in range(1, count + 1):
            yield stage, index, 2 if index == 1 else 1


@pytest.fixture
def blobs(rng):
    """Returns a function that makes random blobs of a network, of the authors' names.

    Like theirs, a scale and bias contain the BatchNorm, whose sums stand beside them.
    """

    def make(width, blocks, classes=5):
        found = {}

        def add(name, *shapes, low=-1.0, high=1.0):
            for shape in shapes:
                index = sum(key.rpartition(".")[0] == name for key in found)
                value = rng.uniform(low, high, shape).astype(np.float32)
                found[f"{name}.{index}"] = value

        def norm(at, channels):
            add(f"bn{at}", channels)
            add(f"bn{at}", channels, 1, low=0.5, high=1.5)
            add(f"scale{at}", channels, channels)

        add("conv0", (width, 3, 3, 3))
        channels = width
        for stage, index, stride in steps(blocks):
            features = width * 2 ** max(stage - 1, 0)
            at = f"{stage}_{index}"
            norm(at, channels)
            if stride == 2:
                add(f"conv/shortcut{stage}", (features, channels, 1, 1))
            add(f"conv{at}/1", (features, channels, 1, 1))
            norm(f"{at}/1", features)
            add(f"shift{at}/2", *[(features, 1, 1, 1)] * 2, low=-2, high=2)
            add(f"conv{at}/3", (features, features, 1, 1))
            channels = features
        norm("/bnlast", channels)
        add("fc/linear", (classes, channels), classes)
        return found

    return make


def caffe(blobs, blocks, x):
    """The authors' deployed network, [batch, channels, height, width], BGR."""

    def conv1x1(name, x, stride=1):
        x = x[:, :, ::stride, ::stride]
        return np.einsum("oi,bihw->bohw", blobs[f"{name}.0"][:, :, 0, 0], x)

    def active(name, x):
        scale, bias = (blobs[f"{name}.{i}"][:, None, None] for i in (0, 1))
        return np.maximum(x * scale + bias, 0)

    def shift(name, x, stride):
        dx, dy = (blobs[f"{name}.{i}"].ravel() for i in (0, 1))
        out = np.zeros_like(x)
        height, width = x.shape[2:]
        for c, h, w in np.ndindex(out.shape[1:]):
            top, left = np.floor(h + dy[c]), np.floor(w + dx[c])
            for i in (top, top + 1):
                for j in (left, left + 1):
                    if 0 <= i < height and 0 <= j < width:
                        share = (1 - abs(h + dy[c] - i)) * (1 - abs(w + dx[c] - j))
                        out[:, c, h, w] += share * x[:, c, int(i), int(j)]
        return out[:, :, ::stride, ::stride]

    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    x = np.einsum("bihwyx,oiyx->bohw", windows[:, :, ::2, ::2], blobs["conv0.0"])
    for stage, index, stride in steps(blocks):
        at = f"{stage}_{index}"
        y = active(f"scale{at}", x)
        if stride == 2:
            x = conv1x1(f"conv/shortcut{stage}", y, 2)
        y = active(f"scale{at}/1", conv1x1(f"conv{at}/1", y))
        x = x + conv1x1(f"conv{at}/3", shift(f"shift{at}/2", y, stride))
    x = active("scale/bnlast", x).mean((2, 3))
    return x @ blobs["fc/linear.0"].T + blobs["fc/linear.1"]


def test_a_converted_network_is_the_authors(blobs, rng, tmp_path):
    """Theirs takes (BGR - mean) * scale, by their prototxt; ours takes RGB."""
    own = blobs(**SMALL)
    images = rng.integers(0, 256, (2, 13, 11, 3), np.uint8)
    theirs = (images[..., ::-1] - np.array([103.94, 116.78, 123.68])) * 0.017352
    wanted = caffe(own, SMALL["blocks"], theirs.transpose(0, 3, 1, 2))

    (tmp_path / "net.caffemodel").write_bytes(writer.network(own))
    variables = from_caffe(tmp_path / "net.caffemodel", "as_resnet_w32", **SMALL)
    card = Card("as_resnet_w32", {}, (), **PREPARATION)
    model = create_model("as_resnet_w32", num_classes=5, **SMALL)
    got = jax.jit(model.apply)(variables, normalize_images(images, card))
    # float32 through a dozen layers
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_the_statistics_are_those_of_the_file(blobs):
    """Caffe stores sums with their weight; mean and variance are the quotients."""
    own = blobs(**SMALL)
    own["bn1_2/1.2"] = np.zeros(1, np.float32)  # Caffe takes 0 for 0 / 0
    stats = from_caffe(own, "as_resnet_w32", **SMALL)["batch_stats"]
    for ours, theirs in (("stem_block", "0_0"), ("stage2_block01", "2_1")):
        for leaf, index in (("mean", 0), ("var", 1)):
            wanted = own[f"bn{theirs}/1.{index}"] / own[f"bn{theirs}/1.2"]
            np.testing.assert_allclose(stats[ours]["shift_norm"][leaf], wanted, 1e-6)
    assert not stats["stage1_block02"]["shift_norm"]["var"].any()


def test_the_blobs_of_a_file(tmp_path):
    """Dimensions packed or not; what is not a blob is skipped."""
    first = np.arange(6, dtype=np.float32).reshape(2, 1, 3) / 4
    second = np.array([-1.5], np.float32)
    layers = writer.layer("one/a", writer.blob(first), writer.blob(second, False))
    many = np.arange(200, dtype=np.float32)  # a length of two bytes
    path = tmp_path / "net.caffemodel"
    path.write_bytes(
        writer.layer("data") + layers + writer.layer("b", writer.blob(many))
    )
    found = read_caffe_file(path)
    assert list(found) == ["one/a.0", "one/a.1", "b.0"]
    for array, wanted in zip(found.values(), (first, second, many), strict=True):
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, wanted)


def test_files_that_are_cut_or_foreign(blobs, tmp_path):
    own = blobs(**SMALL)
    whole, path = writer.network(own), tmp_path / "net.caffemodel"
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"net\.caffemodel (is not|does not fit)"):
            from_caffe(path, "as_resnet_w32", **SMALL)
    for data in (b"\x80\x02" * 9, b"PK\x03\x04" + bytes(40), b"name: 'net'", b"\xff"):
        for file in (path, tmp_path / "net.npz"):
            file.write_bytes(data)
            with pytest.raises(InputError, match="is not a file of Caffe weights"):
                read_caffe_file(file)
    with pytest.raises(InputError, match=r"net\.pth: it must end in \.caffemodel or"):
        read_caffe_file("net.pth")
    with pytest.raises(MissingFileError, match="there is no file"):
        read_caffe_file(tmp_path / "missing.npz")


# By the place of a byte in the table of contents: a later version of the format,
# encrypted data, patched data, and an unknown compression.
@pytest.mark.parametrize(("place", "value"), [(6, 99), (8, 1), (8, 32), (10, 77)])
def test_an_archive_with_a_damaged_byte(tmp_path, place, value):
    """Other exceptions than those of an archive that is cut short."""
    path = tmp_path / "net.npz"
    np.savez(path, **{"conv0.0": np.ones(3, np.float32)})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + place] = value
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"net\.npz is not a file of Caffe weights"):
        read_caffe_file(path)


def test_what_does_not_fit_is_named(blobs):
    own = blobs(**SMALL)
    del own["shift1_1/2.1"], own["bn/bnlast.2"]
    own["scale1_2.0"] = np.zeros(4, np.float32)
    own["conv9.0"] = np.zeros(1, np.float32)
    with pytest.raises(InputError) as error:
        from_caffe(own, "as_resnet_w32", **SMALL)
    what, _, problems = str(error.value).partition(": ")
    assert what == "the dict of blobs does not fit as_resnet_w32"
    assert sorted(problems.split("; ")) == [
        "bn/bnlast.2 [1] is missing",
        "conv9.0 is unknown",
        "scale1_2.0 is [4], not [3]",
        "shift1_1/2.1 [3, 1, 1, 1] is missing",
    ]
    with pytest.raises(InputError, match="resnet20 cannot be converted from Caffe"):
        from_caffe(own, "resnet20")


def test_the_command(blobs, tmp_path, capsys, monkeypatch):
    """The card of the authors' preparation, with torchvision's names of the classes."""
    own = blobs(32, (3, 4, 6, 3), 1000)
    source, out = tmp_path / "net.npz", tmp_path / "net.safetensors"
    np.savez(source, **own, prototxt="layer {}")
    words = ["convert", str(source), "--model", "as_resnet_w32", "-o", str(out)]
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "torchvision" else find_spec(name, *rest),
    )
    assert main([*words, "--image-size", "192"]) == 0
    assert "as_resnet_w32, 1000 classes" in capsys.readouterr().out
    card = open_pretrained(str(out)).card
    assert (card.image_size, card.resize, card.license) == (192, 256, "BSD-2-Clause")
    assert PREPARATION["image_size"] == 224
    # RGB: the numbers of the prototxt, which are for BGR, turned around
    np.testing.assert_allclose(np.multiply(card.mean, 255), [123.68, 116.78, 103.94])
    np.testing.assert_allclose(np.multiply(card.std, 255), [1 / 0.017352] * 3)
    assert card.class_names == tuple(map(str, range(1000)))

    names = [f"name {i}" for i in range(1000)]
    weights = types.SimpleNamespace(
        DEFAULT=types.SimpleNamespace(meta={"categories": names})
    )
    models = types.SimpleNamespace(ResNet50_Weights=weights)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name)
    assert imagenet_classes() == tuple(names)
