"""Style transfer as a task: what is compared, told, drawn and resumed."""

import base64
import dataclasses
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from shiftjax.apps.stylize import Stylizer
from shiftjax.errors import InputError, MissingFileError, UnknownNameError
from shiftjax.releases import manifest
from shiftjax.weights import Card, open_pretrained, save
from tests.train.processes import wait
from tests.train.runs import assert_trained_alike
from train.assemble import set_up
from train.config import Augment, Config, Data, Model, Optimizer, Schedule, Style
from train.evaluation import evaluate, evaluate_weights
from train.logging.records import read_metrics
from train.loop import SAMPLE
from train.release import release
from train.tasks import load_split
from train.zoo.results import page

pytestmark = pytest.mark.usefixtures("quick")

SIZE = 16
FEATURES = "features.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty pictures, some of them in folders within, a painting, and features.

    The features are those of a network of 8 layers, which compiles quickly.
    """
    root = tmp_path_factory.mktemp("style")
    rng = np.random.default_rng(0)
    for i in range(20):
        inside = root / "pictures" / ("more" if i % 3 else ".")
        inside.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (SIZE + 4, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(inside / f"{i:02}.png")
    pixels = rng.integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(root / "painting.png")
    options = {"depth": 8, "num_classes": 2}
    card = Card("resnet20", options, ("a", "b"), SIZE, (0.5,) * 3, (0.5,) * 3, "none")
    init = jax.jit(card.model().init)
    images = jnp.zeros((1, SIZE, SIZE, 3))
    save(root / FEATURES, init(jax.random.key(0), images), card)
    return root


@pytest.fixture
def config(folder, tmp_path):
    return Config(
        task="style",
        workdir=str(tmp_path / "run"),
        epochs=3.0,
        batch_size=4,
        eval_batch_size=4,
        # The implementation that compiles quickly.
        model=Model("shift_stylizer", {"blocks": 1, "implementation": "reference"}),
        data=Data(
            source=f"folder:{folder / 'pictures'}",
            image_size=SIZE,
            validation_examples=5,
        ),
        augment=Augment(crop_padding=0),
        style=Style(
            str(folder / "painting.png"),
            24,
            str(folder / FEATURES),
            None,
            2.0,
            3.0,
            0.5,
        ),
        optimizer=Optimizer("adam", weight_decay=0.0),
        schedule=Schedule("constant", 1e-3),
        log_steps=3,
        save_epochs=1.0,
        log_to=(),
    )


def test_every_picture_is_compared_once_with_itself_and_the_painting(config):
    setup = set_up(config)
    task = setup.trainer.task
    examples = load_split(config, "validation")
    assert len(examples) == 5
    state = setup.initial_state()
    painting = task.painting[None] / 255.0
    assert painting.shape == (1, 24, 24, 3)

    net = task.loss_of.net
    params = net.params

    @jax.jit
    def features(picture):
        return net(params, picture)

    def gram(x):
        x = np.asarray(x, np.float64)[0]
        return np.einsum("hwi,hwj->ij", x, x) / x.size

    wanted = features(jnp.asarray(painting, jnp.float32))
    layers = ("stem", "stage1", "stage2", "stage3")
    assert set(wanted) == set(layers)
    paint = jax.jit(task.model.apply)
    scale = (np.asarray(wanted["stage2"], np.float64) ** 2).mean()
    parts = []
    for image in examples.images:
        shown = jnp.asarray(image[None] / 255.0, jnp.float32)
        painted = paint(state.variables, (shown - 0.5) / 0.5) * 0.5 + 0.5
        before, after = features(shown), features(painted)
        content = ((after["stage2"] - before["stage2"]) ** 2).mean() / scale
        style = np.mean(
            [
                ((gram(after[k]) - gram(wanted[k])) ** 2).mean()
                / (gram(wanted[k]) ** 2).mean()
                for k in layers
            ]
        )
        down, across = (np.diff(painted, axis=axis) for axis in (1, 2))
        variation = (down**2).mean() + (across**2).mean()
        parts.append((2 * float(content), 3 * float(style), 0.5 * float(variation)))
    content, style, variation = np.mean(parts, axis=0)

    variables = setup.replicas.replicate(state.variables)
    figures = evaluate(setup, variables, examples)
    assert figures["examples"] == 5
    assert figures["content"] == pytest.approx(content, rel=5e-3)  # of three digits
    assert figures["style"] == pytest.approx(style, rel=5e-3)
    assert figures["variation"] == pytest.approx(variation, rel=1e-3)
    assert figures["loss"] == pytest.approx(content + style + variation, rel=5e-3)


def test_it_learns_draws_a_sample_and_resumes_to_the_same_bits(config, run):
    outcome, text = run(config)
    assert outcome.finished
    assert outcome.steps == round(3 * 11 / 4)  # a fifth is the test set, five validate
    records = read_metrics(config.workdir)
    losses = [r["loss"] for r in records if r["split"] == "validation"]
    assert losses[-1] < losses[0]
    assert {"loss", "content", "style", "variation"} <= records[0].keys()
    assert "validation loss" in text
    (line,) = [line for line in text.splitlines()[:3] if "losses at the start" in line]
    shown = re.fullmatch(
        r"losses at the start: content (\S+) \(weight 2\), style (\S+) \(weight 3\)",
        line,
    )
    assert shown is not None
    setup = set_up(config)
    task, state = setup.trainer.task, setup.initial_state()
    images = load_split(config, "train").images[:4]
    assert [float(x) for x in shown.groups()] == pytest.approx(
        _losses(task, state.variables, images), rel=1e-3, abs=1e-3
    )
    with Image.open(f"{config.workdir}/{SAMPLE}") as sample:
        assert sample.size == (5 * SIZE, 2 * SIZE)

    halves = dataclasses.replace(config, workdir=config.workdir + "_halves")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.stopping.StopRequest.reached", lambda _: True)
        stopped, _ = run(halves)
    assert not stopped.finished
    resumed, _ = run(halves)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(resumed.state),
        jax.device_get(outcome.state),
    )


def test_two_processes_train_as_one_does(config, pair, run, tmp_path):
    """By SGD: Adam takes the signs of gradients, which are rounding where they are 0.

    These are the biases before a normalization.
    """
    config = dataclasses.replace(
        config,
        epochs=1.0,
        optimizer=Optimizer("sgd", weight_decay=0.0, clip_norm=1.0),
        schedule=Schedule("constant", 1e-3),
    )
    codes, said = wait(pair(config, config))
    assert codes == [0, 0], said
    alone, _ = run(dataclasses.replace(config, workdir=str(tmp_path / "one")))
    assert (alone.steps, alone.test["examples"]) == (3, 4)
    assert_trained_alike(config.workdir, alone)


def test_a_run_becomes_weights_that_paint_and_begin_another(config, run, tmp_path):
    style = dataclasses.replace(config.style, source="noise, by nobody")
    config = dataclasses.replace(config, style=style)
    outcome, _ = run(config)
    entry = release([config.workdir], "noise", tmp_path / "weights")
    assert entry.name == "shift_stylizer.noise"
    assert set(entry.runs[0].test) == {"loss", "content", "style", "variation"}
    assert "shift_stylizer" not in page(manifest.read(tmp_path / "weights"))
    pretrained = open_pretrained(entry.name, tmp_path / "weights")
    assert pretrained.card.dataset == entry.dataset == "folder:pictures"
    card = pretrained.card
    assert (card.painting_source, card.feature_network) == (style.source, FEATURES)
    small = Image.open(io.BytesIO(base64.b64decode(card.painting)))
    assert (small.format, small.size) == ("JPEG", (30, 40))  # no larger than the file
    assert "--style.image painting.png" in entry.runs[0].command
    for file in (tmp_path / "weights").glob("*.*"):
        assert str(tmp_path.parent).encode() not in file.read_bytes()
    params = outcome.state.variables["params"]
    jax.tree.map(np.testing.assert_array_equal, pretrained.variables["params"], params)
    picture = load_split(config, "test").images[0]
    images = (picture[None] / np.float32(255) - 0.5) / 0.5
    painted = jax.jit(pretrained.model.apply)({"params": params}, images)
    painted = np.asarray(painted[0]) * 0.5 + 0.5
    np.testing.assert_allclose(
        painted.clip(0, 1) * 255,
        Stylizer(pretrained)(picture),
        atol=0.51,  # which is rounded to whole numbers
    )
    again = dataclasses.replace(
        config, init=str(tmp_path / "weights" / entry.file), ema_decay=0.9
    )
    state = set_up(again).initial_state()
    for tree in (state.params, state.ema["params"]):
        jax.tree.map(np.testing.assert_array_equal, tree, params)
    with pytest.raises(InputError, match="returns images"):
        evaluate_weights(again.init)


def _losses(task, variables, images):
    """The weighted losses of content and style, each a mean over the images."""
    shown = jnp.asarray(images / 255.0, jnp.float32)
    painting = jnp.asarray(task.painting[None] / 255.0, jnp.float32)
    loss_of = task.loss_of

    @jax.jit
    def losses(variables, params):
        painted = task.model.apply(variables, (shown - 0.5) / 0.5) * 0.5 + 0.5
        return loss_of(params, loss_of.grams(params, painting), painted, shown)[1]

    parts = losses(variables, loss_of.net.params)
    return [float(parts[name]) for name in ("content", "style")]


def test_the_options_choose_layers(config):
    """And the content loss is divided by the painting's features in its layer."""
    style = dataclasses.replace(
        config.style,
        content_layer="stage1",
        style_layers=("stem", "stage1"),
    )
    task = set_up(dataclasses.replace(config, style=style)).trainer.task
    net = task.loss_of.net
    assert (net.content_layer, net.style_layers) == ("stage1", ("stem", "stage1"))
    painting = jnp.asarray(task.painting[None] / 255.0, jnp.float32)
    found = jax.jit(net.__call__)(net.params, painting)
    content = (np.asarray(found["stage1"], np.float64) ** 2).mean()
    assert task.loss_of.content_scale == pytest.approx(content, rel=6e-3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image": None}, InputError, "--style.image is missing"),
        ({"image": "nowhere.png"}, InputError, "nowhere.png"),
        ({"features": "vgg16"}, InputError, "vgg16 needs its file of weights"),
        (
            {"features": "vgg16", "weights": "nowhere.pth"},
            MissingFileError,
            "nowhere.pth",
        ),
        (
            {"content_layer": "stage22"},
            UnknownNameError,
            "unknown --style.content-layer 'stage22': did you mean 'stage2'",
        ),
    ],
)
def test_what_is_missing_is_named(config, changes, error, message):
    style = dataclasses.replace(config.style, **changes)
    with pytest.raises(error, match=message):
        set_up(dataclasses.replace(config, style=style))


def test_a_classifier_paints_nothing(config):
    wrong = dataclasses.replace(config, model=Model("shiftresnet20_e1"))
    with pytest.raises(
        InputError, match="shiftresnet20_e1 paints nothing: stylizer or"
    ):
        set_up(wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_smoothing": 0.1}, "--label-smoothing 0.1: the task style allows"),
        ({"augment": Augment(mixup=0.2)}, "--augment.mixup 0.2: the task style"),
        ({"augment": Augment(cutmix=1.0)}, "--augment.cutmix 1.0: the task style"),
        ({"augment": Augment(erase=0.3)}, "--augment.erase 0.3: the task style"),
        ({"augment": Augment(jitter=0.4)}, "--augment.jitter 0.4: the task style"),
        ({"augment": Augment(rand_augment=2)}, "--augment.rand-augment 2: the task"),
        ({"model": Model("stylizer", remat=True)}, "--model.remat: the task style"),
        ({"data": Data(mean=(0.5,), std=(0.5,))}, "--data.mean 0.5: .* no gray images"),
    ],
    ids=str,
)
def test_options_without_effect_are_refused(config, changes, message):
    with pytest.raises(InputError, match=message):
        set_up(dataclasses.replace(config, batch_size=8, **changes))


def test_micro_batches_are_refused(config):
    with pytest.raises(InputError, match="--accumulate 2: the task style allows only"):
        set_up(dataclasses.replace(config, batch_size=8, accumulate=2))
