"""The splits of the task of face networks, and its options."""

import dataclasses
import logging

import numpy as np
import pytest

from shiftjax.apps.face_verification import verify_pairs
from shiftjax.errors import InputError, MissingFileError
from tests.train.tasks.faces.people import FEATURES, IMAGES, NAMES, PEOPLE, SIZE, draw
from train.assemble import set_up
from train.config import Augment, Data, Faces, Model, published
from train.tasks import load_split
from train.tasks.faces import FaceRecognition


def test_people_of_the_pairs_are_not_trained_on(paired, mixed, caplog):
    """And no images are held out for another test."""
    config = mixed
    with caplog.at_level(logging.WARNING):
        splits = [load_split(config, s) for s in ("train", "validation", "test")]
    assert [len(x) for x in splits] == [PEOPLE * IMAGES - 8, 8, 13]
    assert {x.class_names for x in splits} == {NAMES}
    alone = load_split(paired, "train")
    np.testing.assert_array_equal(splits[0].images, alone.images)
    np.testing.assert_array_equal(splits[0].labels, alone.labels)
    assert caplog.text.count("3 of 11 classes are left out: T0, T1, T2") == 1


@pytest.mark.parametrize(
    ("fold", "trained"), [(1, (*NAMES, "T2")), (2, (*NAMES, "T0", "T1"))]
)
def test_one_fold_is_tested_and_its_people_are_not_trained_on(
    mixed, rng, fold, trained
):
    """The threshold is chosen on the other fold."""
    faces = dataclasses.replace(mixed.faces, folds=(fold,))
    config = dataclasses.replace(mixed, faces=faces)
    splits = [load_split(config, s) for s in ("train", "validation", "test")]
    assert {x.class_names for x in splits} == {trained}
    training, validation, examples = splits
    assert len(training) + len(validation) == len(trained) * IMAGES
    embeddings = rng.normal(size=(13, FEATURES))
    first, second = embeddings[examples.positions.T]
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = (first * second).sum(1) / lengths
    wanted = verify_pairs(cosines, [True, True, False, False] * 2, [1] * 4 + [2] * 4)
    found = examples.verify(embeddings)
    assert found["accuracy"] == wanted.fold_accuracies[fold - 1]
    assert found[f"accuracy_fold_{fold}"] == found["accuracy"]
    assert f"accuracy_fold_{3 - fold}" not in found
    assert found["threshold"] == pytest.approx(wanted.fold_thresholds[fold - 1])
    assert found["pairs"] == 4
    inside = cosines[4 * fold - 4 : 4 * fold]
    above = [one > two for one in inside[:2] for two in inside[2:]]
    assert found["auc"] == sum(above) / 4
    assert "accuracy_standard_error" not in found
    fields = FaceRecognition.card_fields(published(config), found)
    assert fields["threshold_source"] == f"pairs.txt without fold {fold}"


def test_several_folds_are_a_test_of_their_own(mixed, folder, rng, tmp_path):
    """Of fold 1, whose people are trained on, the test has nothing."""
    both = tmp_path / "both"
    (both / "T3").symlink_to(folder / "test" / "T3")
    text = (folder / "pairs.txt").read_text().splitlines()
    first = ["3 2", "P0 1 2", "P1 3 4", "P0 1 P1 1", "P1 2 P0 3"]
    (tmp_path / "pairs.txt").write_text("\n".join([*first, *text[1:]]))
    faces = dataclasses.replace(
        mixed.faces,
        pairs=str(tmp_path / "pairs.txt"),
        images=str(both),
        folds=(3, 2),
    )
    config = dataclasses.replace(mixed, faces=faces)
    examples = load_split(config, "test")
    assert load_split(config, "train").class_names == NAMES == examples.class_names
    embeddings = rng.normal(size=(13, FEATURES))
    found = examples.verify(embeddings)
    wanted = load_split(mixed, "test").verify(embeddings)
    folds = {f"accuracy_fold_{n}": found.pop(f"accuracy_fold_{n}") for n in (2, 3)}
    assert list(folds.values()) == [wanted.pop(f"accuracy_fold_{n}") for n in (1, 2)]
    assert found == wanted
    fields = FaceRecognition.card_fields(published(config), found)
    assert fields["threshold_source"] == "the folds 3 2 of pairs.txt"


def test_the_pairs_of_a_gray_run_are_gray(paired):
    """The network has a single channel, and could not test others at the end."""
    data = dataclasses.replace(paired.data, mean=(0.5,), std=(0.25,))
    config = dataclasses.replace(paired, data=data)
    shapes = {load_split(config, x).image_shape for x in ("train", "test")}
    assert shapes == {(SIZE, SIZE, 1)}


@pytest.mark.parametrize("pairs", [True, False])
def test_people_with_few_images_are_not_trained_on(mixed, tmp_path, pairs):
    """Of P0, one image of eight is in the folder."""
    person = tmp_path / "both" / "P0"
    one = person.resolve() / "P0_0003.png"
    person.unlink()
    person.mkdir()
    (person / one.name).symlink_to(one)
    faces = dataclasses.replace(mixed.faces, min_images=2)
    if not pairs:
        faces = Faces(min_images=2)
    config = dataclasses.replace(mixed, faces=faces)
    names = NAMES[1:] if pairs else (*NAMES[1:], "T0", "T1", "T2")
    splits = [load_split(config, s) for s in ("train", "validation", "test")]
    assert {x.class_names for x in splits} == {names}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": Model("resnet20")},
            "resnet20 embeds no faces: one of shift_facenet",
        ),
        (
            {"label_smoothing": 0.1},
            "--label-smoothing 0.1: the task faces allows only 0",
        ),
        ({"augment": Augment(mixup=0.2)}, "--augment.mixup 0.2: the task faces"),
        ({"augment": Augment(cutmix=1.0)}, "--augment.cutmix 1.0: the task faces"),
        ({"faces": Faces(margin=2.0)}, "--faces.margin 2.0: it must be 0 to 1.5"),
        ({"faces": Faces(scale=0.0)}, "--faces.scale 0.0: it must be above 0"),
        ({"faces": Faces(center_weight=-1)}, "--faces.center-weight -1: it must be"),
        ({"faces": Faces(center_rate=1.5)}, "--faces.center-rate 1.5: it must be"),
        (
            {"faces": Faces("softmax_center"), "accumulate": 3},
            "--accumulate 3: the loss softmax_center allows only 1",
        ),
        ({"faces": Faces(pairs="pairs.txt")}, "--faces.images is missing"),
        ({"faces": Faces(images="images")}, "--faces.pairs is missing"),
        ({"faces": Faces(folds=(2, 1))}, "--faces.folds 2 1 needs --faces.pairs"),
        (
            {"faces": Faces(min_images=2), "data": Data(image_size=SIZE)},
            "--faces.min-images 2: only a folder can leave people out, and not digits",
        ),
        ({"faces": Faces(folds=(1, 0))}, r"--faces.folds \(1, 0\): it must be"),
    ],
)
def test_an_option_that_does_not_fit_is_named(config, changes, message):
    with pytest.raises(InputError, match=message):
        set_up(dataclasses.replace(config, **changes))


def test_a_missing_fold_is_named(paired):
    faces = dataclasses.replace(paired.faces, folds=(1, 3))
    with pytest.raises(InputError, match="folds 1 3: the pairs have the folds 1 to 2"):
        set_up(dataclasses.replace(paired, faces=faces))


def test_missing_pairs_are_named(paired):
    faces = dataclasses.replace(paired.faces, pairs="nowhere.txt")
    with pytest.raises(MissingFileError, match=r"no file of pairs nowhere\.txt"):
        set_up(dataclasses.replace(paired, faces=faces))


def test_only_a_folder_can_leave_people_out(paired, folder, tmp_path):
    """Digits have no folders: one of the people of these pairs is called "3"."""
    rng = np.random.default_rng(0)
    for person, name in enumerate(("3", "7")):
        draw(tmp_path / "images", name, person, rng)
    (tmp_path / "pairs.txt").write_text("2 1\n3 1 2\n3 1 7 1\n7 1 2\n7 2 3 2\n")
    faces = Faces(pairs=str(tmp_path / "pairs.txt"), images=str(tmp_path / "images"))
    config = dataclasses.replace(paired, faces=faces, data=Data(image_size=SIZE))
    with pytest.raises(InputError, match=r"digits has 2 people of .*: 3, 7"):
        set_up(config)
