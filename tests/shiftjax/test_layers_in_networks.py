"""The modules inside networks of others, in Linen and in NNX."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from shiftjax import SC2, Shift, ShiftConv
from tests.shiftjax.conftest import train_and_evaluate

pytestmark = pytest.mark.usefixtures("quick")


class SomebodysNet(nn.Module):
    """A Linen network with modules of the library between others."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(12, (3, 3), name="patches")(x)
        x = ShiftConv(12, expansion=2)(x, train)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = SC2(24, strides=2, name="down")(x, train)
        return nn.Dense(5)(Shift()(x).mean((1, 2)))


def test_inside_a_linen_network(rng):
    """It can be initialised and trained: a step lowers the loss."""
    x = jnp.asarray(rng.normal(size=(4, 6, 6, 3)), jnp.float32)
    net = SomebodysNet()
    variables = jax.jit(functools.partial(net.init, train=False))(jax.random.key(0), x)
    assert set(variables) == {"params", "batch_stats"}
    assert set(variables["batch_stats"]) == {"ShiftConv_0", "down"}

    @jax.jit
    def step(variables):
        def loss(params):
            logits, updates = net.apply(
                variables | {"params": params},
                x,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1)},
            )
            return -nn.log_softmax(logits)[:, 0].mean(), updates

        gradient, updates = jax.grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.05 * g, variables["params"], gradient)
        return loss(params)[0] - loss(variables["params"])[0], updates

    change, updates = step(variables)
    assert change < 0
    changed = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)),
        updates["batch_stats"],
        variables["batch_stats"],
    )
    assert all(jax.tree.leaves(changed))


def as_nnx(module, x, variables=None):
    """Wraps a module for NNX; `variables`, as pretrained ones, replace the fresh."""
    wrapped = nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(x)
    if variables is not None:
        attributes = nnx.bridge.variables.linen_vars_to_nnx_attrs(variables)
        for name, value in attributes.items():
            setattr(wrapped, name, nnx.data(value))
    return wrapped


def test_inside_nnx_with_the_variables_of_linen(rng, randomize, assert_trees_close):
    """The same output and statistics in both.

    They may be compiled as different programs, so the last places may differ: 1e-6 is
    eight units in the last place of float32.
    """
    module = ShiftConv(6, strides=2, expansion=3)
    x = jnp.asarray(rng.normal(size=(4, 6, 6, 4)), jnp.float32)
    variables = randomize(module, x)
    (expected, updates), evaluated = train_and_evaluate(module, variables, x)
    wrapped = as_nnx(module, x, variables)
    assert_trees_close(wrapped(x), evaluated, 1e-6)
    y = wrapped(x, train=True, mutable=["batch_stats"])
    assert_trees_close(y, expected, 1e-6)
    stats = nnx.to_pure_dict(nnx.state(wrapped, nnx.BatchStat))
    assert_trees_close(stats, updates["batch_stats"], 1e-6)


def test_an_nnx_optimizer_trains_it(rng):
    """One step changes all params and statistics, and lowers the loss."""

    class Net(nnx.Module):
        def __init__(self, x):
            self.block = as_nnx(ShiftConv(9, expansion=2), x)
            self.head = nnx.Linear(9, 3, rngs=nnx.Rngs(1))

        def __call__(self, x, **options):
            return self.head(self.block(x, **options).mean((1, 2)))

    x = jnp.asarray(rng.normal(size=(4, 6, 6, 5)), jnp.float32)
    net = Net(x)
    optimizer = nnx.Optimizer(net, optax.sgd(0.05), wrt=nnx.Param)

    @nnx.jit
    def step(net, optimizer):
        def loss(net):
            logits = net(x, train=True, mutable=["batch_stats"])
            return -nn.log_softmax(logits)[:, 0].mean()

        value, gradient = nnx.value_and_grad(loss)(net)
        optimizer.update(net, gradient)
        return value

    def numbers():
        state = nnx.state(net, nnx.Any(nnx.Param, nnx.BatchStat))
        return jax.tree.map(np.array, nnx.to_pure_dict(state))

    before = numbers()
    first, second = step(net, optimizer), step(net, optimizer)
    assert second < first
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, numbers())
    assert all(jax.tree.leaves(changed))
