"""The contributions of displacements, on networks in which they are known."""

import copy
import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from shiftjax import InputError
from shiftjax.apps import analysis
from shiftjax.apps.analysis import agreement, analyze, intensity, silenced
from shiftjax.apps.predict import Classifier
from shiftjax.cli.main import main
from shiftjax.weights import Card, Pretrained, save
from tests.shiftjax.conftest import random_variables

pytestmark = pytest.mark.usefixtures("quick")

BLOCKS = ["stage1_block01", "stage2_block01", "stage3_block01"]
CARD = Card(
    architecture="shiftresnet20_e1",
    options={"depth": 8, "num_classes": 3, "expansion": 1.5},
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


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (6, 8, 8, 3), np.uint8)


def scaled(pretrained, reference, move, factor, others=1.0):
    """The network with the rows of a displacement scaled, in every block."""
    variables = copy.deepcopy(jax.tree.map(np.array, pretrained.variables))
    for name in BLOCKS:
        conv = variables["params"][name]["project"]["conv"]
        table = reference.table(len(conv["kernel"]), 3)
        for channel, row in enumerate(table):
            conv["kernel"][channel] *= factor if row == move else others
    return Pretrained(pretrained.model, variables, CARD)


def test_shares_are_of_one_and_of_every_displacement(pretrained, images):
    blocks = analyze(pretrained, images)
    assert [block.name for block in blocks] == BLOCKS
    moves = {(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    for block in blocks:
        assert set(block.contributions) == moves
        assert sum(block.contributions.values()) == pytest.approx(1)
        assert min(block.contributions.values()) > 0


def test_a_displacement_that_alone_is_read_contributes_all(
    pretrained, images, reference
):
    alone = scaled(pretrained, reference, (0, 1), 1.0, others=0.0)
    for block in analyze(alone, images):
        assert block.contributions[0, 1] == pytest.approx(1)


def test_rows_twice_as_large_contribute_twice(pretrained, images, reference):
    """Compares the first block, whose input does not change."""
    before, after = (
        analyze(net, images)[0].contributions
        for net in (pretrained, scaled(pretrained, reference, (-1, 0), 2.0))
    )
    ratios = [c[-1, 0] / c[1, 1] for c in (before, after)]
    assert ratios[1] == pytest.approx(2 * ratios[0], rel=1e-4)


def test_a_silenced_displacement_is_read_no_more(pretrained, images, reference):
    expected = Classifier(scaled(pretrained, reference, (1, -1), 0.0)).logits(images)
    actual = Classifier(silenced(pretrained, (1, -1))).logits(images)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    untouched = Classifier(pretrained).logits(images)
    assert np.abs(actual - untouched).max() > 1e-2


def test_predictions_stay_where_nothing_is_read(pretrained, images, reference):
    """A network that reads one displacement alone needs no other."""
    alone = scaled(pretrained, reference, (0, 1), 30.0, others=0.0)
    kept = agreement(alone, images)
    assert set(kept) == {(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    assert {share for move, share in kept.items() if move != (0, 1)} == {1.0}


def test_one_program_silences_every_displacement(pretrained, images, caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        agreement(pretrained, images)
    compiled = [text for text in caplog.messages if "Compiling jit(apply)" in text]
    assert len(compiled) == 1


def test_correlations_by_hand():
    """Channels 0 and 1 are equal, 2 is at right angles to both, 3 is constant."""
    pixels = np.array([[1, 1, 1, 5], [1, 1, -1, 5], [-1, -1, 1, 5], [-1, -1, -1, 5]])
    moves = np.array([[0, 1], [0, 1], [1, 0], [1, 0]])
    covariance = analysis._Moments.of(pixels[None, None]).covariance()
    within, across = analysis._correlations(covariance, moves)
    assert within == pytest.approx(1)
    assert across == pytest.approx(0)
    assert analysis._correlations(np.zeros((4, 4)), moves) == (0, 0)


def test_moments_are_those_of_all_pixels(rng):
    y = rng.normal(3, 2, (5, 4, 3, 6))
    y[..., 2] = 0
    parts = [analysis._Moments.of(part) for part in (y[:2], y[2:])]
    moments = parts[0] + parts[1]
    wanted = np.cov(y.reshape(-1, 6).T, bias=True)
    np.testing.assert_allclose(moments.covariance(), wanted, rtol=1e-10, atol=1e-12)
    assert moments.count == 60


def test_images_are_computed_a_few_at_a_time(pretrained, images, monkeypatch):
    """Six images in batches of four, the last of which is not full."""
    whole = analyze(pretrained, images)
    monkeypatch.setattr(analysis, "BATCH", 4)
    for block, of_parts in zip(whole, analyze(pretrained, images), strict=True):
        assert of_parts.contributions == pytest.approx(block.contributions, rel=1e-5)
        assert of_parts.within == pytest.approx(block.within, rel=1e-5)
        assert of_parts.across == pytest.approx(block.across, rel=1e-5)


def test_intensities_by_hand():
    """One pixel, one channel: 9 / (2 + 9), 9 / (2 + 9), 1 / (2 + 1)."""
    assert intensity("dense", 1, 1, 1) == pytest.approx(9 / 11)
    assert intensity("depthwise", 1, 1, 1) == pytest.approx(9 / 11)
    assert intensity("shift", 1, 1, 1) == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="dense, depthwise or shift"):
        intensity("pointwise", 1, 1, 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet20", {}), ("resnet50", {"blocks": (1,)}), ("shiftnet_c", {})],
)
def test_other_networks_than_shift_resnets_are_refused(images, name, options):
    options = options | {"num_classes": 3}
    card = Card(name, options, ("a", "b", "c"), 8, (0.5,), (0.5,))
    model = card.model()
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    with pytest.raises(InputError, match=f"{name} cannot be analyzed: .*shiftres"):
        analyze(Pretrained(model, variables, card), images)


def test_a_displacement_that_there_is_not(pretrained):
    with pytest.raises(
        InputError, match=r"no channel of the network moves by \(2, 0\)"
    ):
        silenced(pretrained, (2, 0))


def test_the_command(pretrained, images, tmp_path, capsys):
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    path, plot = tmp_path / "net.safetensors", tmp_path / "plot.jpg"
    save(path, pretrained.variables, CARD)
    assert main(["analyze", str(path), str(tmp_path), "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert "on 6 image(s)" in out
    for name in BLOCKS:
        assert name in out
    assert out.count("of predictions stay") == 9
    with Image.open(plot) as picture:
        assert picture.width > 1000
    words = ["analyze", str(path), str(tmp_path), "--plot", str(tmp_path / "x.xyz")]
    assert main(words) == 2
    assert "x.xyz" in capsys.readouterr().err
    plot.write_bytes(b"no image")
    assert main(["analyze", str(path), str(tmp_path)]) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"shiftjax: {plot}: cannot be read as an image")
    assert captured.out == out
    assert main(["analyze", str(path), str(plot)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "shiftjax: none of the images can be read"


def test_a_plot_without_matplotlib_is_refused_before_weights_are_loaded(
    capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["analyze", "no.weights", "no.png", "--plot", "a.png"]) == 2
    line = "shiftjax: --plot needs matplotlib: pip install 'shiftjax[train]'\n"
    assert capsys.readouterr().err == line
