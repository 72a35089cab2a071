"""Pictures in another style: files, folders, animations; the command; a release."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from PIL import Image, ImageSequence

import shiftjax
from shiftjax import InputError, MissingFileError, UnknownNameError
from shiftjax.apps import frames, stylize
from shiftjax.apps.predict import Classifier
from shiftjax.apps.stylize import (
    Stylizer,
    find_style,
    find_styles,
    strip,
    targets,
)
from shiftjax.apps.thumbnails import decode_thumbnail, encode_thumbnail
from shiftjax.apps.verify import sample_logits, verify
from shiftjax.cli.main import main
from shiftjax.releases import manifest
from shiftjax.weights import Card, Pretrained, digest, load_pretrained, save
from tests.shiftjax.conftest import random_variables

pytestmark = pytest.mark.usefixtures("quick")

NAME = "shift_stylizer.waves"
CARD = Card(
    architecture="shift_stylizer",
    options={"blocks": 1},
    class_names=(),
    image_size=32,
    mean=(0.5, 0.4, 0.3),
    std=(0.5, 0.4, 0.25),
)


@pytest.fixture(scope="module")
def made(seed):
    images = np.zeros((1, 8, 8, 3), np.float32)
    return random_variables(np.random.default_rng(seed), CARD.model(), images)


@pytest.fixture
def variables(made):
    """A copy of the variables, which a test may change."""
    return jax.tree.map(np.copy, made)


@pytest.fixture(scope="module")
def stylizer(made):
    return Stylizer(Pretrained(CARD.model(), made, CARD))


@pytest.fixture(scope="module")
def released(made, tmp_path_factory):
    """A folder with one release."""
    out = tmp_path_factory.mktemp("released")
    path = out / f"{NAME}.safetensors"
    size, sha256 = digest(save(path, made, CARD))
    costs = shiftjax.summarize(CARD.model(), CARD.image_size)
    logits = sample_logits(Pretrained(CARD.model(), made, CARD))
    release = manifest.Release(
        NAME, path.name, size, sha256, costs.params, costs.macs, "d", "", (), logits
    )
    manifest.write_manifest(out, {NAME: release})
    return out


@pytest.fixture
def folder(released, tmp_path):
    """A copy of the folder, which a test may change."""
    return shutil.copytree(released, tmp_path / "weights")


@pytest.fixture
def photos(tmp_path, rng):
    """Pictures of one size in several formats, in folders."""
    inside = tmp_path / "photos" / "deep"
    inside.mkdir(parents=True)
    for name in ("a.png", "b.jpg", "deep/c.webp"):
        pixels = rng.integers(0, 256, (12, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path / "photos"


def frames_of(path):
    with Image.open(path) as file:
        return [np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(file)]


def test_a_picture_goes_in_and_out_in_the_cards_numbers(stylizer, variables, rng):
    picture = rng.integers(0, 256, (13, 22, 3), np.uint8)
    mean, std = np.array(CARD.mean), np.array(CARD.std)
    x = ((picture / 255 - mean) / std).astype(np.float32)
    y = np.asarray(CARD.model().apply(variables, x[None])[0]) * std + mean
    assert (y < 0).any()
    assert (y > 1).any()
    np.testing.assert_allclose(stylizer.image(picture), y, rtol=1e-3, atol=1e-3)
    painted = stylizer(picture)
    assert painted.dtype == np.uint8
    apart = painted.astype(float) - 255 * np.clip(y, 0, 1)
    assert np.abs(apart).max() < 0.5 + 0.3  # rounded, of float32 in another order


def test_a_large_picture_is_the_same_in_bands(variables, stylizer, rng, monkeypatch):
    called = []
    monkeypatch.setattr(
        stylize, "apply_in_bands", lambda *a: called.append(a) or bands(*a, pixels=1)
    )
    from shiftjax.apps.bands import apply_in_bands as bands

    picture = rng.integers(0, 256, (33, 20, 3), np.uint8)
    small = Stylizer(Pretrained(CARD.model(), variables, CARD), pixels=33 * 20 - 1)
    first, second = stylizer.image(picture), small.image(picture)
    assert len(called) == 1
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (8, 8), (8, 8, 4)])
def test_what_is_no_picture_is_named(stylizer, shape):
    with pytest.raises(InputError, match=r"takes uint8 \[height, width, 3\]"):
        stylizer(np.zeros(shape, np.uint8))
    with pytest.raises(InputError, match="float64"):
        stylizer(np.zeros((8, 8, 3)))


def test_a_file_is_turned_upright_and_written(stylizer, tmp_path, rng):
    """Grey pixels with the EXIF orientation 6: the top is on the right."""
    pixels = rng.integers(0, 256, (12, 20), np.uint8)
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    stylizer.paint(tmp_path / "a.png", tmp_path / "new" / "b.png")
    upright = np.rot90(pixels, -1)
    expected = stylizer(np.stack([upright] * 3, -1))
    np.testing.assert_array_equal(frames_of(tmp_path / "new" / "b.png")[0], expected)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["b.png"]


@pytest.mark.parametrize("kind", ["png", "webp", "gif"])
def test_every_frame_of_an_animation_is_painted(stylizer, tmp_path, rng, kind):
    """With its durations, read from each format and written to it."""
    pixels = rng.integers(0, 256, (3, 12, 20, 3), np.uint8)
    first, *others = (Image.fromarray(p) for p in pixels)
    options = {"duration": [40, 80, 120], "loop": 0}
    source, target = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    first.save(source, save_all=True, append_images=others, **options)
    painted = stylizer.paint(source, target)
    assert (painted.durations, painted.loop) == ((40, 80, 120), 0)
    expected = [stylizer(frame) for frame in frames_of(source)]
    np.testing.assert_array_equal(painted.frames, expected)
    again = frames.read_image_file(target)
    assert (again.durations, again.loop) == ((40, 80, 120), 0)
    assert len(again.frames) == 3
    if kind == "png":  # the others have fewer colours, or lose some
        np.testing.assert_array_equal(again.frames, expected)


def test_pages_are_no_animation(stylizer, tmp_path):
    """Reads a TIFF, and a JPEG with the second image of a camera."""
    page = Image.new("RGB", (8, 8), "red")
    page.save(tmp_path / "a.tiff", save_all=True, append_images=[page])
    page.save(tmp_path / "a.mpo", save_all=True, append_images=[page])
    for name in ("a.tiff", "a.mpo"):
        painted = stylizer.paint(tmp_path / name, tmp_path / "b.jpg")
        assert (len(painted.frames), painted.durations) == (1, ())


# Where results go.


def test_results_keep_names_and_places(photos, tmp_path):
    found = targets([photos, photos / "deep" / "c.webp"], tmp_path / "out" / "x")
    names = [
        (str(a.relative_to(photos)), str(b.relative_to(tmp_path))) for a, b in found
    ]
    assert names == [
        ("a.png", "out/x/a.png"),
        ("b.jpg", "out/x/b.jpg"),
        ("deep/c.webp", "out/x/deep/c.webp"),
        ("deep/c.webp", "out/x/c.webp"),
    ]
    one = targets([photos / "a.png"], tmp_path / "new.JPG")
    assert one == [(photos / "a.png", tmp_path / "new.JPG")]


NO_TARGETS = {
    "missing": ((["no.png"], "out"), MissingFileError, r"no image .*no\.png"),
    "missing one": ((["no.png"], "x.png"), MissingFileError, r"no image .*no\.png"),
    "several": ((["a.png", "b.jpg"], "x.png"), InputError, r"x\.png is one image"),
    "a folder": (([""], "x.png"), InputError, r"x\.png is one image"),
    "itself": ((["a.png"], "a.png"), InputError, "would be overwritten"),
    "the same folder": (([""], ""), InputError, "would be overwritten"),
    "another image": (([""], "deep"), InputError, r"deep/c\.webp would be over"),
    "twice": ((["a.png", "a.png"], "out"), InputError, "two images would be written"),
}


@pytest.mark.parametrize("name", NO_TARGETS)
def test_results_that_cannot_be(photos, name):
    (paths, output), kind, message = NO_TARGETS[name]
    shutil.copy(photos / "deep" / "c.webp", photos)
    with pytest.raises(kind, match=message):
        targets([photos / path for path in paths], photos / output)


# A release.


def test_a_stylizer_is_saved_loaded_and_verified(folder, variables, assert_trees_close):
    model, loaded = load_pretrained(NAME, directory=folder)
    assert model == CARD.model()
    assert_trees_close(loaded, variables, 0)
    assert set(verify(NAME, folder)) >= {"rings"}
    with pytest.raises(InputError, match=r"num_classes=3: .* returns images"):
        load_pretrained(NAME, num_classes=3, directory=folder)


def test_sixteen_pixels_are_released(folder, stylizer):
    from shiftjax.image_files import rings

    numbers = manifest.find(NAME, folder).logits["rings"]
    image = stylizer.image(rings(32, 3))
    expected = [image[y, x] for y in (4, 12, 20, 28) for x in (4, 12, 20, 28)]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(numbers, np.ravel(expected), 0, 1e-3 * scale)


def test_other_weights_are_not_verified(folder, variables):
    """The biases of the last layer, larger by a tenth."""
    variables["params"]["out"]["conv"]["bias"] += 0.1
    path = folder / f"{NAME}.safetensors"
    size, sha256 = digest(save(path, variables, CARD))
    entry = manifest.find(NAME, folder)
    changed = manifest.Release(**(vars(entry) | {"size": size, "sha256": sha256}))
    manifest.write_manifest(folder, {NAME: changed})
    with pytest.raises(InputError, match="of the image 'rings' differ"):
        verify(NAME, folder)


def test_a_network_of_the_other_kind_says_so(variables):
    with pytest.raises(InputError, match="shift_stylizer returns images, not classes"):
        Classifier(Pretrained(CARD.model(), variables, CARD))
    model = shiftjax.create_model("resnet20")
    other = Card("resnet20", {}, tuple("0123456789"), 8, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(InputError, match="resnet20 is not a stylizer: use weights"):
        Stylizer(Pretrained(model, {}, other))


# The command.


def run(capsys, *words):
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_paints(capsys, folder, photos, stylizer, tmp_path):
    options = ["--style", NAME, "--directory", folder]
    out = tmp_path / "out"
    code, text, err = run(capsys, "stylize", photos, *options, "-o", out)
    assert (code, err) == (0, "")
    names = ("a.png", "b.jpg", "deep/c.webp")
    assert text.splitlines() == [f"{out / name}: 20 x 12" for name in names]
    (pixels,) = frames_of(photos / "a.png")
    np.testing.assert_array_equal(frames_of(out / "a.png")[0], stylizer(pixels))

    words = ["stylize", photos / "a.png", *options, "-o", out / "both.png", "--compare"]
    code, text, err = run(capsys, *words)
    assert (code, text, err) == (0, f"{out / 'both.png'}: 48 x 32\n", "")
    (sheet,) = frames_of(out / "both.png")
    np.testing.assert_array_equal(sheet[:12, :20], pixels)
    np.testing.assert_array_equal(sheet[:12, 28:], stylizer(pixels))


def test_damaged_images_are_named_and_others_painted(capsys, folder, photos, tmp_path):
    bad = [photos / "aa.png", photos / "z.jpg"]
    for file in bad:
        file.write_bytes(b"no image")
    words = ["--style", NAME, "--directory", folder, "-o", tmp_path / "out"]
    code, text, err = run(capsys, "stylize", photos, *words)
    assert (code, text.count(": 20 x 12\n"), text.count("\n")) == (1, 3, 3)
    for line, file in zip(err.splitlines(), bad, strict=True):
        assert line.startswith(f"shiftjax: {file}: cannot be read as an image")
    code, text, err = run(capsys, "stylize", *bad, *words)
    assert (code, text) == (2, "")
    assert err.splitlines()[2] == "shiftjax: none of the images could be stylized"


@pytest.fixture
def both(folder, randomize):
    """The folder with the plain stylizer of the same tag, and a classifier's name."""
    plain = dataclasses.replace(CARD, architecture="stylizer")
    variables = randomize(plain.model(), np.zeros((1, 8, 8, 3), np.float32))
    releases = manifest.read(folder)
    (entry,) = releases.values()
    for name in ("stylizer.waves", "shift_stylizer.night", "resnet20.night"):
        file = f"{name}.safetensors"
        releases[name] = dataclasses.replace(entry, name=name, file=file)
    path = folder / "stylizer.waves.safetensors"
    size, sha256 = digest(save(path, variables, plain))
    releases["stylizer.waves"] = dataclasses.replace(
        releases["stylizer.waves"], size=size, sha256=sha256
    )
    manifest.write_manifest(folder, releases)
    return folder, Stylizer(Pretrained(plain.model(), variables, plain))


def test_a_tag_alone_is_a_style(both):
    folder = str(both[0])
    tagged = ["stylizer.waves", "shift_stylizer.waves"]
    assert find_styles("waves", folder) == tagged
    assert find_styles("shift_stylizer.waves", folder) == tagged
    assert find_styles("a/b.safetensors", folder) == ["a/b.safetensors"]
    assert find_styles("resnet20.night", folder) == ["resnet20.night"]
    assert find_style("night", folder) == "shift_stylizer.night"
    assert find_style("stylizer.waves", folder) == "stylizer.waves"
    with pytest.raises(InputError) as error:
        find_style("waves", folder)
    assert str(error.value) == (
        "--style waves is ambiguous: give stylizer.waves or shift_stylizer.waves"
    )
    for find in (find_style, find_styles):
        with pytest.raises(UnknownNameError) as error:
            find("wave", folder)
        assert str(error.value) == (
            "unknown style 'wave': did you mean 'waves'? (known: night, waves)"
        )


def test_a_comparison_has_all_stylizers_of_the_tag(
    capsys, both, photos, stylizer, tmp_path
):
    folder, plain = both
    words = ["--style", "waves", "--directory", folder, "--compare"]
    code, text, err = run(
        capsys, "stylize", photos / "a.png", *words, "-o", tmp_path / "all.png"
    )
    assert (code, text, err) == (0, f"{tmp_path / 'all.png'}: 76 x 32\n", "")
    (pixels,), (sheet,) = frames_of(photos / "a.png"), frames_of(tmp_path / "all.png")
    for left, expected in ((0, pixels), (28, plain(pixels)), (56, stylizer(pixels))):
        np.testing.assert_array_equal(sheet[:12, left : left + 20], expected)


def test_a_strip_shows_the_painting_of_a_card(variables, stylizer, tmp_path):
    """A red painting of 300x600, turned by its EXIF orientation: 128 pixels high."""
    image, exif = Image.new("RGB", (300, 600), "red"), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "red.png", exif=exif)
    text = encode_thumbnail(tmp_path / "red.png")
    assert decode_thumbnail(text).shape == (128, 256, 3)
    assert len(text) < 4000
    card = dataclasses.replace(CARD, painting=text, painting_source="Red, 1921")
    painter = Stylizer(Pretrained(CARD.model(), variables, card))
    frame = np.zeros((12, 20, 3), np.uint8)
    sheet = strip({"one": stylizer, "two": painter}, "photo", frame)
    assert sheet.shape == (32, 4 * 20 + 3 * 8, 3)
    painting = sheet[:12, 28:48].astype(int)
    assert (painting[:1] == 255).all()  # 20 x 10 pixels, padded
    assert np.abs(painting[2:10] - [255, 0, 0]).max() < 8  # JPEG
    np.testing.assert_array_equal(sheet[:12, 56:76], stylizer(frame))
    np.testing.assert_array_equal(sheet[:12, 84:], painter(frame))


@pytest.mark.parametrize("text", ["?", "aGVsbG8="])
def test_a_damaged_thumbnail_is_an_input_error(text):
    with pytest.raises(InputError, match=r"thumbnail|cannot be read as an image"):
        decode_thumbnail(text)


MISTAKES = {
    "no image": ([], "x.png", "no image is given"),
    "no animation": (["moving.gif"], "x.jpg", "JPEG cannot hold an animation"),
    "no format": (["a.jpg.xyz"], "out", "cannot be written as '.xyz'"),
    "not an image": (["notes.txt"], "x.png", "notes.txt: cannot be read as an image"),
    "a file in the way": (["a.png"], "notes.txt", "notes.txt"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(capsys, folder, photos, name):
    paths, output, message = MISTAKES[name]
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    (photos / "a.jpg.xyz").write_bytes((photos / "b.jpg").read_bytes())
    first.save(photos / "moving.gif", save_all=True, append_images=[second])
    words = ["stylize", *(photos / path for path in paths), "--style", NAME]
    options = ["--directory", folder, "-o", photos / output]
    code, out, err = run(capsys, *words, *options)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert not list(photos.glob("*.partial"))
