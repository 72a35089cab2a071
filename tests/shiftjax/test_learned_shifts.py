"""Modules that learn their displacements, on other inputs and settings of JAX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from shiftjax import InputError
from shiftjax.family import ActiveShift, SparseShift, offset_penalty

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("module", [ActiveShift(), SparseShift(strides=2)])
def test_modules_need_no_rank_promotion(module):
    x = jnp.ones((2, 5, 4, 3))
    with jax.numpy_rank_promotion("raise"):
        variables = module.init(jax.random.key(0), x)
        jax.grad(lambda v: module.apply(v, x).sum())(variables)


def test_a_sparse_shift_of_integers_is_refused():
    params = {"params": {"offsets": jnp.zeros((1, 2))}}
    with pytest.raises(InputError, match="x is int32: only floats"):
        SparseShift().apply(params, jnp.ones((3, 3, 1), jnp.int32))


def test_a_sparse_shift_makes_no_nan_of_its_own():
    """`jax_debug_nans` stops at each one."""
    params = {"params": {"offsets": jnp.array([[0.2, 0.8]])}}
    with jax.debug_nans(True):
        y = SparseShift().apply(params, jnp.arange(4.0).reshape(1, 4, 1))
    assert y[0, :, 0].tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("module", [ActiveShift(), SparseShift(strides=2)])
def test_no_type_is_promoted(module, dtype, x64):
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(x64):
        x, offsets = jnp.ones((2, 5, 4, 3), dtype), jnp.full((3, 2), -0.75, dtype)
        params = {"params": {"offsets": offsets}}
        y, pull = jax.vjp(module.apply, params, x)
        assert y.dtype == dtype
        assert pull(y)[0]["params"]["offsets"].dtype == dtype
        assert offset_penalty(params).item() == 6 * 0.75


@pytest.mark.parametrize("split", ["height", "width"])
@pytest.mark.parametrize("module", [ActiveShift(), SparseShift(strides=2)])
def test_pixels_on_explicit_axes(rng, devices, assert_trees_close, module, split):
    """Value and gradients are those of one device."""
    mesh = jax.make_mesh((2,), ("parts",), (AxisType.Explicit,), devices=devices[:2])
    x, offsets = rng.normal(size=(2, 4, 6, 3)), rng.uniform(-2, 2, (3, 2))
    names = None, *("parts" if split == name else None for name in ("height", "width"))

    @jax.jit
    def everything(x, offsets):
        def energy(x, offsets):
            return (module.apply({"params": {"offsets": offsets}}, x) ** 2).sum()

        return jax.value_and_grad(energy, (0, 1))(x, offsets)

    parts = jax.device_put(jnp.asarray(x), NamedSharding(mesh, PartitionSpec(*names)))
    everywhere = jax.device_put(offsets, NamedSharding(mesh, PartitionSpec()))
    assert_trees_close(everything(parts, everywhere), everything(x, offsets), 1e-6)


def test_the_penalty_counts_displacements_in_boxes():
    """Those of `nn.with_partitioning`, and those of a module of NNX and its state."""
    given = jnp.array([[0.5, -2.0], [0.0, 1.0]])
    init = nn.with_partitioning(lambda *_: given, (None, None))
    x = jnp.ones((1, 4, 4, 2))
    boxed = ActiveShift(offsets_init=init).init(jax.random.key(0), x)["params"]
    assert jax.tree.structure(boxed) != jax.tree.structure(nn.meta.unbox(boxed))
    assert offset_penalty({"shift": boxed}) == 3.5

    module = ActiveShift(offsets_init=lambda *_: given)
    converted = nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(x)
    assert offset_penalty(nnx.state(converted, nnx.Param)) == 3.5
    assert offset_penalty(converted) == 3.5


def test_the_penalty_counts_no_array_without_a_name():
    assert offset_penalty(jnp.ones(3)) == 0
    assert offset_penalty({"offsets": {"value": jnp.ones(3)}}) == 0
