"""Files of weights and the manifest: what is refused; nothing loads in part."""

import dataclasses
import functools
import hashlib
import json
import logging
import shutil

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy

import shiftjax
from shiftjax import InputError, MissingFileError, UnknownNameError, registry
from shiftjax.apps.face_verification import best_threshold
from shiftjax.apps.verify import compare_logits, sample_logits, verify
from shiftjax.releases import manifest
from shiftjax.releases.manifest import Release, Run
from shiftjax.weights import Card, digest, load_pretrained, open_pretrained, save
from tests.shiftjax.conftest import random_variables

pytestmark = pytest.mark.usefixtures("quick")

NAME = "shiftresnet20_e3.toys"
CARD = Card(
    architecture="shiftresnet20_e3",
    options={"depth": 8, "expansion": 2, "num_classes": 4},
    class_names=("ball", "car", "doll", "kite"),
    image_size=8,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.3),
    dataset="folder:toys",
)


@pytest.fixture(scope="module")
def made(seed):
    """Variables of a small network, BatchNorm's statistics too at random."""
    images = np.zeros((1, 8, 8, 3), np.float32)
    return random_variables(np.random.default_rng(seed), CARD.model(), images)


@pytest.fixture
def variables(made):
    """A copy of them, which a test may change."""
    return jax.tree.map(np.copy, made)


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    """A folder with one release."""
    folder = tmp_path_factory.mktemp("released")
    path = folder / f"{NAME}.safetensors"
    size, sha256 = digest(save(path, made, CARD))
    costs = shiftjax.summarize(CARD.model(), 8)
    logits = sample_logits(open_pretrained(str(path)))
    runs = (Run(0, {"top1": 0.75}), Run(1, {"top1": 0.85}))
    entry = Release(
        NAME, path.name, size, sha256, costs.params, costs.macs, "t", "", runs, logits
    )
    manifest.write_manifest(folder, {NAME: entry})
    return folder


@pytest.fixture
def released(folder, tmp_path):
    """A copy of the folder, which a test may change."""
    return shutil.copytree(folder, tmp_path, dirs_exist_ok=True)


def whole(card):
    """A card after a file, which has the options that have defaults too, by hand."""
    defaults = {"kernel_size": 3, "dilation": 1, "momentum": 0.9, "epsilon": 1e-5}
    return dataclasses.replace(card, options=defaults | card.options)


def file_of(folder):
    return folder / f"{NAME}.safetensors"


def change(folder, **fields):
    """Changes the release in the manifest."""
    entry = manifest.find(NAME, folder)
    manifest.write_manifest(folder, {NAME: dataclasses.replace(entry, **fields)})


def test_what_is_loaded_is_what_was_saved(released, variables, assert_trees_close):
    model, loaded = load_pretrained(NAME, directory=released)
    assert_trees_close(loaded, variables, 0)
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {np.dtype("float32")}
    images = np.ones((2, 8, 8, 3), np.float32)
    expected = CARD.model().apply(variables, images)
    np.testing.assert_array_equal(model.apply(loaded, images), expected)


def test_fields_that_older_versions_lack_are_written_if_they_have_values(
    tmp_path, variables
):
    path = tmp_path / "a.safetensors"
    added = {"resize": 9, "threshold": 0.0, "threshold_source": "pairs.txt"}
    added |= {"painting": "aGk=", "painting_source": "x", "feature_network": "vgg16"}
    no_pair = best_threshold([1.0, 1.0], [True, False])  # the next float above 1
    for fields in ({}, added, added | {"threshold": no_pair}):
        card = dataclasses.replace(CARD, **fields)
        data = save(path, variables, card)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        written = json.loads(header["__metadata__"]["card"])
        assert {name: x for name, x in written.items() if name in added} == fields
        assert open_pretrained(str(path)).card == whole(card)


@pytest.mark.parametrize("changed", [{"kernel_size": 5}, {"epsilon": 0.1}])
def test_another_default_does_not_change_a_file(
    released, variables, monkeypatch, changed
):
    """As in a later version, whose networks have other defaults."""
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    expected = CARD.model().apply(variables, images)
    architecture = registry.VARIANTS[CARD.architecture]
    later = functools.partial(architecture, **changed)
    monkeypatch.setitem(registry.VARIANTS, CARD.architecture, later)
    model, loaded = load_pretrained(NAME, directory=released)
    np.testing.assert_array_equal(model.apply(loaded, images), expected)


def test_the_same_values_give_the_same_bytes(tmp_path, variables):
    """Whatever the order of the names."""
    turned = {k: variables[k] for k in reversed(list(variables))}
    first = save(tmp_path / "a.safetensors", variables, CARD)
    assert save(tmp_path / "b.safetensors", turned, CARD) == first
    assert (tmp_path / "b.safetensors").read_bytes() == first


def test_any_program_can_read_a_file(released, variables):
    """By the format's own reader: float32 arrays by path."""
    arrays = safetensors.numpy.load_file(file_of(released))
    kernel = variables["params"]["head"]["kernel"]
    np.testing.assert_array_equal(arrays["params/head/kernel"], kernel)
    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    assert set(arrays) == set(flat)


def test_a_file_loads_without_a_manifest(released, variables, assert_trees_close):
    path = file_of(released)
    pretrained = open_pretrained(str(path))
    assert pretrained.card == whole(CARD)
    assert pretrained.release is None
    assert_trees_close(load_pretrained(path)[1], variables, 0)


def test_another_number_of_classes_replaces_the_head(released, variables, caplog):
    with caplog.at_level(logging.WARNING):
        model, loaded = load_pretrained(NAME, num_classes=7, directory=released)
    assert "4 classes: a new head with 7 classes replaces its head" in caplog.text
    assert model.num_classes == 7
    assert loaded["params"]["head"]["kernel"].shape == (64, 7)
    stem = loaded["params"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(stem, variables["params"]["stem"]["conv"]["kernel"])
    assert model.apply(loaded, np.ones((2, 8, 8, 3), np.float32)).shape == (2, 7)


def test_the_same_number_of_classes_replaces_nothing(released, caplog):
    _, loaded = load_pretrained(NAME, num_classes=4, directory=released)
    assert loaded["params"]["head"]["kernel"].shape == (64, 4)
    assert not caplog.records


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_channels_adapt_the_stem_as_timm_does(released, variables, channels):
    model, loaded = load_pretrained(NAME, channels=channels, directory=released)
    old = np.asarray(variables["params"]["stem"]["conv"]["kernel"])
    new = np.empty((*old.shape[:2], channels, old.shape[3]), np.float32)
    for channel in range(channels):
        new[:, :, channel] = old[:, :, channel % 3] * 3 / channels
    if channels == 1:
        new[:, :, 0] = old[:, :, 0] + old[:, :, 1] + old[:, :, 2]
    actual = loaded["params"]["stem"]["conv"]["kernel"]
    np.testing.assert_allclose(actual, new, rtol=1e-6)
    images = np.ones((2, 8, 8, channels), np.float32)
    assert model.apply(loaded, images).shape == (2, 4)
    rest = loaded["params"]["head"]["kernel"], variables["params"]["head"]["kernel"]
    np.testing.assert_array_equal(*rest)


def test_gray_images_give_the_logits_of_three_equal_channels(released):
    model, variables = load_pretrained(NAME, directory=released)
    gray, adapted = load_pretrained(NAME, channels=1, directory=released)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    expected = model.apply(variables, images.repeat(3, -1))
    np.testing.assert_allclose(gray.apply(adapted, images), expected, atol=1e-5)


def test_channels_and_classes_change_together(released):
    options = {"channels": 1, "num_classes": 7}
    model, variables = load_pretrained(NAME, **options, directory=released)
    assert model.apply(variables, np.ones((1, 8, 8, 1), np.float32)).shape == (1, 7)


@pytest.mark.parametrize("channels", [0, -1, 1.5, "1", True])
def test_a_number_of_channels_is_a_positive_integer(released, channels):
    with pytest.raises(InputError, match=f"channels={channels!r}"):
        load_pretrained(NAME, channels=channels, directory=released)


def test_the_environment_names_the_folder(released, monkeypatch):
    monkeypatch.setenv(manifest.ENVIRONMENT, str(released))
    assert shiftjax.list_models(pretrained=True) == [NAME]
    assert shiftjax.list_models("*.cifar*", pretrained=True) == []
    load_pretrained(NAME)


def test_a_folder_without_releases_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv(manifest.ENVIRONMENT, str(tmp_path))
    assert shiftjax.list_models(pretrained=True) == []
    with pytest.raises(MissingFileError, match=r"manifest\.json does not exist"):
        load_pretrained(NAME)


# What is not as released.


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE = {
    "a flipped byte": (flip, InputError, "is damaged: its sha256"),
    "a cut file": (cut, InputError, r"not the [\d,]+ of the release"),
    "an empty file": (lambda p: p.write_bytes(b""), InputError, "has 0 bytes"),
    "a missing file": (lambda p: p.unlink(), MissingFileError, "does not exist"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_said_in_one_line(released, kind):
    damage, error, message = DAMAGE[kind]
    damage(file_of(released))
    with pytest.raises(error, match=message) as caught:
        load_pretrained(NAME, directory=released)
    assert "\n" not in str(caught.value)


def test_a_release_is_not_hidden_by_a_folder_of_its_name(
    released, variables, tmp_path, monkeypatch, assert_trees_close
):
    """Such as that of `shiftjax hub NAME -o NAME`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert_trees_close(load_pretrained(NAME, directory=released)[1], variables, 0)


def test_an_unknown_name_gets_the_nearest(released):
    with pytest.raises(UnknownNameError, match=f"did you mean '{NAME}'"):
        load_pretrained("shiftresnet20_e3.toy", directory=released)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(MissingFileError, match=r"there is no file .*x\.safetensors"):
        load_pretrained(str(tmp_path / "x.safetensors"))


def test_a_file_of_another_network_than_the_manifest_says(released):
    entry = manifest.find(NAME, released)
    other = dataclasses.replace(entry, name="resnet20.toys")
    manifest.write_manifest(released, {other.name: other})
    with pytest.raises(InputError, match="holds a shiftresnet20_e3, not the resnet20"):
        load_pretrained(other.name, directory=released)


def rewritten(path, arrays, card=CARD):
    """Writes a file that `save` would refuse."""
    text = json.dumps(dataclasses.asdict(card))
    path.write_bytes(safetensors.numpy.save(arrays, {"card": text}))


def test_all_that_does_not_fit_is_named(released):
    path = file_of(released)
    arrays = safetensors.numpy.load_file(path)
    del arrays["params/head/bias"]
    arrays["params/tail/bias"] = np.zeros(3, np.float32)
    arrays["params/head/kernel"] = arrays["params/head/kernel"].astype(np.float16)
    arrays["params/stem/norm/scale"] = np.ones(5, np.float32)
    rewritten(path, arrays)
    with pytest.raises(InputError) as caught:
        load_pretrained(str(path))
    for part in (
        "params/head/bias is missing",
        "params/tail/bias is unknown",
        "params/head/kernel is float16 [64, 4], not float32 [64, 4]",
        "params/stem/norm/scale is float32 [5], not float32 [16]",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "shiftresnet21"}, "unknown model 'shiftresnet21'"),
        ({"options": {"dept": 8}}, "did you mean 'depth'"),
        ({"class_names": ("a", "b")}, "2 class names for 4 classes"),
        ({"options": CARD.options | {"depth": 14}}, "block02.* is missing"),
    ],
)
def test_a_card_of_another_network(released, fields, message):
    path = file_of(released)
    card = dataclasses.replace(CARD, **fields)
    rewritten(path, safetensors.numpy.load_file(path), card)
    with pytest.raises(InputError, match=message):
        load_pretrained(str(path))


def test_saving_refuses_what_is_not_the_networks(tmp_path, variables):
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="mean has 3 channels and std 1"):
        save(path, variables, dataclasses.replace(CARD, std=(0.2,)))
    with pytest.raises(InputError, match="cannot be written"):
        save(tmp_path / "no" / "x.safetensors", variables, CARD)
    del variables["params"]["head"]["bias"]
    with pytest.raises(InputError, match="params/head/bias is missing"):
        save(path, variables, CARD)
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        save(tmp_path / "x.npz", variables, CARD)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a valid manifest"),
        ("[]", "is not a valid manifest"),
        ('{"format": 2, "releases": []}', "has format 2; this version"),
        ('{"format": 1, "releases": [{"name": "x"}]}', "is not a valid manifest"),
    ],
)
def test_a_manifest_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / manifest.FILE).write_text(text)
    with pytest.raises(InputError, match=message):
        manifest.read(tmp_path)


# Verification.


def test_a_release_is_verified(released):
    assert verify(NAME, released) == ("rings", "temple")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"params": 1}, "but the manifest has .*'parameters': 1"),
        ({"macs": 1}, "but the manifest has .*'multiply-adds': 1"),
        ({"logits": {"rings": [1.0, 2.0, 3.0, 4.0]}}, "logits of the image 'rings'"),
        ({"logits": {"rings": [1.0, 2.0]}}, "2 logits of the image 'rings', and the"),
    ],
)
def test_a_release_that_does_something_else(released, fields, message):
    change(released, **fields)
    with pytest.raises(InputError, match=message):
        verify(NAME, released)


def test_logits_may_differ_by_rounding_alone():
    old = {"rings": [10.0, -4.0]}
    compare_logits({"rings": [10.009, -4.0]}, old, "x")
    for wrong in ([10.011, -4.0], [10.0, -3.98], [np.nan, -4.0]):
        with pytest.raises(InputError, match="differ by"):
            compare_logits({"rings": wrong}, old, "x")


def test_hashes_are_sha256():
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest(b"abc") == (3, expected)
    assert hashlib.sha256(b"abc").hexdigest() == expected
