"""The base class of the modules: the checks before an implementation runs."""

import re

import jax
import jax.numpy as jnp
import pytest

from shiftjax.errors import InputError
from shiftjax.layers import ConvNorm, ShiftConv

# A module, another one whose variables it must refuse, and the message.
OTHERS = {
    "features": (ConvNorm(4, 3), ConvNorm(6, 3), "conv is [3, 3, 9, 6], not [3, 3, 9"),
    "window": (ConvNorm(4, 3), ConvNorm(4, 5), "conv is [5, 5, 9, 4], not [3, 3, 9"),
    "1x1": (ConvNorm(4), ConvNorm(4, 3), "conv is [3, 3, 9, 4], not [9, 4]"),
    "depthwise": (
        ConvNorm(9, 3, depthwise=True),
        ConvNorm(9, 3),
        "conv is [3, 3, 9, 9], not [3, 3, 1, 9]",
    ),
    "expansion": (
        ShiftConv(9),
        ShiftConv(9, expansion=2),
        "expand/conv is [9, 18], not [9, 9]",
    ),
    "no shortcut": (ShiftConv(9, strides=2), ShiftConv(9), "shortcut/conv is missing"),
    "a shortcut": (ShiftConv(9), ShiftConv(9, strides=2), "shortcut/conv is unknown"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_variables_of_another_module_are_refused(name):
    """An implementation takes sizes from the kernels, and would compute the other."""
    module, other, message = OTHERS[name]
    x = jnp.zeros((2, 6, 6, 9))
    variables = jax.eval_shape(other.init, jax.random.key(0), x)
    with pytest.raises(InputError, match=re.escape(message)):
        jax.eval_shape(module.clone(implementation="cpu").apply, variables, x)
