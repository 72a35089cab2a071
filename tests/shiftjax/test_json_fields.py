"""Cards and manifests: any other value of a field is refused, in one line."""

import dataclasses
import json

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy

from shiftjax import InputError, weights
from shiftjax.releases import manifest
from shiftjax.releases.manifest import Release, Run
from shiftjax.weights import Card, load_pretrained, open_pretrained, save

WORDS = (None, True, -1, 1.5, "7", "", [], [None], ["x", 1], {}, {"a": None}, 1e999)
SHAPED = {"architecture": "resnet20", "options": {"depth": 8, "num_classes": 2}}
CARD_VALUES = {
    **SHAPED,
    "class_names": ["a", "b"],
    "image_size": 8,
    "mean": [0.5],
    "std": [0.5],
    "dataset": "d",
    "recipe": "r",
    "seed": 0,
    "commit": "c",
    "license": "l",
    "resize": None,
    "threshold": None,
    "threshold_source": "",
    "painting": "",
    "painting_source": "",
    "feature_network": "",
}
TEXTS = {"", "7"}  # what a field of text accepts
ACCEPTED = {
    **dict.fromkeys(("dataset", "recipe", "commit", "license"), TEXTS),
    **dict.fromkeys(("threshold_source", "painting", "painting_source"), TEXTS),
    "feature_network": TEXTS,
    "resize": {None},
    "threshold": {None, -1},
}


def test_every_field_has_a_kind_and_values_to_try():
    for kind, kinds, tried in (
        (Card, weights.REQUIRED | weights.OPTIONAL, CARD_VALUES),
        (Release, manifest.RELEASE | {"logits": None}, ENTRY),
        (Run, manifest.RUN | manifest.RUN_OPTIONAL, RUN),
    ):
        names = {field.name for field in dataclasses.fields(kind)}
        assert names == kinds.keys() == tried.keys()


@pytest.fixture(scope="module")
def gray_arrays():
    model = Card(**SHAPED, class_names=(), image_size=8, mean=(), std=()).model()
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 1)))
    flat = flax.traverse_util.flatten_dict(shapes, sep="/")
    return {name: np.zeros(x.shape, x.dtype) for name, x in flat.items()}


def loaded(path, arrays, card):
    path.write_bytes(safetensors.numpy.save(arrays, {"card": json.dumps(card)}))
    return open_pretrained(str(path))


@pytest.mark.parametrize("field", CARD_VALUES)
def test_a_card_with_any_other_value_is_refused_in_one_line(
    tmp_path, gray_arrays, field
):
    """And is named with its field; a card without a required field, too."""
    path = tmp_path / "x.safetensors"
    for word in WORDS:
        if isinstance(word, str | int | None) and word in ACCEPTED.get(field, ()):
            continue
        with pytest.raises(InputError) as caught:
            loaded(path, gray_arrays, CARD_VALUES | {field: word})
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value) or field == "architecture"
    without = {name: x for name, x in CARD_VALUES.items() if name != field}
    if list(CARD_VALUES).index(field) < 6:
        with pytest.raises(InputError, match=f"the field '{field}' is missing"):
            loaded(path, gray_arrays, without)
    elif field == "resize":
        assert loaded(path, gray_arrays, without).card.resize is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": [0.5] * 2, "std": [0.5] * 2}, "both must have 1 .gray. or 3 .RGB."),
        ({"mean": [0.5] * 3}, "mean has 3 channels and std 1"),
        ({"std": [0]}, r"std=\[0\]: it must be a list of numbers above 0"),
        ({"resize": 7}, "resize=7: it must be at least image_size=8"),
        ({"image_size": 10**9}, "image_size=1000000000: it must be"),
        ({"image_size": [8]}, r"image_size=\[8\]: it must be .*, or a list of two"),
        ({"image_size": [8, 0]}, r"image_size=\[8, 0\]: it must be"),
        ({"image_size": [8, 12], "resize": 14}, "resize=14: it is for square images"),
        ({"sede": 1}, "unknown field 'sede': did you mean 'seed'"),
        ({"options": {"depth": "8"}}, "depth='8': it must be an integer"),
        ({"options": {"dtype": "float99"}}, "dtype.*make no resnet20: .*float99"),
        ({"options": {"kernel_init": 7}}, "make no resnet20: "),
    ],
)
def test_fields_of_a_card_that_do_not_fit(tmp_path, gray_arrays, fields, message):
    with pytest.raises(InputError, match=message) as caught:
        loaded(tmp_path / "x.safetensors", gray_arrays, CARD_VALUES | fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, gray_arrays, value):
    """Loaded or saved, with their path."""
    arrays = {name: x.copy() for name, x in gray_arrays.items()}
    arrays["params/stem/conv/kernel"].flat[5] = value
    message = "params/stem/conv/kernel has values that are NaN or infinite"
    with pytest.raises(InputError, match=message):
        loaded(tmp_path / "x.safetensors", arrays, CARD_VALUES)
    variables = flax.traverse_util.unflatten_dict(arrays, sep="/")
    card = Card(**SHAPED, class_names=("a", "b"), image_size=8, mean=(0,), std=(1,))
    with pytest.raises(InputError, match=message):
        save(tmp_path / "y.safetensors", variables, card)


@pytest.mark.parametrize("count", ["5", 0, -1, 2.5, True])
def test_a_number_of_classes_that_is_none_is_refused_first(tmp_path, caplog, count):
    """Before the file is read, and before anything is logged."""
    with pytest.raises(InputError, match=f"num_classes={count!r}: it must be"):
        load_pretrained(str(tmp_path / "none.safetensors"), num_classes=count)
    assert not caplog.records


ENTRY = {
    "name": "resnet20.toys",
    "file": "resnet20.toys.safetensors",
    "size": 1,
    "sha256": "0" * 64,
    "params": 1,
    "macs": 1,
    "dataset": "d",
    "recipe": "r",
    "runs": [],
    "logits": {"rings": [1.0]},
}
RUN = {
    "seed": 0,
    "test": {"top1": 0.5},
    "validation": {},
    "epochs": 1,
    "hours": 0.5,
    "hardware": "h",
    "command": "c",
    "commit": "c",
    "log": "logs/a.gz",
}
NUMBERS = {"epochs", "hours"}
OUTSIDE = ("/etc/a", "../a", "a/../../b", "..", ".", "a\\b", "C:a", "a\0b")


def allowed(field, word):
    """Whether a field of an entry of the manifest has such a value, by hand."""
    if field in ("dataset", "recipe", "hardware", "command", "commit", "log"):
        return isinstance(word, str)
    if field in ("name", "file"):
        return word == "7"
    if field in ("test", "validation", "logits"):
        return word == {}
    return (field in NUMBERS and word == 1.5) or (field == "runs" and word == [])


@pytest.mark.parametrize("field", [*ENTRY, *RUN])
def test_a_manifest_with_any_other_value_is_refused_in_one_line(tmp_path, field):
    file = tmp_path / manifest.FILE

    def read(value):
        entry = ENTRY | ({field: value} if field in ENTRY else {})
        run = RUN | ({field: value} if field in RUN else {})
        entry = entry if field in ENTRY else entry | {"runs": [run]}
        file.unlink(missing_ok=True)
        file.write_text(json.dumps({"format": 1, "releases": [entry]}))
        manifest._parsed.cache_clear()
        return manifest.read(tmp_path)

    (entry,) = read((ENTRY | RUN)[field]).values()
    assert entry.file == ENTRY["file"]
    for word in (*WORDS, *(OUTSIDE if field in ("file", "log") else ())):
        if word not in OUTSIDE and allowed(field, word):
            read(word)
            continue
        with pytest.raises(InputError, match="is not a valid manifest") as caught:
            read(word)
        assert f"{field}=" in str(caught.value)
        assert "\n" not in str(caught.value)
