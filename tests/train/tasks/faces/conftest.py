"""A tiny network, and configurations of its runs."""

import dataclasses

import numpy as np
import pytest

from shiftjax import registry
from tests.train.tasks.faces import tiny
from tests.train.tasks.faces.people import NAMES, PEOPLE, SIZE, TESTED, draw
from train.config import Augment, Config, Data, Faces, Model, Optimizer, Schedule


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    """A face network of two blocks, by the name "tiny_facenet"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.VARIANTS, tiny.NAME, tiny.BUILD)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of the people of the training and of the pairs, and the pairs."""
    root = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    for person, name in enumerate(NAMES):
        draw(root / "train", name, person, rng)
    for person, name in enumerate(TESTED, PEOPLE):
        draw(root / "test", name, person, rng)
    (root / "pairs.txt").write_text(
        "2 2\nT0 1 2\nT1 3 1\nT0 4 T1 4\nT1 1 T0 1\n"
        "T2 1 2\nT3 2 8\nT2 5 T3 1\nT3 6 T2 1\n"
    )
    return root


@pytest.fixture
def config(folder, tmp_path):
    return Config(
        task="faces",
        workdir=str(tmp_path / "run"),
        epochs=12.0,
        batch_size=12,
        eval_batch_size=8,
        model=Model("tiny_facenet"),
        data=Data(
            source=f"folder:{folder / 'train'}", image_size=SIZE, validation_examples=8
        ),
        augment=Augment(crop_padding=1, flip=False),
        faces=Faces(scale=8.0, margin=0.2, center_weight=0.1),
        optimizer=Optimizer(weight_decay=0.0),
        schedule=Schedule(learning_rate=0.1),
        log_steps=4,
        eval_epochs=3.0,
        save_epochs=3.0,
        log_to=(),
    )


@pytest.fixture
def paired(config, folder):
    """Returns a configuration with the pairs as its test."""
    pairs, images = str(folder / "pairs.txt"), str(folder / "test")
    faces = dataclasses.replace(config.faces, pairs=pairs, images=images)
    return dataclasses.replace(config, faces=faces)


@pytest.fixture
def mixed(paired, folder, tmp_path):
    """A configuration whose training data have three of the people in the pairs."""
    both = tmp_path / "both"
    both.mkdir()
    for name in (*NAMES, *TESTED[:3]):
        split = "train" if name in NAMES else "test"
        (both / name).symlink_to(folder / split / name)
    data = dataclasses.replace(paired.data, source=f"folder:{both}")
    return dataclasses.replace(paired, data=data)
