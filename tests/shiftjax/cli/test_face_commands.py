"""The commands for face networks: answers, files, exit codes and messages."""

import dataclasses
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from shiftjax.apps.embed import Embedder
from shiftjax.apps.face_verification import verify_pairs
from shiftjax.cli.main import main
from shiftjax.weights import Card, open_pretrained, save

SIZE = 16
CARD = Card(
    "facenet_resnet26_w11",
    {"width": 4, "blocks": (1,), "embedding_size": 5},
    (),
    SIZE,
    (0.5,) * 3,
    (0.25,) * 3,
)
ONE_FOLD = ("--folds", "1", "--count", "1")
FACES = ("Ada/Ada_0001.png", "Ada/Ada_0002.png", "Bo.png", "Cy/Cy_0001.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Weights without a threshold and with three, and a folder of faces."""
    root = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    for name in FACES:
        file = root / "people" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    images = jnp.zeros((1, SIZE, SIZE, 3))
    variables = jax.jit(CARD.model().init)(jax.random.key(3), images)
    save(root / "plain.safetensors", variables, CARD)
    vectors = Embedder(open_pretrained(str(root / "plain.safetensors"))).read(
        *(root / "people" / name for name in FACES)
    )
    similarity = float(vectors[0] @ vectors[1])
    for name, threshold in {
        "lower": similarity - 0.001,
        "higher": similarity + 0.001,
        "zero": 0.0,
    }.items():
        card = dataclasses.replace(
            CARD, threshold=threshold, threshold_source="all pairs of pairs.txt"
        )
        save(root / f"{name}.safetensors", variables, card)
    return root, vectors


def words(place, *given: str) -> list[str]:
    """The words of a command line, where NET and IMAGE are in the folder."""
    root, _ = place
    return [
        str(root / word) if word.endswith((".safetensors", ".png", "people")) else word
        for word in given
    ]


def verify(place, weights: str, *more: str) -> int:
    faces = [f"people/{name}" for name in FACES[:2]]
    given = words(place, f"{weights}.safetensors", *faces, *more)
    return main(["verify-faces", *given])


@pytest.mark.parametrize(
    ("weights", "more", "answer", "origin"),
    [
        ("lower", (), "the same person", "chosen on all pairs of pairs.txt"),
        ("higher", (), "not the same person", "chosen on all pairs of pairs.txt"),
        ("higher", ("--threshold", "-1"), "the same person", "given by --threshold"),
        ("plain", ("--threshold", "1"), "not the same person", "given by --threshold"),
    ],
)
def test_two_faces_are_compared(place, capsys, weights, more, answer, origin):
    _, vectors = place
    assert verify(place, weights, *more) == 0
    cosine = vectors[0].astype(float) @ vectors[1]
    threshold = float(more[1]) if more else cosine + (weights == "higher") * 0.002
    threshold -= 0 if more else 0.001
    assert capsys.readouterr().out == (
        f"{answer}: cosine similarity {cosine:.4f}, threshold {threshold:.4f} "
        f"({origin})\n"
    )


def test_a_threshold_of_zero_is_one(place, capsys):
    assert verify(place, "zero") == 0
    assert "threshold 0.0000 (chosen on all pairs" in capsys.readouterr().out


def test_a_folder_is_embedded(place, tmp_path, capsys):
    output = tmp_path / "faces.npz"
    given = words(place, "plain.safetensors", "people")
    assert main(["embed", *given, "-o", str(output)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{output}: 4 embeddings of 5 features\n"
    assert captured.err == ""
    with np.load(output) as written:
        assert set(written) == {"embeddings", "files"}
        assert written["embeddings"].dtype == np.float32
        np.testing.assert_allclose(written["embeddings"], place[1], atol=1e-6)
        assert tuple(written["files"]) == FACES


def test_the_nearest_faces_are_printed_and_drawn(place, tmp_path, capsys):
    """Without the image itself."""
    root, vectors = place
    given = words(place, "plain.safetensors", "people", "--nearest", "people/Bo.png")
    sheet, output = tmp_path / "near.jpg", tmp_path / "faces.npz"
    more = ["--top", "2", "--plot", str(sheet), "--output", str(output)]
    assert main(["embed", *given, *more]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    cosines = vectors.astype(float) @ vectors[2]
    order = sorted({0, 1, 3}, key=lambda i: -cosines[i])[:2]
    assert lines == [
        f"  {cosines[i]:7.4f}  {root / 'people' / FACES[i]}" for i in order
    ]
    with Image.open(sheet) as drawn:
        assert drawn.size == (3 * 200 + 8, 192 + 2 * 20 + 3 * 8)


def test_links_to_the_image_itself_do_not_take_the_place_of_others(
    place, tmp_path, capsys
):
    root, _ = place
    people = shutil.copytree(root / "people", tmp_path / "people")
    query = people / "Bo.png"
    for name in ("Bob.png", "Bobby.png"):
        (people / name).symlink_to(query)
    words = [str(root / "plain.safetensors"), str(people), "--nearest", str(query)]
    assert main(["embed", *words, "--top", "3", "-o", str(tmp_path / "a.npz")]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3


@pytest.fixture(scope="module")
def pairs(place):
    """Two folds of one pair of each kind, and the option with the images' folder."""
    root, _ = place
    for name in ("Ada/Ada_0001", "Ada/Ada_0002", "Cy/Cy_0001"):
        copy = root / "pairs" / f"{name}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((root / "people" / f"{name}.png").read_bytes())
    second = (root / "people" / "Bo.png").read_bytes()
    (root / "pairs" / "Cy" / "Cy_0002.png").write_bytes(second)
    file = root / "pairs.txt"
    file.write_text("2 1\nAda 1 2\nAda 1 Cy 1\nCy 1 2\nAda 2 Cy 2\n")
    return ["--pairs", str(file), "--images", str(root / "pairs")]


def test_pairs_are_verified(place, pairs, tmp_path, capsys):
    """The second network is the first one, with another threshold on its card."""
    plot = tmp_path / "roc.png"
    names = words(place, "plain.safetensors", "zero.safetensors")
    assert main(["verify-pairs", *names, *pairs, "--plot", str(plot)]) == 0
    _, vectors = place
    one, two, bo, cy = vectors.astype(float)
    wanted = verify_pairs(
        [one @ two, one @ cy, cy @ bo, two @ bo], [True, False] * 2, [0, 0, 1, 1]
    )
    printed = capsys.readouterr().out
    reached = f"{100 * wanted.accuracy:.2f} +- {100 * wanted.accuracy_std:.2f}%"
    assert printed.count(reached) == 2
    assert printed.count(f" {100 * wanted.auc:.2f}%") >= 2
    assert printed.count(f" {100 * wanted.eer:.2f}%") >= 2
    assert "4 pairs in 2 folds." in printed
    with Image.open(plot) as drawn:
        assert drawn.size == (900, 675)
        assert len(drawn.convert("L").getcolors()) > 50


def test_pairs_are_drawn(place, pairs, tmp_path, capsys):
    """The pairs of one person are those of Ada and of Cy."""
    file, folder = tmp_path / "drawn.txt", pairs[-1]
    given = ["draw-pairs", folder, "-o", str(file), "--folds", "1", "--count", "2"]
    assert main(given) == 0
    assert capsys.readouterr().out == f"{file}: 4 pairs in 1 fold(s)\n"
    header, *lines = file.read_text().splitlines()
    assert header == "1\t2"
    assert sorted(lines[:2]) == ["Ada\t1\t2", "Cy\t1\t2"]
    assert all(line.count("\t") == 3 for line in lines[2:])


def test_a_damaged_image_is_named_and_the_others_embedded(place, tmp_path, capsys):
    people = tmp_path / "some"
    people.mkdir()
    for i, name in enumerate(FACES[:2]):
        (people / f"{i}.png").write_bytes((place[0] / "people" / name).read_bytes())
    (people / "0a.png").write_bytes(b"no image")
    output = tmp_path / "faces.npz"
    given = [*words(place, "plain.safetensors"), str(people), "-o", str(output)]
    assert main(["embed", *given]) == 1
    captured = capsys.readouterr()
    assert captured.out.endswith(": 2 embeddings of 5 features\n")
    (line,) = captured.err.splitlines()
    assert line.startswith(f"shiftjax: {people / '0a.png'}: cannot be read as an image")
    with np.load(output) as written:
        np.testing.assert_allclose(written["embeddings"], place[1][:2], atol=1e-6)
        assert list(written["files"]) == ["0.png", "1.png"]
    for i in range(2):
        (people / f"{i}.png").unlink()
    output.unlink()
    assert main(["embed", *given]) == 2
    assert "has no image that can be read" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_full_disk_leaves_the_file_that_is_there(place, tmp_path, capsys):
    for name in ("Ada/Ada_0001", "Ada/Ada_0002", "Bo/Bo_0001"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").touch()
    for output, command in {
        tmp_path / "faces.npz": ["embed", *words(place, "plain.safetensors", "people")],
        tmp_path / "pairs.txt": ["draw-pairs", str(tmp_path), *ONE_FOLD],
    }.items():
        output.write_text("before")
        output.with_name(f"{output.name}.partial").symlink_to("/dev/full")
        assert main([*command, "-o", str(output)]) == 2
        assert f"{output} cannot be written: No space" in capsys.readouterr().err
        assert output.read_text() == "before"


NET, ONE = "plain.safetensors", "people/Bo.png"
OUT = ("-o", "no_such.npz")
PAIRS = ("--pairs", "no.txt", "--images", "no")
MISTAKES = {
    "no threshold": (
        ["verify-faces", NET, ONE, ONE],
        "plain.safetensors has no threshold, which a release of a run with "
        "--faces.pairs has: give one by --threshold",
    ),
    "threshold": (
        ["verify-faces", NET, ONE, ONE, "--threshold", "1.5"],
        "--threshold 1.5: it must be -1 to 1",
    ),
    "no image": (["verify-faces", NET, ONE, "no.png"], "there is no image"),
    "one image": (["verify-faces", NET, ONE], "Missing from shiftjax verify-faces"),
    "no weights": (["verify-faces", "no.safetensors", ONE, ONE], "there is no file"),
    "a classifier": (
        ["verify-faces", "shiftresnet20_e3.digits", ONE, ONE],
        "a shiftresnet20_e3 returns logits, not embeddings of faces: use weights of "
        "shift_facenet, ",
    ),
    "no folder": (["embed", NET, "no/people", *OUT], "there is no folder"),
    "other ending": (["embed", NET, "people", "-o", "a.npy"], "must end in .npz"),
    "no folder of the output": (
        ["embed", NET, "people", "-o", "no/such/a.npz"],
        "there is no folder no/such",
    ),
    "no output": (["embed", NET, "people"], "--output"),
    "plot alone": (
        ["embed", NET, "people", *OUT, "--plot", "a.jpg"],
        "--plot a.jpg: it needs --nearest",
    ),
    "plot of an image": (
        ["embed", NET, "people", *OUT, "--nearest", ONE, "--plot", ONE],
        "Bo.png: it is one of the images",
    ),
    "plot in no folder": (
        ["embed", NET, "people", *OUT, "--nearest", ONE, "--plot", "no/such/a.png"],
        "no/such/a.png: there is no folder",
    ),
    "plot of another ending": (
        ["embed", NET, "people", *OUT, "--nearest", ONE, "--plot", "a.xyz"],
        "--plot a.xyz: it must end in .png",
    ),
    "no people": (["draw-pairs", "no/people", *OUT], "there is no folder of images"),
    "no networks": (["verify-pairs", *PAIRS], "WEIGHTS"),
    "no pairs": (["verify-pairs", NET, *PAIRS], "there is no folder of images no"),
    "top": (["embed", NET, "people", *OUT, "--top", "0"], "--top 0: it must be"),
}


def test_no_scikit_learn_is_said_before_images_are_read(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(["verify-pairs", "no.weights", *PAIRS]) == 2
    assert capsys.readouterr().err == (
        "shiftjax: the ROC curve needs scikit-learn: pip install 'shiftjax[train]'\n"
    )


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(place, capsys, name):
    given, message = MISTAKES[name]
    assert main(words(place, *given)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("shiftjax: ")
    assert message in line
