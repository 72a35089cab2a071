"""The modules: equal to NumPy, with the documented params, and their mistakes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax import CSC, SC2, ConvNorm, InputError, Shift, ShiftConv
from shiftjax.module import Unit
from tests.shiftjax.conftest import train_and_evaluate

pytestmark = pytest.mark.usefixtures("quick")

# In float64, sums of at most 2,000 products and their normalisation lose a few hundred
# units in the last place (2e-16), relative to the largest number of an array.
FLOAT64 = 1e-12


# module, input, function of the reference, its options
CASES = {
    "conv 1x1": (ConvNorm(7), (2, 5, 6, 4), "conv_norm", {}),
    "conv 1x1, stride 2": (
        ConvNorm(7, strides=2),
        (2, 5, 6, 4),
        "conv_norm",
        {"stride": 2},
    ),
    "conv 3x3": (ConvNorm(5, 3), (2, 4, 5, 3), "conv_norm", {}),
    "conv 5x5, stride 2, small": (
        ConvNorm(5, 5, 2),
        (3, 3, 2, 3),
        "conv_norm",
        {"stride": 2},
    ),
    "conv 3x3, stride 3": (ConvNorm(5, 3, 3), (2, 7, 6, 3), "conv_norm", {"stride": 3}),
    "depthwise 3x3": (
        ConvNorm(4, 3, depthwise=True),
        (2, 5, 4, 4),
        "conv_norm",
        {"groups": 4},
    ),
    "depthwise 3x3, stride 2": (
        ConvNorm(4, 3, 2, depthwise=True),
        (2, 5, 4, 4),
        "conv_norm",
        {"groups": 4, "stride": 2},
    ),
    "shift block": (ShiftConv(9), (2, 5, 6, 9), "shift_conv", {}),
    "shift block, wider": (ShiftConv(9, expansion=2), (2, 5, 4, 6), "shift_conv", {}),
    "shift block, stride 2": (
        ShiftConv(6, strides=2, expansion=3),
        (2, 6, 7, 6),
        "shift_conv",
        {"stride": 2},
    ),
    "shift block, 5x5, dilated, odd": (
        ShiftConv(10, 5, 2, 2, 2.75),
        (1, 7, 9, 4),
        "shift_conv",
        {"stride": 2, "kernel_size": 5, "dilation": 2},
    ),
    "CSC": (CSC(5, expansion=4), (2, 5, 6, 5), "csc", {"features": 5}),
    "CSC, 5x5, dilated": (
        CSC(5, 5, dilation=2, expansion=6),
        (2, 6, 5, 5),
        "csc",
        {"features": 5, "kernel_size": 5, "dilation": 2},
    ),
    "CSC, stride 2": (
        CSC(11, strides=2, expansion=3),
        (2, 6, 8, 5),
        "csc",
        {"features": 11, "stride": 2},
    ),
    "CSC, stride 2, odd": (
        CSC(11, strides=2, expansion=3),
        (2, 5, 7, 5),
        "csc",
        {"features": 11, "stride": 2},
    ),
    "CSC, wider": (CSC(9, expansion=3), (2, 5, 4, 5), "csc", {"features": 9}),
    "CSC, added, stride 2, odd": (
        CSC(11, strides=2, expansion=3, shortcut="add"),
        (2, 5, 7, 5),
        "csc",
        {"features": 11, "stride": 2, "add": True},
    ),
    "CSC, added, no wider": (
        CSC(9, strides=2, expansion=1, shortcut="add"),
        (2, 4, 6, 9),
        "csc",
        {"features": 9, "stride": 2, "add": True},
    ),
    "SC2": (
        SC2(9, expansion=2),
        (2, 5, 6, 9),
        "csc",
        {"features": 9, "shift_first": True},
    ),
    "SC2, stride 2": (
        SC2(15, strides=2, expansion=2),
        (2, 5, 6, 9),
        "csc",
        {"features": 15, "stride": 2, "shift_first": True},
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("float64")
def test_a_module_equals_numpy(reference, rng, randomize, assert_trees_close, name):
    """In training and evaluation, with the running averages of momentum 0.9."""
    module, shape, function, options = CASES[name]
    x = rng.normal(size=shape)
    variables = randomize(module, x)
    (trained, updates), evaluated = train_and_evaluate(module, variables, x)

    define = functools.partial(getattr(reference, function), **options)
    weights = variables["params"], variables["batch_stats"]
    expected, batch_stats = define(*weights, x, True)
    assert_trees_close(trained, expected, FLOAT64)
    assert_trees_close(updates, {"batch_stats": batch_stats}, FLOAT64)
    expected, unchanged = define(*weights, x, False)
    assert_trees_close(evaluated, expected, FLOAT64)
    assert_trees_close(variables["batch_stats"], unchanged, FLOAT64)


def norm(features):
    return {"scale": (features,), "bias": (features,)}


def unit(*kernel):
    return {"conv": {"kernel": kernel}, "norm": norm(kernel[-1])}


# Names and shapes of all params, for an input of 8 channels.
PARAMS = {
    "shift": (Shift(3), {}),
    "conv 1x1": (ConvNorm(16, strides=2), unit(8, 16)),
    "conv 3x3": (ConvNorm(16, 3), unit(3, 3, 8, 16)),
    "depthwise": (ConvNorm(8, 5, depthwise=True), unit(5, 5, 1, 8)),
    "shift block, same shape": (
        ShiftConv(8, expansion=3),
        {"expand": unit(8, 24), "project": unit(24, 8)},
    ),
    "shift block, stride": (
        ShiftConv(8, strides=2, expansion=3),
        {"expand": unit(8, 24), "project": unit(24, 8), "shortcut": unit(8, 8)},
    ),
    "shift block, E of 0.3": (
        ShiftConv(16, expansion=0.3),
        {"expand": unit(8, 4), "project": unit(4, 16), "shortcut": unit(8, 16)},
    ),
    "CSC, same shape": (
        CSC(8, expansion=4),
        {
            "expand_norm": norm(8),
            "expand": {"kernel": (8, 32)},
            "project_norm": norm(32),
            "project": {"kernel": (32, 8)},
        },
    ),
    "CSC, of which 12 channels are the branch": (
        CSC(20, strides=2, expansion=4),
        {
            "expand_norm": norm(8),
            "expand": {"kernel": (8, 48)},
            "project_norm": norm(48),
            "project": {"kernel": (48, 12)},
        },
    ),
    "SC2, no more than CSC": (
        SC2(8, expansion=4),
        {
            "expand_norm": norm(8),
            "expand": {"kernel": (8, 32)},
            "project_norm": norm(32),
            "project": {"kernel": (32, 8)},
        },
    ),
}


@pytest.mark.parametrize("name", PARAMS)
def test_names_and_shapes_of_the_params(name):
    module, expected = PARAMS[name]
    x = jnp.zeros((2, 6, 6, 8))
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables.get("params", {})) == expected


@pytest.mark.parametrize("implementation", ["reference", "cpu", "tpu"])
@pytest.mark.usefixtures("float64")
def test_a_stride_has_its_shortcut_for_one_pixel_too(
    reference, rng, randomize, assert_trees_close, implementation
):
    """A stride leaves the size of such an image as it is."""
    module = ShiftConv(8, strides=2, implementation=implementation)
    variables = randomize(module, rng.normal(size=(2, 4, 4, 8)))
    x = rng.normal(size=(3, 1, 1, 8))
    fresh = jax.eval_shape(module.init, jax.random.key(0), x)
    assert jax.tree.structure(fresh) == jax.tree.structure(variables)
    weights = variables["params"], variables["batch_stats"]
    expected, _ = reference.shift_conv(*weights, x, False, stride=2)
    assert_trees_close(module.apply(variables, x), expected, FLOAT64)


def test_fresh_params(rng):
    """He-normal kernels, BatchNorm that changes nothing at first."""
    x = np.zeros((1, 4, 4, 64), np.float32)
    variables = jax.jit(ConvNorm(4096).init)(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["conv"]["kernel"])
    # 262,144 draws: their deviation is known to 0.14 %, three times which is allowed.
    assert kernel.std() == pytest.approx(np.sqrt(2 / 64), rel=5e-3)
    assert np.all(variables["params"]["norm"]["scale"] == 1)
    assert np.all(variables["params"]["norm"]["bias"] == 0)
    assert np.all(variables["batch_stats"]["norm"]["mean"] == 0)
    assert np.all(variables["batch_stats"]["norm"]["var"] == 1)


def test_shift_module_is_the_operation(reference, rng):
    x = rng.normal(size=(2, 5, 6, 17)).astype(np.float32)
    module = Shift(kernel_size=2, strides=2, dilation=3)
    assert module.init(jax.random.key(0), x) == {}
    np.testing.assert_array_equal(module.apply({}, x), reference.shift(x, 2, 3, 2))


MODULES = {
    "ConvNorm": ConvNorm(18, 3),
    "ShiftConv": ShiftConv(18, strides=2),
    "ShiftConv, same shape": ShiftConv(9),
    "CSC": CSC(18, strides=2),
    "SC2, same shape": SC2(9),
}


@pytest.mark.parametrize("name", MODULES)
def test_dtype_is_of_the_computation_and_param_dtype_of_the_storage(name):
    x = jnp.zeros((2, 6, 6, 9))

    def dtypes(dtype, param_dtype):
        module = MODULES[name].clone(dtype=dtype, param_dtype=param_dtype)
        y, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
        return {v.dtype for v in jax.tree.leaves(variables["params"])}, y.dtype

    assert dtypes(None, jnp.float32) == ({jnp.dtype("float32")}, jnp.float32)
    assert dtypes(jnp.bfloat16, jnp.float32) == ({jnp.dtype("float32")}, jnp.bfloat16)
    assert dtypes(None, jnp.bfloat16) == ({jnp.dtype("bfloat16")}, jnp.float32)
    bfloat16 = jnp.bfloat16, jnp.bfloat16
    assert dtypes(*bfloat16) == ({jnp.dtype("bfloat16")}, jnp.bfloat16)


@pytest.mark.parametrize("name", MODULES)
def test_bfloat16_is_near_float32(rng, randomize, assert_trees_close, name):
    """Each of at most 8 roundings in a row is off by 2^-9; they add at random."""
    module = MODULES[name]
    x = rng.normal(size=(4, 6, 6, 9)).astype(np.float32)
    variables = randomize(module, x)
    low = module.clone(dtype=jnp.bfloat16)
    (y, stats), evaluated = train_and_evaluate(low, variables, x)
    (expected_y, expected_stats), expected = train_and_evaluate(module, variables, x)
    assert_trees_close(y, expected_y, 8 * 2**-9)
    assert_trees_close(evaluated, expected, 8 * 2**-9)
    assert_trees_close(stats, expected_stats, 8 * 2**-9)
    leaves = jax.tree.leaves(stats)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["ConvNorm", "ShiftConv", "CSC"])
@pytest.mark.usefixtures("float64")
def test_statistics_over_replicas_are_those_of_the_whole_batch(
    rng, randomize, assert_trees_close, devices, name
):
    """Output, statistics and the gradient of the mean loss: four devices as one."""
    module = MODULES[name]
    x = rng.normal(size=(8, 5, 6, 9))
    variables = randomize(module, x)

    def loss(params, module, x):
        variables_now = variables | {"params": params}
        y, updates = module.apply(variables_now, x, train=True, mutable=["batch_stats"])
        return (y**3).mean(), (y, updates)

    def step(params, module, x):
        return jax.value_and_grad(loss, has_aux=True)(params, module, x)

    def replica(params, x):
        (value, (y, updates)), gradient = step(
            params, module.clone(axis_name="batch"), x
        )
        return jax.lax.pmean((value, updates, gradient), "batch"), y

    replicated = jax.pmap(
        replica, "batch", in_axes=(None, 0), out_axes=(None, 0), devices=devices
    )
    same, y = replicated(variables["params"], x.reshape(4, 2, 5, 6, 9))
    whole = jax.jit(functools.partial(step, module=module))
    (value, (expected, updates)), gradient = whole(variables["params"], x=x)
    assert_trees_close(np.concatenate(y), expected, FLOAT64)
    assert_trees_close(same, (value, updates, gradient), FLOAT64)


def test_statistics_are_each_replicas_own_without_an_axis(rng, randomize, devices):
    module = ConvNorm(3)
    x = rng.normal(size=(4, 2, 5, 6, 9)).astype(np.float32)
    variables = randomize(module, x[0])
    apply = functools.partial(module.apply, train=True, mutable=["batch_stats"])
    mapped = jax.pmap(apply, in_axes=(None, 0), devices=devices)
    stats = mapped(variables, x)[1]["batch_stats"]["norm"]["mean"]
    assert len(np.unique(np.asarray(stats)[:, 0])) == 4


# What comes in.

INVALID = {
    "nothing to shift": (ShiftConv(8, expansion=0.1), "expansion=0.1: 8 features"),
    "no expansion": (CSC(9, expansion=0), "expansion=0: 9 features"),
    "negative expansion": (ShiftConv(8, expansion=-1), "expansion=-1"),
    "no features": (ShiftConv(0), "features=0"),
    "features a float": (ShiftConv(8.5), "features=8.5"),
    "K = 0": (ShiftConv(9, 0), "kernel_size=0"),
    "stride 0": (ShiftConv(9, strides=0), "strides=0"),
    "dilation 0": (CSC(9, dilation=0), "dilation=0"),
    "CSC cannot lose channels": (CSC(4), "features=4: a CSC that changes the shape"),
    "nor by adding": (
        CSC(4, shortcut="add"),
        "features=4: a CSC that changes the shape",
    ),
    "shortcut": (CSC(12, shortcut="ad"), "unknown shortcut 'ad': did you mean 'add'"),
    "nor keep them with a stride": (
        CSC(9, strides=2),
        "features=9: a CSC that changes the shape needs more features than its 9",
    ),
    "so with SC2": (SC2(4), "features=4: a SC2"),
    "an even convolution": (ConvNorm(4, kernel_size=2), "kernel_size=2"),
    "CSC of stride 0": (CSC(12, strides=0), "strides=0"),
    "CSC of two strides": (CSC(12, strides=(2, 2)), r"strides=\(2, 2\)"),
    "convolution of stride 0": (ConvNorm(4, 3, 0), "strides=0"),
    "product of stride 0": (ConvNorm(4, 1, 0), "strides=0"),
    "convolution without features": (ConvNorm(0), "features=0"),
    "depthwise of other features": (
        ConvNorm(4, 3, depthwise=True),
        "features=4: a depthwise convolution of 9 channels needs a multiple of 9",
    ),
    "depthwise product": (ConvNorm(9, 1, depthwise=True), "depthwise"),
    "expansion not a number": (ShiftConv(8, expansion=float("nan")), "expansion=nan"),
    "expansion a text": (CSC(12, expansion="3"), "expansion='3': it must be a number"),
    "expansion infinite": (ShiftConv(8, expansion=float("inf")), "expansion=inf"),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_field_is_named_with_its_value(name):
    module, message = INVALID[name]
    x = jnp.zeros((2, 6, 6, 9))
    with pytest.raises(InputError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), x)


def test_all_units_share_their_fields():
    fields = {"axis_name", "momentum", "epsilon", "dtype", "param_dtype", "kernel_init"}
    for kind in (ConvNorm, ShiftConv, CSC, SC2):
        assert issubclass(kind, Unit)
        assert fields <= set(kind.__dataclass_fields__)


@pytest.mark.usefixtures("float64")
def test_momentum_and_epsilon_reach_every_norm(rng, randomize, assert_trees_close):
    """Scaling the input by 2 and epsilon by 4 changes no normalised number."""
    x = rng.normal(size=(4, 5, 5, 9))
    module = ConvNorm(9, epsilon=0.5)
    variables = randomize(module, x)
    scaled = module.clone(epsilon=2.0, momentum=0.0)
    (small, updates), _ = train_and_evaluate(module, variables, x)
    (large, replaced), _ = train_and_evaluate(scaled, variables, 2 * x)
    assert_trees_close(large, small, FLOAT64)
    old, new = variables["batch_stats"]["norm"], updates["batch_stats"]["norm"]
    batch = (new["var"] - 0.9 * old["var"]) / 0.1
    assert_trees_close(replaced["batch_stats"]["norm"]["var"], 4 * batch, FLOAT64)
