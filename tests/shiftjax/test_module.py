"""The base class of the modules: the checks before an implementation runs."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from shiftjax.errors import InputError
from shiftjax.layers import CSC, ConvNorm, ShiftConv
from shiftjax.models.resnet import ShiftResNet
from shiftjax.models.stylizer import StyleNet

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


PARTITIONED = {
    "convolution": (ConvNorm(4, 3), (2, 6, 6, 9)),
    "block": (ShiftConv(9, strides=2), (2, 6, 6, 9)),
    "CSC": (CSC(12), (2, 6, 6, 9)),
    "network": (ShiftResNet(8), (2, 8, 8, 3)),
    "stylizer": (StyleNet(shifted=True, blocks=1), (2, 16, 16, 3)),
}


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize("name", PARTITIONED)
def test_kernels_may_have_names_of_axes(name, implementation):
    """As layers of Flax, which unbox params of `nn.with_partitioning` themselves."""
    module, shape = PARTITIONED[name]
    kernel_init = nn.with_partitioning(nn.initializers.he_normal(), (None, "model"))
    module = module.clone(kernel_init=kernel_init, implementation=implementation)
    x = jnp.zeros(shape)
    boxed = jax.eval_shape(module.init, jax.random.key(0), x)
    plain = nn.meta.unbox(boxed)
    assert jax.tree.structure(boxed) != jax.tree.structure(plain)
    y, wanted = (jax.eval_shape(module.apply, v, x) for v in (boxed, plain))
    assert y == wanted
