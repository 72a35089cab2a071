"""The task of face networks: its losses, its runs and its releases."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import shiftjax
from shiftjax.apps.face_verification import flip_averaged, verify_pairs
from shiftjax.apps.verify import verify
from shiftjax.weights import open_pretrained
from tests.train.processes import wait
from tests.train.runs import assert_trained_alike
from tests.train.small_trainer import assert_close, log_softmax
from tests.train.tasks.faces.people import FEATURES, IMAGES, NAMES, PEOPLE
from train import optimizer
from train.assemble import set_up
from train.commands import _reached
from train.config import Augment, Config, Schedule
from train.data.stream import items
from train.evaluation import evaluate, evaluate_run
from train.logging.console import describe_metrics
from train.logging.records import read_metrics
from train.release import load_run, release
from train.tasks import load_split

pytestmark = pytest.mark.usefixtures("quick")

LOSSES = ["arcface", "softmax_center"]
LENGTH = 2  # steps to which a dispatch is padded, so that all have one program


def with_loss(config: Config, loss: str) -> Config:
    return dataclasses.replace(
        config, faces=dataclasses.replace(config.faces, loss=loss)
    )


def unmoved(config: Config) -> Config:
    """Returns the configuration without augmentation."""
    return dataclasses.replace(config, augment=Augment(crop_padding=0, flip=False))


def steps(config: Config, devices: int, count: int = LENGTH):
    """Runs a few steps, and returns the state and the sums."""
    setup = set_up(dataclasses.replace(config, devices=devices))
    data, fed = setup.on_devices(setup.train_set)
    index = np.stack([setup.order.indices(step) for step in range(count)])
    batch = setup.replicas.split(items(index, fed, LENGTH))
    state = setup.replicas.replicate(setup.initial_state())
    return jax.device_get(setup.train_steps(state, data, batch, np.int32(count)))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_on_two_devices_is_that_on_one(config, loss):
    config = unmoved(with_loss(config, loss))
    (one, sums), (two, other) = steps(config, 1), steps(config, 2)
    assert_close(one, two, 1e-3)  # of updates, which BatchNorm's rounding moves
    assert_close(sums, other, 1e-4)
    centers = one.others.get("centers")
    if loss == "arcface":
        assert centers is None
    else:
        assert centers["centers"].shape == (PEOPLE, FEATURES)
        assert np.abs(centers["centers"]).max() > 0.1


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_of_a_step_is_that_of_numpy(config, loss):
    """And the centers after it are those of equation 4 of Wen et al."""
    config = unmoved(with_loss(config, loss))
    setup = set_up(config)
    state = setup.initial_state()
    params = {**state.params}
    classifier = jax.tree.map(
        lambda x: np.asarray(x, np.float64), params.pop("classifier")
    )
    chosen = setup.order.indices(0)
    images = setup.train_set.images[chosen] / np.float32(127.5) - 1
    labels = setup.train_set.labels[chosen]
    variables = {"params": params, "batch_stats": state.batch_stats}
    net = shiftjax.create_model("tiny_facenet")
    apply = functools.partial(net.apply, train=True, mutable=["batch_stats"])
    embeddings, _ = jax.jit(apply)(variables, images)
    embeddings = np.asarray(embeddings, np.float64)
    wanted, rows = {}, np.arange(len(labels))
    if loss == "arcface":
        kernel = classifier["kernel"] / np.linalg.norm(classifier["kernel"], axis=0)
        outputs = embeddings @ kernel
        logits = outputs.copy()
        logits[rows, labels] = np.cos(np.arccos(outputs[rows, labels]) + 0.2)
        wanted["loss"] = -log_softmax(8 * logits)[rows, labels].sum()
    else:
        outputs = embeddings @ classifier["kernel"] + classifier["bias"]
        wanted["center_loss"] = len(labels) / 2  # of length 1, to centers of zeros
        wanted["loss"] = -log_softmax(outputs)[rows, labels].sum()
        wanted["loss"] += 0.1 * wanted["center_loss"]
    wanted["top1"] = (outputs.argmax(1) == labels).sum()

    after, sums = steps(config, 1, 1)
    for name, value in wanted.items():
        assert sums[name] == pytest.approx(value, rel=1e-4), name
    if loss == "softmax_center":
        moved = np.zeros((PEOPLE, FEATURES))
        for person in range(PEOPLE):
            own = embeddings[labels == person]
            moved[person] = 0.5 * own.sum(0) / (1 + len(own))
        centers = after.others["centers"]["centers"]
        np.testing.assert_allclose(centers, moved, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_learns_and_resumes_to_the_same_bits(config, run, loss):
    config = with_loss(config, loss)
    outcome, text = run(config)
    assert "validation loss" in text
    assert outcome.test["examples"] == round(0.2 * PEOPLE * IMAGES)
    assert outcome.test["top1"] > 0.5  # of eight, so chance is an eighth
    records = read_metrics(config.workdir)
    losses = [r["loss"] for r in records if r["split"] == "train"]
    assert losses[-1] < losses[0] * 2 / 3
    assert evaluate_run(config.workdir)["top1"] == outcome.test["top1"]

    halves = dataclasses.replace(config, workdir=f"{config.workdir}_halves")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.stopping.StopRequest.reached", lambda _: True)
        stopped, _ = run(halves)
    assert stopped.steps == 1
    resumed, _ = run(halves)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(resumed.state),
        jax.device_get(outcome.state),
    )


def test_the_test_of_a_run_is_the_protocol_on_the_pairs(paired, run, tmp_path):
    """Each pair counts once, and its people are not those of the training."""
    paired = dataclasses.replace(paired, epochs=1.0)
    outcome, _ = run(paired)
    assert "equal error rate" in describe_metrics(outcome.test)
    examples = load_split(paired, "test")
    assert examples.class_names == NAMES
    pretrained = load_run(paired.workdir)

    @jax.jit
    def embed(images):
        shown = images / np.float32(127.5) - 1
        return pretrained.model.apply(pretrained.variables, shown)

    def similarity(first, second):
        files = (
            f"{paired.faces.images}/{n}/{n}_{i:04}.png" for n, i in [first, second]
        )
        pixels = np.stack([np.asarray(Image.open(file)) for file in files])
        one, other = flip_averaged(embed, pixels)
        return one @ other

    pairs = [(("T0", 1), ("T0", 2)), (("T1", 3), ("T1", 1))]
    pairs += [(("T0", 4), ("T1", 4)), (("T1", 1), ("T0", 1))]
    pairs += [(("T2", 1), ("T2", 2)), (("T3", 2), ("T3", 8))]
    pairs += [(("T2", 5), ("T3", 1)), (("T3", 6), ("T2", 1))]
    wanted = verify_pairs(
        [similarity(*pair) for pair in pairs],
        [True, True, False, False] * 2,
        [0] * 4 + [1] * 4,
    )
    test = outcome.test
    assert test["accuracy"] == wanted.accuracy
    assert test["accuracy_standard_error"] == wanted.accuracy_standard_error
    assert (test["auc"], test["eer"]) == (wanted.auc, wanted.eer)
    assert test["tar_at_far_0.01"] == wanted.tar_at_far[1e-2]
    assert test["tar_at_far_0.001"] == wanted.tar_at_far[1e-3]
    assert test["threshold"] == pytest.approx(wanted.threshold, abs=1e-5)
    assert (test["pairs"], test["examples"]) == (8, 13)  # T0 1, T1 1, T2 1 are in two
    assert evaluate_run(paired.workdir)["accuracy"] == wanted.accuracy
    entry = release([paired.workdir], "colors", tmp_path / "weights")
    card = open_pretrained(entry.name, tmp_path / "weights").card
    assert (card.threshold, card.threshold_source) == (
        test["threshold"],
        "all pairs of pairs.txt",
    )
    assert _reached(entry) == f"test accuracy {100 * wanted.accuracy:.2f}%"


def test_two_processes_train_as_one_does(paired, pair, run, tmp_path):
    """And verify each pair once."""
    config = dataclasses.replace(
        with_loss(paired, "softmax_center"),
        epochs=0.5,
        schedule=Schedule("constant", 0.001),
    )
    codes, said = wait(pair(config, config, program="tests.train.tasks.faces.tiny"))
    assert codes == [0, 0], said
    alone, _ = run(dataclasses.replace(config, workdir=str(tmp_path / "one")))
    assert (alone.steps, alone.test["pairs"]) == (2, 8)
    assert_trained_alike(config.workdir, alone)


def test_a_run_becomes_weights_without_its_classifier(config, run, tmp_path):
    config = dataclasses.replace(with_loss(config, "softmax_center"), epochs=1.0)
    outcome, _ = run(config)
    assert set(outcome.state.params["classifier"]) == {"kernel", "bias"}
    entry = release([config.workdir], "colors", tmp_path / "weights")
    assert entry.name == "tiny_facenet.colors"
    assert set(entry.runs[0].test) == {"loss", "top1"}
    params = {**outcome.state.params}
    del params["classifier"]
    pretrained = open_pretrained(entry.name, tmp_path / "weights")
    jax.tree.map(np.testing.assert_array_equal, pretrained.variables["params"], params)
    assert pretrained.card.class_names == ()
    assert pretrained.card.threshold is None
    embed = jax.jit(pretrained.model.apply)
    embedding = embed(pretrained.variables, jnp.ones((1, 16, 16, 3)))
    assert np.linalg.norm(embedding) == pytest.approx(1, rel=1e-5)
    assert verify(entry.name, tmp_path / "weights")

    init = str(tmp_path / "weights" / entry.file)
    setup = set_up(dataclasses.replace(config, init=init, ema_decay=0.9))
    state, fresh = setup.initial_state(), set_up(config).initial_state()
    started = {**state.params}
    for name, x in started.pop("classifier").items():
        np.testing.assert_array_equal(x, fresh.params["classifier"][name])
    jax.tree.map(np.testing.assert_array_equal, started, params)
    jax.tree.map(np.testing.assert_array_equal, state.ema["params"], state.params)


def test_validation_counts_each_image_once(config):
    """With the margin in its loss, and without it in its accuracy."""
    setup = set_up(config)
    examples = load_split(config, "validation")
    state = setup.initial_state()
    variables = setup.replicas.replicate(state.variables)
    found = evaluate(setup, variables, examples)
    images = examples.images / np.float32(127.5) - 1
    _, cosines = jax.jit(setup.trainer.task.model.apply)(state.variables, images)
    cosines, rows = np.asarray(cosines, np.float64), np.arange(len(examples))
    own = cosines[rows, examples.labels]
    logits = cosines.copy()
    logits[rows, examples.labels] = np.cos(np.arccos(own) + 0.2)
    losses = -log_softmax(8 * logits)[rows, examples.labels]
    assert found == {
        "loss": pytest.approx(losses.mean(), rel=1e-4),
        "top1": (cosines.argmax(1) == examples.labels).mean(),
        "examples": 8,
    }


def test_muon_does_not_update_the_classifier(config):
    params = jax.eval_shape(set_up(config).initial_state).params
    labels = optimizer.muon_labels(params)
    assert labels["classifier"]["kernel"] == "sgd"
    assert "muon" in jax.tree.leaves(labels["stage2_block01"])
