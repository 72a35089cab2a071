"""Networks by name: what is listed, what is made, and what an unknown name says."""

import dataclasses
import fnmatch
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import shiftjax
from shiftjax import InputError, UnknownNameError, create_model, list_models
from shiftjax.models.resnet import DepthwiseResNet, ResNet, ShiftResNet
from shiftjax.registry import defining_options
from shiftjax.weights import Card, open_pretrained, save

NAMES = [
    *(f"depthwise_resnet{depth}" for depth in (20, 56, 110)),
    *(f"resnet{depth}" for depth in (20, 56, 110)),
    *(f"shiftresnet{depth}_e{e}" for depth in (20, 56, 110) for e in (1, 3, 6, 9)),
]


def test_all_networks_of_the_paper_are_listed():
    assert set(NAMES) <= set(list_models())
    assert list_models() == sorted(set(list_models()))


PATTERNS = {
    "shiftresnet20_*": [f"shiftresnet20_e{e}" for e in (1, 3, 6, 9)],
    "*_e9": ["shiftresnet110_e9", "shiftresnet20_e9", "shiftresnet56_e9"],
    "resnet??": ["resnet20", "resnet56"],
    "resnet[15]*": ["resnet110", "resnet56"],
    "resnet20": ["resnet20"],
    "RESNET20": [],
    "resnet2": [],
    "": [],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_wildcards(pattern):
    found = [name for name in list_models(pattern) if name in NAMES]
    assert found == PATTERNS[pattern]


def test_pretrained_names_are_an_architecture_and_a_tag():
    names = list_models(pretrained=True)
    assert names == sorted(names)
    for name in names:
        architecture, tag = name.split(".")
        assert architecture in list_models()
        assert tag
    assert list_models("no such name", pretrained=True) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_what_is_made(name):
    model = create_model(name)
    family, _, expansion = name.partition("_e")
    kinds = {"depthwise": DepthwiseResNet, "shiftresnet": ShiftResNet, "resnet": ResNet}
    kind = next(kind for start, kind in kinds.items() if name.startswith(start))
    assert type(model) is kind
    assert isinstance(model, nn.Module)
    assert model.depth == int(family.removeprefix("depthwise_").strip("shiftren"))
    if kind is ShiftResNet:
        assert model.expansion == int(expansion)


def test_overrides_are_fields_of_the_network():
    options = {"num_classes": 100, "dtype": jnp.bfloat16, "param_dtype": jnp.float16}
    model = create_model("shiftresnet56_e3", expansion=4.5, remat=True, **options)
    assert (model.depth, model.expansion, model.remat) == (56, 4.5, True)
    assert {name: getattr(model, name) for name in options} == options
    assert create_model("shiftresnet56_e3").num_classes == 10


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_a_family_takes_any_expansion(depth):
    model = create_model(f"shiftresnet{depth}", expansion=4)
    assert (type(model), model.depth, model.expansion) == (ShiftResNet, depth, 4)


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_a_family_without_its_expansion_says_what_to_write(depth):
    name = f"shiftresnet{depth}"
    with pytest.raises(InputError) as error:
        create_model(name, num_classes=100)
    for words in (f"'{name}' needs expansion=", f"{name}_e1", f"{name}_e9"):
        assert words in str(error.value)


UNKNOWN = {
    "resnet2O": "unknown model 'resnet2O': did you mean 'resnet20'",
    "shiftresnet20_e2": "did you mean 'shiftresnet20_e[1369]'",
    "shift_resnet20_e3": "did you mean 'shiftresnet20_e3'",
    "shiftresnet5": "did you mean 'shiftresnet5?6'",
    "transformer": r"unknown model 'transformer': .*known: as_resnet_w32",
    "": "unknown model ''",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name_is_answered_with_the_nearest(name):
    with pytest.raises(UnknownNameError, match=UNKNOWN[name]) as error:
        create_model(name)
    assert isinstance(error.value, KeyError)
    assert isinstance(error.value, ValueError)


UNKNOWN_OPTIONS = {
    ("resnet20", "num_class"): "option of resnet20 'num_class': did you mean 'num_c",
    ("resnet20", "expansion"): "option of resnet20 'expansion'",
    ("shiftresnet20_e3", "net_reduction"): "option of shiftresnet20_e3 'net_reduction'",
    ("depthwise_resnet20", "block_reduction"): "did you mean 'reduction'",
    ("resnet20", "parent"): "option of resnet20 'parent'",
}


@pytest.mark.parametrize(("name", "option"), UNKNOWN_OPTIONS)
def test_an_unknown_option_is_answered_with_the_nearest(name, option):
    with pytest.raises(UnknownNameError, match=UNKNOWN_OPTIONS[name, option]):
        create_model(name, **{option: 1})


@pytest.mark.parametrize("name", list_models())
def test_every_listed_name_can_be_made_and_matches_itself(name):
    assert isinstance(create_model(name), nn.Module)
    assert fnmatch.filter(list_models(name), name) == [name]


@pytest.mark.parametrize("name", list_models())
def test_every_network_is_made_again_from_its_options(name):
    """Through JSON, as on a card, and by its class, without the name's options."""
    model = create_model(name)
    text = json.dumps(defining_options(model), default=dataclasses.asdict)
    again = type(model)(**json.loads(text))
    assert json.dumps(defining_options(again), default=dataclasses.asdict) == text


SAVED = ["shiftnet_c", "shift_facenet", "facenet_resnet26_w11", "as_resnet_w32"]


@pytest.mark.parametrize("name", SAVED)
def test_a_network_is_loaded_from_its_file(name, tmp_path):
    """Options may be other values than numbers and words, such as stages."""
    model = create_model(name)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    names = tuple(map(str, range(model.num_classes)))
    card = Card(name, {}, names, 64, (0.5,) * 3, (0.5,) * 3)
    save(tmp_path / "a.safetensors", variables, card)
    loaded = open_pretrained(str(tmp_path / "a.safetensors"))
    assert (
        shiftjax.summarize(loaded.model, 64).macs == shiftjax.summarize(name, 64).macs
    )
    # Equal networks share what jit has compiled.
    assert loaded.model == model
    assert hash(loaded.model) == hash(model)


@pytest.mark.parametrize(
    ("option", "given", "wanted"),
    [
        ("num_classes", np.int64(7), 7),
        ("block_reduction", np.float32(2), 2.0),
        ("block_reduction", jnp.ones(()), 1.0),
        ("remat", np.bool_(True), True),
        ("implementation", "reference", "reference"),
    ],
)
def test_an_option_becomes_a_value_of_python(option, given, wanted):
    """So that the network can be hashed, and written to a card."""
    model = create_model("resnet20", **{option: given})
    assert getattr(model, option) == wanted
    assert type(getattr(model, option)) is type(wanted)
    assert model == create_model("resnet20", **{option: wanted})
    json.dumps(defining_options(model))


def test_blocks_become_a_tuple():
    model = create_model("resnet50", blocks=[1, np.int32(2), 1, 1])
    assert model.blocks == (1, 2, 1, 1)
    json.dumps(model.blocks)
    hash(model)


WRONG_TYPES = {
    ("resnet20", "num_classes", "5"): "num_classes='5': it must be an integer",
    ("resnet20", "num_classes", None): "num_classes=None: it must be an integer",
    ("resnet20", "num_classes", 5.5): "num_classes=5.5: it must be an integer",
    ("resnet20", "depth", True): "depth=True: it must be an integer",
    ("resnet20", "remat", "no"): "remat='no': it must be True or False",
    ("resnet20", "remat", 2): "remat=2: it must be True or False",
    ("resnet20", "momentum", "0.9"): "momentum='0.9': it must be a number",
    ("resnet20", "implementation", 3): "implementation=3: it must be a string or None",
    ("shiftresnet20", "expansion", (3,)): r"expansion=\(3,\): it must be a number",
    ("shiftresnet50", "blocks", "3463"): "blocks='3463': it must be a tuple of int",
    ("shiftnet_a", "shortcut", 1): "shortcut=1: it must be a string",
    ("resnet20", "dtype", "flaot32"): "dtype='flaot32': it must be None or a dtype of",
    ("resnet20", "dtype", 3): "dtype=3: it must be None or a dtype of floats",
    ("resnet20", "param_dtype", "int32"): "param_dtype='int32': it must be a dtype of",
    ("resnet20", "param_dtype", None): "param_dtype=None: it must be a dtype of floats",
    (
        "resnet20",
        "kernel_init",
        "zeros",
    ): "kernel_init='zeros': it must be an initializer",
}


@pytest.mark.parametrize("case", WRONG_TYPES, ids=str)
def test_an_option_of_another_type_is_refused(case):
    name, option, value = case
    with pytest.raises(InputError, match=WRONG_TYPES[case]):
        create_model(name, **{option: value})


@pytest.mark.parametrize(
    "dtype", ["bfloat16", jnp.bfloat16, np.float16, np.dtype("float32"), float]
)
def test_a_dtype_may_be_given_in_any_form(dtype):
    model = create_model("resnet20", dtype=dtype, param_dtype=dtype)
    assert model.dtype == model.param_dtype == dtype


def test_an_option_may_be_a_number_of_numpy():
    model = create_model("shiftresnet20", expansion=np.float32(2), depth=np.int64(8))
    assert (model.expansion, model.depth) == (2, 8)
    assert create_model("resnet20", remat=1, scan=np.bool_(False)).remat
