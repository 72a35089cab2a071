"""The state before the first step: a function of the seed, and nothing shared."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import shiftjax
from train.state import TrainState, create_state

pytestmark = pytest.mark.usefixtures("quick")


class Net(nn.Module):
    """One of each: a kernel, BatchNorm, a bias."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(5)(x.mean((1, 2)))


OPTIMIZER = optax.sgd(optax.constant_schedule(0.1), 0.9)


def make(seed: int = 0, *, with_ema: bool = False) -> TrainState:
    return create_state(Net(), OPTIMIZER, seed, (8, 8, 3), with_ema=with_ema)


def raw(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_the_same_seed_gives_the_same_bits():
    assert raw(make(3)) == raw(make(3))


def test_the_average_changes_no_other_bit():
    plain, averaged = make(3), make(3, with_ema=True)
    assert raw(plain) == raw(averaged.replace(ema=None))


def test_another_seed_gives_other_kernels():
    one, other = make(3).params, make(4).params
    for name in ("Conv_0", "Dense_0"):
        difference = one[name]["kernel"] - other[name]["kernel"]
        assert float(jnp.abs(difference).max()) > 0.01


def test_a_fresh_state():
    state = make()
    assert state.step.dtype == jnp.int32
    assert state.step.shape == ()
    assert int(state.step) == 0
    zeros, ones = np.zeros(4, np.float32), np.ones(4, np.float32)
    stats = jax.tree.map(np.asarray, dict(state.batch_stats["BatchNorm_0"]))
    np.testing.assert_array_equal(stats["mean"], zeros)
    np.testing.assert_array_equal(stats["var"], ones)
    momentum = state.opt_state[0].trace
    assert jax.tree.structure(momentum) == jax.tree.structure(state.params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(momentum))
    assert state.ema is None


def test_the_variables_to_evaluate_are_the_average_where_there_is_one():
    state = make()
    assert state.variables == {"params": state.params, "batch_stats": state.batch_stats}
    averaged = make(with_ema=True)
    moved = averaged.replace(params=jax.tree.map(lambda x: x + 1, averaged.params))
    assert raw(moved.variables) == raw(state.variables)


def test_the_average_starts_as_a_copy_of_the_variables():
    """A copy with memory of its own, because the step may overwrite both."""
    state = make(with_ema=True)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    assert jax.tree.structure(state.ema) == jax.tree.structure(variables)
    assert raw(state.ema) == raw(variables)
    leaves = jax.tree.leaves(state)
    places = {leaf.unsafe_buffer_pointer() for leaf in leaves}
    assert len(places) == len(leaves)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_params_are_float32_whatever_is_computed_in(dtype):
    model = shiftjax.create_model("shiftresnet20_e1", dtype=dtype)
    state = jax.eval_shape(lambda: create_state(model, OPTIMIZER, 0, (8, 8, 3)))
    kinds = {leaf.dtype for leaf in jax.tree.leaves(state.params)}
    kinds |= {leaf.dtype for leaf in jax.tree.leaves(state.batch_stats)}
    kinds |= {leaf.dtype for leaf in jax.tree.leaves(state.opt_state[0])}
    assert kinds == {np.dtype("float32")}
