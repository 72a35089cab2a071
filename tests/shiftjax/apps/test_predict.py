"""Prediction: preparation, batches, probabilities; and the commands that use it."""

import dataclasses
import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image, ImageFont

from shiftjax import InputError, MissingFileError, image_files
from shiftjax.apps import predict
from shiftjax.apps.contact_sheet import draw_contact_sheet, fitted
from shiftjax.apps.predict import Classifier, Prediction, normalize_images, top_classes
from shiftjax.apps.verify import sample_logits
from shiftjax.cli.main import main
from shiftjax.releases import manifest
from shiftjax.weights import Card, Pretrained, digest, open_pretrained, save
from tests.shiftjax.conftest import random_variables

pytestmark = pytest.mark.usefixtures("quick")

NAME = "shiftresnet20_e1.toys"
CARD = Card(
    architecture="shiftresnet20_e1",
    options={"depth": 8, "num_classes": 3},
    class_names=("ball", "car", "kite"),
    image_size=8,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
)


@pytest.fixture(scope="module")
def pretrained(seed):
    rng, model = np.random.default_rng(seed), CARD.model()
    variables = random_variables(rng, model, np.zeros((1, 8, 8, 3), np.float32))
    return Pretrained(model, variables, CARD)


@pytest.fixture(scope="module")
def released(pretrained, tmp_path_factory):
    """A folder of releases."""
    out = tmp_path_factory.mktemp("released")
    path = out / f"{NAME}.safetensors"
    size, sha256 = digest(save(path, pretrained.variables, CARD))
    logits = sample_logits(open_pretrained(str(path)))
    costs = 11_306, 1_000  # of which the first is counted below
    entry = manifest.Release(
        NAME, path.name, size, sha256, *costs, "toys", "", (), logits
    )
    manifest.write_manifest(out, {NAME: entry})
    return out


@pytest.fixture
def folder(released, tmp_path):
    """A copy of the folder, which a test may change."""
    return shutil.copytree(released, tmp_path / "weights")


@pytest.fixture
def photos(tmp_path, rng):
    """Pictures of several sizes and formats, in folders."""
    inside = tmp_path / "photos" / "deep"
    inside.mkdir(parents=True)
    sizes = {"a.png": (8, 8), "b.jpg": (40, 30), "deep/c.webp": (9, 31)}
    for name, size in sizes.items():
        pixels = rng.integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path / "photos"


def test_pictures_are_normalised_by_the_card():
    """By hand: (255 / 255 - 0.5) / 0.2 = 2.5, (0 - 0.4) / 0.25 = -1.6, 1/3 - 0.3."""
    images = np.array([[[[255, 0, 85]]]], np.uint8)
    actual = normalize_images(images, CARD)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual[0, 0, 0], [2.5, -1.6, 1 / 9], rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 5, 7])
def test_batches_change_nothing(pretrained, rng, monkeypatch, count):
    """The last one is filled up with zeros, which are taken out again."""
    monkeypatch.setattr(predict, "BATCH_SIZE", 5)
    images = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    actual = Classifier(pretrained).logits(images)
    assert actual.shape == (count, 3)
    for logits, image in zip(actual, images, strict=True):
        x = normalize_images(image[None], CARD)
        expected = pretrained.model.apply(pretrained.variables, x)[0]
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 8, 8, 1), np.uint8), ((8, 8, 3), np.uint8), ((2, 8, 8, 3), np.float32)],
)
def test_pictures_of_another_shape_or_dtype(pretrained, shape, dtype):
    with pytest.raises(InputError, match=r"be uint8 \[images, height, width, 3\]"):
        Classifier(pretrained).logits(np.zeros(shape, dtype))


def test_probabilities_by_hand():
    """exp of 0, ln 2, ln 5 are 1, 2, 5 of 8; equal ones keep the order of classes."""
    logits = np.array([[0, np.log(2), np.log(5)], [1, 1, 1], [1000, 0, -1000]])
    third, equal, sure = top_classes(logits, ("a", "b", "c"), 2)
    assert third == (("c", 0.625), ("b", 0.25))
    assert equal == (("a", 0.333333), ("b", 0.333333))
    assert sure == (("a", 1.0), ("b", 0.0))


def test_files_and_folders_of_pictures(pretrained, photos):
    classifier = Classifier(pretrained)
    found = list(classifier.predict([photos / "b.jpg", photos], count=2))
    names = [str(photos / n) for n in ("b.jpg", "a.png", "b.jpg", "deep/c.webp")]
    assert [p.path for p in found] == names
    assert all(len(p.classes) == 2 for p in found)
    with Image.open(photos / "a.png") as file:
        pixels = np.asarray(file)[None]
    (expected,) = top_classes(classifier.logits(pixels), CARD.class_names, 2)
    assert [n for n, _ in found[1].classes] == [n for n, _ in expected]


def test_paths_without_pictures(pretrained, tmp_path):
    classifier = Classifier(pretrained)
    with pytest.raises(MissingFileError, match="there is no image"):
        list(classifier.predict([tmp_path / "no.png"]))
    with pytest.raises(InputError, match="has no images"):
        list(classifier.predict([tmp_path]))


def test_a_strip_shows_every_picture(photos):
    """Its first pixel of a picture is the picture's; the rest of the sheet is white."""
    Image.new("RGB", (4, 4), "red").save(photos / "red.png")
    classes = (("ball", 0.75), ("car", 0.25))
    shown = [Prediction(str(photos / "red.png"), classes)] * 7
    sheet = draw_contact_sheet(shown)
    assert sheet.getpixel((0, 0)) == (255, 255, 255)
    reds = (np.asarray(sheet) == (255, 0, 0)).all(-1).sum()
    assert reds == 7 * 192 * 192
    assert sheet.width == 5 * 200 + 8  # five in a row
    assert draw_contact_sheet([]).size == (200 + 8, 8)  # a row of none


@pytest.mark.parametrize("kind", ["16 bits", "RGBA", "LA", "palette"])
def test_a_strip_shows_what_the_network_sees(tmp_path, kind):
    """40000 of 16 bits is 40000 // 256 of 8; hidden colors are seen by both."""
    file = tmp_path / "a.png"
    image = {
        "16 bits": lambda: Image.fromarray(np.full((192, 192), 40000, np.uint16)),
        "RGBA": lambda: Image.new("RGBA", (192, 192), (200, 30, 60, 0)),
        "LA": lambda: Image.new("LA", (192, 192), (90, 0)),
        "palette": lambda: Image.new("P", (192, 192), 0),
    }[kind]()
    if kind == "palette":
        image.putpalette([10, 20, 30])
    image.save(file, **({"transparency": 0} if kind == "palette" else {}))
    colors = {"16 bits": (156,) * 3, "RGBA": (200, 30, 60), "LA": (90,) * 3}
    sheet = np.asarray(draw_contact_sheet([Prediction(str(file), ())]))
    expected = colors.get(kind, (10, 20, 30))
    assert (sheet[8:200, 8:200] == expected).all()
    assert (image_files.decode(file, 192, 3) == expected).all()


def test_a_strip_names_every_image(tmp_path):
    """Below it and within its width; with plain letters for those a font lacks."""

    def sheet(*names, classes=()):
        files = [tmp_path / name for name in names]
        for file in files:
            Image.new("RGB", (4, 4), "red").save(file)
        shown = [Prediction(str(file), classes) for file in files]
        return np.asarray(draw_contact_sheet(shown).convert("L"), int)

    short = sheet("e?.png")
    assert short.shape == (8 + 192 + 20 + 2 * 8, 208)
    assert (short[201:] < 128).any()
    assert (short[201:] != sheet("f.png")[201:]).any()
    for name in ("\u00e9\u65e5.png", "e\u0301\ud55c.png", "e\n.png"):
        np.testing.assert_array_equal(sheet(name), short)
    label = "no room for it " * 9
    long = sheet("x" * 99 + ".png", "y" * 99 + ".png", classes=((label, 0.0),))
    for left, right in ((0, 8), (200, 208), (400, 408)):
        assert (long[:, left:right] == 255).all()


def test_a_long_text_is_cut_in_the_middle():
    font = ImageFont.load_default(14)
    short = fitted("begin" + "x" * 50 + "end.png", font, 120)
    assert short.startswith("begin")
    assert short.endswith("end.png")
    assert short.count("\u2026") == 1
    assert 100 < font.getlength(short) <= 120
    assert fitted("begin.png", font, 120) == "begin.png"


# The commands.


def run(capsys, *words):
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_predicts(capsys, folder, photos, tmp_path):
    strip = tmp_path / "strip.png"
    options = ["--model", NAME, "--directory", folder]
    words = ["predict", photos, *options, "--top", "2", "--plot", strip]
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == str(photos / "a.png")
    assert lines[1].split()[0].endswith("%")
    assert lines[1].split()[1] in CARD.class_names
    assert len(lines) == 3 * (1 + 2)
    with Image.open(strip) as sheet:
        assert sheet.width == 3 * 200 + 8
    code, out, err = run(capsys, *words, "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert records[0]["path"] == str(photos / "a.png")
    assert set(records[0]["classes"][0]) == {"class", "probability"}


def test_the_command_verifies(capsys, folder, monkeypatch):
    code, _, err = run(capsys, "verify", NAME, "--directory", folder)
    assert code == 2
    assert err.count("\n") == 1
    assert "but the manifest has" in err
    from shiftjax import summarize

    summary = summarize(CARD.model(), 8)
    costs = {"params": summary.params, "macs": summary.macs}
    entry = manifest.find(NAME, folder)
    good = manifest.Release(**(vars(entry) | costs))
    manifest.write_manifest(folder, {NAME: good})
    code, out, err = run(capsys, "verify", "--all", "--directory", folder)
    assert (code, err) == (0, "")
    assert out == f"{NAME}: as released (logits of: rings, temple)\n"
    monkeypatch.setattr("shiftjax.apps.verify.verify", lambda *_: ("rings",))
    code, out, _ = run(capsys, "verify", NAME, "--directory", folder)
    skipped = "not of: temple, without scikit-learn"
    assert (code, out) == (0, f"{NAME}: as released (logits of: rings; {skipped})\n")


def test_damaged_images_are_named_and_the_others_predicted(
    capsys, folder, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(predict, "BATCH_SIZE", 1)
    words = ["predict", photos, "--model", NAME, "--directory", folder, "--top", "1"]
    _, expected, _ = run(capsys, *words)
    bad = [photos / "aa.png", photos / "z.jpg"]
    bad[0].write_bytes(b"no image")
    bad[1].write_bytes((photos / "b.jpg").read_bytes()[:200])
    strip = tmp_path / "strip.png"
    code, out, err = run(capsys, *words, "--plot", strip)
    assert (code, out) == (1, expected)
    for line, file in zip(err.splitlines(), bad, strict=True):
        assert line.startswith(f"shiftjax: {file}: cannot be read as an image")
    with Image.open(strip) as sheet:
        assert sheet.width == 3 * 200 + 8
    words[1:2] = bad
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.splitlines()[2] == "shiftjax: none of the images can be read"


MISTAKES = {
    "no image": (["predict", "--model", NAME], "no image is given"),
    "missing": (["predict", "none.png", "--model", NAME], "there is no image"),
    "weights": (["predict", "x", "--model", "shiftresnet20_e1.toy"], NAME),
    "top": (["predict", "x", "--model", NAME, "--top", "0"], "--top 0"),
    "a name and all": (["verify", NAME, "--all"], f"{NAME} and --all"),
    "nothing to verify": (["verify"], "use shiftjax verify NAME... or --all"),
    "unknown": (["verify", "resnet20.toys"], "unknown weights"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(capsys, folder, name):
    words, message = MISTAKES[name]
    code, out, err = run(capsys, *words, "--directory", folder)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_a_plot_does_not_overwrite_an_image(capsys, folder, photos, monkeypatch):
    monkeypatch.chdir(photos)
    before = (photos / "a.png").read_bytes()
    words = ["--plot", photos / "a.png", "--directory", folder]
    for command in (["predict", "a.png", "--model", NAME], ["analyze", NAME, "a.png"]):
        code, out, err = run(capsys, *command, *words)
        assert (code, out) == (2, "")
        assert "a.png: it is one of the images" in err
        assert (photos / "a.png").read_bytes() == before


def test_a_reader_that_has_seen_enough_ends_the_command(folder, photos, monkeypatch):
    """As `head -1` does; all lines that are left are dropped without a traceback."""
    read, write = os.pipe()
    os.close(read)
    words = ["predict", photos, "--model", NAME, "--directory", folder, "--json"]
    with open(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit, match="1"):
            main([str(word) for word in words])


@pytest.mark.parametrize("plot", ["strip.xyz", "strip", "no/strip.png"])
def test_a_plot_that_cannot_be_written(capsys, photos, plot):
    """It is refused first, so that no result waits for a figure in vain."""
    words = ["predict", photos, "--model", "no.weights", "--plot", photos / plot]
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"shiftjax: --plot {photos / plot}: ")


def test_images_are_resized_as_the_card_says(tmp_path, pretrained, photos):
    """Also after a file of weights, in which the size is only if there is one."""
    card = dataclasses.replace(CARD, resize=10)
    save(tmp_path / "a.safetensors", pretrained.variables, card)
    data = save(tmp_path / "b.safetensors", pretrained.variables, CARD)
    assert b"resize" not in data
    whole = open_pretrained(str(tmp_path / "b.safetensors")).card
    assert dataclasses.replace(whole, options=CARD.options) == CARD
    loaded = open_pretrained(str(tmp_path / "a.safetensors"))
    assert loaded.card == dataclasses.replace(whole, resize=10)
    (received,) = Classifier(loaded).read([photos / "b.jpg"])
    image = Image.open(photos / "b.jpg")
    image.draft(None, (20, 20))
    expected = np.asarray(image.resize((13, 10), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(received, expected[1:9, 2:10])
    whole, part = (
        sample_logits(Pretrained(pretrained.model, pretrained.variables, c))
        for c in (CARD, card)
    )
    assert whole["rings"] == part["rings"]
    assert whole["temple"] != part["temple"]
