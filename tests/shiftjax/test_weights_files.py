"""Files of weights of other kinds: foreign ones, and those of unusual networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from shiftjax import InputError, load_pretrained
from shiftjax.weights import Card, open_pretrained, save
from tests.shiftjax.conftest import random_variables

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "it has no card; `shiftjax convert` reads PyTorch's files"),
        ({"format": "pt"}, "it has no card"),
        ({"card": "{}"}, "'architecture' is missing"),
        ({"card": "["}, "Expecting value"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_file_without_a_card(tmp_path, metadata, message, dtype):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(2, dtype)}, metadata))
    with pytest.raises(InputError, match=f"is not a file of weights: .*{message}"):
        load_pretrained(str(path))


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"PK\x03\x04" + b"\0" * 40])
def test_a_file_of_another_format(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a file of weights"):
        load_pretrained(str(path))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_params_of_16_bits_are_loaded_as_they_were_saved(
    tmp_path, rng, assert_trees_close, dtype
):
    options = {"depth": 8, "num_classes": 2, "param_dtype": dtype}
    card = Card("resnet20", options, ("a", "b"), 8, (0.5,) * 3, (0.5,) * 3)
    images = np.zeros((1, 8, 8, 3), np.float32)
    variables = random_variables(rng, card.model(), images)
    path = tmp_path / "x.safetensors"
    save(path, variables, card)
    loaded = open_pretrained(path).variables
    assert_trees_close(loaded, variables, 0)
    assert {x.dtype for x in jax.tree.leaves(loaded["params"])} == {jnp.dtype(dtype)}


def test_options_may_be_numbers_of_numpy_and_dtypes(tmp_path, rng):
    """The file is that of the same options as values of Python."""
    options = {"depth": 8, "num_classes": 2, "remat": True}
    options |= {"dtype": "bfloat16", "kernel_size": 3, "expansion": 1}
    theirs = {"depth": np.int64(8), "num_classes": np.int32(2), "remat": np.True_}
    theirs |= {"dtype": jnp.bfloat16, "kernel_size": np.int8(3), "expansion": 1}
    cards = [
        Card("shiftresnet20", given, ("a", "b"), 8, (0.5,) * 3, (0.5,) * 3)
        for given in (options, theirs)
    ]
    images = np.zeros((1, 8, 8, 3), np.float32)
    variables = random_variables(rng, cards[0].model(), images)
    path = tmp_path / "x.safetensors"
    assert save(path, variables, cards[0]) == save(path, variables, cards[1])
    assert open_pretrained(path).model == cards[0].model()
