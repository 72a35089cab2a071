"""Errors for people: one sentence, and the built-in class that code expects."""

import pickle
from pathlib import Path

import pytest

from shiftjax import InputError, MissingFileError, UnknownNameError
from shiftjax.errors import named_if_denied, unknown_name

KINDS = [
    (InputError, ValueError),
    (UnknownNameError, InputError),
    (UnknownNameError, KeyError),
    (MissingFileError, InputError),
    (MissingFileError, FileNotFoundError),
]


@pytest.mark.parametrize(("kind", "base"), KINDS)
def test_errors_can_be_caught_as_the_built_in_ones(kind, base):
    with pytest.raises(base, match="a 'quoted' sentence"):
        raise kind("a 'quoted' sentence")


@pytest.mark.parametrize("kind", [InputError, UnknownNameError, MissingFileError])
def test_the_message_is_printed_as_it_is_also_after_pickling(kind):
    error = kind("no model 'a'\\b")
    assert str(error) == "no model 'a'\\b"
    copy = pickle.loads(pickle.dumps(error))  # from a worker process
    assert type(copy) is kind
    assert str(copy) == str(error)


NAMES = {
    ("resnet2O", ("resnet20", "vgg")): (
        "unknown model 'resnet2O': did you mean 'resnet20'? (known: resnet20, vgg)"
    ),
    ("x", ("b", "a")): "unknown model 'x': (known: a, b)",
    ("x", ()): "unknown model 'x': (known: none)",
    ("", ("a",)): "unknown model '': (known: a)",
    (None, ("a",)): "unknown model None: (known: a)",
}


@pytest.mark.parametrize(("name", "allowed"), NAMES)
def test_an_unknown_name(name, allowed):
    error = unknown_name("model", name, allowed)
    assert isinstance(error, UnknownNameError)
    assert str(error) == NAMES[name, allowed]


def test_near_names_are_at_most_three_and_known_names_at_most_twelve():
    message = str(unknown_name("layer", "conv", (f"conv{i:02}" for i in range(20))))
    near, _, known = message.partition("? (known: ")
    assert near.count("conv") == 1 + 3
    assert known.count("conv") == 12
    assert known.endswith(", ...)")


def test_a_name_that_is_too_long_is_said():
    """For example a list of files, in quotes, in place of one."""
    with (
        pytest.raises(InputError, match=r"^x*: File name too long$"),
        named_if_denied(),
    ):
        Path("x" * 300).stat()
