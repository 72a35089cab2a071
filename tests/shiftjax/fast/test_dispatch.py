"""The choice of an implementation: by the field, the input and the platform.

Every implementation is compared with the reference, on all modules.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeCollectionNotFound
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from shiftjax import CSC, ConvNorm, InputError, ShiftConv, create_model, summarize
from shiftjax.fast import dispatch, tpu
from shiftjax.fast.cpu import Planes
from shiftjax.fast.dispatch import IMPLEMENTATIONS, NAMES, BlockOptions, choose
from shiftjax.fast.tpu.block import strided_shift_project
from shiftjax.models.resnet import DepthwiseResNet, ResNet, ShiftResNet

pytestmark = pytest.mark.usefixtures("quick")

# In float32, normalisations and their derivatives lose some 2,000 units of 6e-8.
FLOAT32 = 1e-4
FLOAT64 = 1e-11

BATCH = (2, 8, 8, 3)


GPU_BLOCK = BlockOptions(48, 16, jnp.float32)
TPU_BLOCK = BlockOptions(48, 16, jnp.bfloat16)
# kind, shape, block
ON = {
    "cpu": ("shift_block", (2, 8, 8, 16), GPU_BLOCK),
    "tpu": ("shift_block", (128, 8, 8, 16), TPU_BLOCK),
    "gpu": ("shift_block", (2, 8, 8, 16), GPU_BLOCK),
}


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
@pytest.mark.parametrize("name", ON)
def test_an_implementation_asked_for_is_chosen(monkeypatch, name, platform):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    kind, shape, block = ON[name]
    assert choose(name, kind, shape, block=block) == (name, "asked for")
    assert choose("reference", kind, shape, block=block).name == "reference"
    assert choose(None, kind, shape, block=block).name == "reference"


# platform; network: implementation in inference, in training
DEFAULTS = {
    "cpu": {
        "resnet20": ("reference", "cpu"),
        "depthwise_resnet20": ("cpu", "cpu"),
        "shiftresnet20_e3": ("cpu", "cpu"),
        "shiftnet_a": ("reference", "reference"),
        "stylizer": ("cpu", "cpu"),
    },
    "tpu": {
        "resnet20": ("reference", "reference"),
        "depthwise_resnet20": ("reference", "reference"),
        "shiftresnet20_e3": ("tpu", "tpu"),
        "shiftnet_a": ("reference", "reference"),
        "stylizer": ("reference", "reference"),
    },
    "gpu": {
        "resnet20": ("reference", "reference"),
        "depthwise_resnet20": ("reference", "reference"),
        "shiftresnet20_e3": ("reference", "reference"),
        "shiftnet_a": ("reference", "reference"),
        "stylizer": ("reference", "reference"),
    },
}


@pytest.mark.parametrize("platform", DEFAULTS)
def test_the_default_of_a_network(monkeypatch, platform):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    for name, expected in DEFAULTS[platform].items():
        kind = create_model(name).kind
        both = (choose(None, kind, BATCH, train=train).name for train in (False, True))
        assert tuple(both) == expected
        assert summarize(name).implementation.name == expected[1]


def test_the_default_device_has_the_platform(devices):
    with jax.default_device("tpu"):
        assert choose(None, "shift_resnet", BATCH).name == "tpu"
    with jax.default_device(devices[1]):
        assert choose(None, "shift_resnet", BATCH).name == "cpu"


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (2, 0, 8, 3), (8, 8, 3)])
def test_shapes_that_only_the_reference_takes(shape):
    for asked in (None, *NAMES):
        assert choose(asked, "shift_resnet", shape).name == "reference"


def test_a_block_that_a_kernel_refuses():
    choice = choose("tpu", "shift_block", (64, 8, 8, 16), block=TPU_BLOCK)
    assert choice == ("reference", "tpu does not support [64, 8, 8, 16]")


def test_a_new_implementation_is_a_row(monkeypatch):
    """Its package, under the name, and when it is chosen for which modules."""
    row = {"shift_block": "if asked for", "shift_resnet": "always"}
    monkeypatch.setattr(dispatch, "IMPLEMENTATIONS", {**IMPLEMENTATIONS, "npu": row})
    monkeypatch.setattr(dispatch, "NAMES", (*NAMES, "npu"))
    monkeypatch.setattr(jax, "default_backend", lambda: "npu")
    assert choose(None, "shift_resnet", BATCH).name == "npu"
    assert choose(None, "resnet", BATCH).name == "reference"


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_each_kind_of_block_has_its_function(name):
    blocks = {"shift_block", "conv_norm"} & set(IMPLEMENTATIONS[name])
    for kind in ("supports", *blocks):
        assert callable(dispatch.function(name, kind))


def test_a_free_batch_takes_the_reference():
    """One exported program runs any number of images."""
    model = ShiftResNet(8, implementation=None)
    (free,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((free, *BATCH[1:]), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros(BATCH))
    exported = jax.export.export(jax.jit(model.apply))(variables, images)
    for count in (1, 3):
        assert (
            exported.call(variables, jnp.zeros((count, *BATCH[1:]))).shape[0] == count
        )


@pytest.mark.parametrize("asked", [None, "cpu"])
def test_a_batch_on_explicit_axes_takes_the_reference(rng, devices, asked):
    """No layout and no kernel can be split so."""
    mesh = jax.make_mesh((2,), ("batch",), (AxisType.Explicit,), devices=devices[:2])
    model = ShiftResNet(8, implementation=asked)
    images = rng.normal(size=BATCH).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    whole = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    split = jax.device_put(images, NamedSharding(mesh, PartitionSpec("batch")))
    logits = jax.jit(model.apply)(whole, split)
    assert logits.sharding.spec[0] == "batch"
    wanted = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(logits, wanted, rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.parametrize(
    ("kind", "asked", "entered"),
    [
        (ShiftResNet, None, {False: 1, True: 1}),
        (ResNet, None, {False: 0, True: 1}),
        (ResNet, "cpu", {False: 1, True: 1}),
    ],
)
def test_a_plain_resnet_is_evaluated_by_its_reference(
    monkeypatch, kind, asked, entered
):
    """It is trained in the layout for CPUs."""
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    calls, original = [], Planes.from_nhwc

    def from_nhwc(*args, **options):
        calls.append(args)
        return original(*args, **options)

    monkeypatch.setattr(Planes, "from_nhwc", from_nhwc)
    model = kind(8, implementation=asked)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(BATCH))
    for train, expected in entered.items():
        calls.clear()
        apply = functools.partial(model.apply, train=train, mutable=["batch_stats"])
        jax.eval_shape(apply, variables, jnp.zeros(BATCH))
        assert len(calls) == expected


@pytest.mark.parametrize("module", [ResNet(8), ConvNorm(8), ShiftConv(9), CSC(3)])
def test_an_unknown_name_is_answered_with_the_nearest(module):
    module = module.clone(implementation="tup")
    with pytest.raises(InputError, match="implementation 'tup': did you mean 'tpu'"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(BATCH))


def step(module, variables, x, g):
    """Output, new statistics and gradients of a step of training."""

    def apply(params, x):
        now = variables | {"params": params}
        return module.apply(now, x, train=True, mutable=["batch_stats"])

    with jax.default_matmul_precision("highest"):
        y, pull, updates = jax.vjp(apply, variables["params"], x, has_aux=True)
        return {"y": y, "updates": updates, "gradient": pull(g)}


def compare(
    make, shape, implementation, assert_trees_close, randomize, rng, rtol=FLOAT32
):
    """One step by an implementation, and by the reference; equal programs are not run.

    Most modules have no implementation of their own on most platforms.
    """
    module = make(implementation="reference")
    x = rng.normal(size=shape).astype(jnp.result_type(float))
    variables = randomize(module, x)
    y = jax.eval_shape(module.apply, variables, x)
    g = rng.normal(size=y.shape).astype(y.dtype)
    programs = [
        jax.jit(functools.partial(step, make(implementation=name))).lower(
            variables, x, g
        )
        for name in (implementation, "reference")
    ]
    if programs[0].as_text() != programs[1].as_text():
        actual, expected = (program.compile()(variables, x, g) for program in programs)
        assert_trees_close(actual, expected, rtol)


MODULES = {
    "conv 1x1": (functools.partial(ConvNorm, 7), (6, 5, 4, 4)),
    "conv 3x3": (functools.partial(ConvNorm, 7, 3, 2), (6, 5, 4, 4)),
    "depthwise": (functools.partial(ConvNorm, 4, 3, depthwise=True), (2, 5, 4, 4)),
    "CSC": (functools.partial(CSC, 9, expansion=2), (2, 5, 4, 4)),
    "block": (functools.partial(ShiftConv, 9, expansion=2), (6, 5, 4, 9)),
    "block for the kernel": (
        functools.partial(ShiftConv, 16, expansion=2),
        (128, 3, 4, 8),
    ),
    "block of stride 2": (functools.partial(ShiftConv, 10, 3, 2), (6, 5, 7, 4)),
    "DepthwiseResNet": (functools.partial(DepthwiseResNet, 8), (2, 8, 8, 3)),
}


@pytest.mark.parametrize("implementation", [None, "cpu", "tpu", "gpu"])
@pytest.mark.parametrize("name", MODULES)
def test_every_implementation_equals_the_reference(
    rng, randomize, assert_trees_close, name, implementation
):
    """Compares NHWC arrays; on other platforms the kernels' blocks run `definition`.

    The network in float64: in float32 the gradient of an offset that a later BatchNorm
    takes away is rounding alone.
    """
    make, shape = MODULES[name]
    precise = name == "DepthwiseResNet"
    rtol = FLOAT64 if precise else FLOAT32
    with jax.enable_x64(precise):
        compare(make, shape, implementation, assert_trees_close, randomize, rng, rtol)


def test_planes_and_arrays_are_kept_apart():
    """Planes stay planes, and NHWC arrays stay arrays."""
    module, x = ShiftConv(9, implementation="cpu"), jnp.zeros((4, 5, 6, 9))
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    apply = functools.partial(jax.eval_shape, module.apply, variables)
    assert apply(x).shape == x.shape
    assert isinstance(apply(jax.eval_shape(Planes.from_nhwc, x)), Planes)


@pytest.mark.parametrize("implementation", [None, *NAMES])
def test_variables_are_those_of_the_reference(implementation):
    images = jnp.zeros((128, 8, 8, 3))
    expected, actual = (
        jax.eval_shape(
            ShiftResNet(8, implementation=name).init, jax.random.key(0), images
        )
        for name in ("reference", implementation)
    )
    assert actual == expected


def kernels(module, shape):
    """Counts the kernels of the program of a forward and backward pass."""
    x = jnp.zeros(shape, module.dtype)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    y = jax.eval_shape(module.apply, variables, x)
    text = str(jax.make_jaxpr(functools.partial(step, module))(variables, x, y))
    return text.count("shift_project ") + text.count("shift_project_backward ")


def test_the_kernel_runs_where_it_is_supported():
    """Forward and backward; strides go by phases, many channels by selects."""
    block = functools.partial(
        ShiftConv, dtype=jnp.bfloat16, expansion=3, implementation="tpu"
    )
    assert kernels(block(16), (128, 4, 4, 16)) == 2
    assert kernels(block(16), (64, 4, 4, 16)) == 0
    assert kernels(block(16, strides=2), (128, 4, 4, 16)) == 0
    assert kernels(block(256), (128, 4, 4, 256)) == 0
    model = create_model(
        "shiftresnet20_e3", depth=8, dtype=jnp.bfloat16, implementation="tpu"
    )
    assert kernels(model, (128, 8, 8, 3)) == 2


def test_a_network_through_the_interpreted_kernel(
    monkeypatch, rng, randomize, assert_trees_close
):
    """Stages of kernels, phases of the strides; eight layers amplify what one loses."""
    interpreted = functools.partial(
        tpu.shift_block, middle=functools.partial(strided_shift_project, interpret=True)
    )
    monkeypatch.setattr(tpu, "shift_block", interpreted)
    make = functools.partial(ShiftResNet, 14, expansion=2)
    shape = (128, 6, 5, 3)
    compare(make, shape, "tpu", assert_trees_close, randomize, rng, 10 * FLOAT32)


# The dtype of the output, and refusals, are the same by every implementation.
MODULES_OF_ANY_DTYPE = {
    "conv 1x1": (functools.partial(ConvNorm, 8), (2, 4, 4, 8)),
    "conv 3x3": (functools.partial(ConvNorm, 8, 3), (2, 4, 4, 8)),
    "block": (functools.partial(ShiftConv, 8, expansion=2), (2, 4, 4, 8)),
    "strided block": (functools.partial(ShiftConv, 8, 3, 2), (2, 5, 4, 8)),
    "network": (functools.partial(ShiftResNet, 8, expansion=2), (2, 8, 8, 3)),
}
DTYPES = [None, "bfloat16", "float16", "float32"]


@pytest.mark.parametrize("name", MODULES_OF_ANY_DTYPE)
@pytest.mark.parametrize("implementation", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", ["float32", "bfloat16"])
def test_the_dtype_is_the_same_by_every_implementation(
    name, implementation, dtype, given
):
    """That asked for; else the wider of the input's and the params', float32."""
    make, shape = MODULES_OF_ANY_DTYPE[name]
    x = jnp.zeros(shape, given)
    module = make(dtype=dtype, implementation=implementation)
    expected = jnp.dtype("float32" if name == "network" or dtype is None else dtype)
    with jax.numpy_rank_promotion("raise"):
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        for train in (False, True):
            apply = functools.partial(module.apply, train=train, mutable="batch_stats")
            y, updates = jax.eval_shape(apply, variables, x)
            assert y.dtype == expected
            stats = jax.tree.leaves(updates["batch_stats"])
            assert {leaf.dtype for leaf in stats} == {jnp.dtype("float32")}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("implementation", NAMES)
@pytest.mark.parametrize("name", [*MODULES_OF_ANY_DTYPE, "wider", "depthwise"])
def test_the_dtype_of_narrow_params(name, implementation, train):
    """Statistics in float32, which some implementations fold into the kernels."""
    make, shape = {
        **MODULES_OF_ANY_DTYPE,
        "wider": (functools.partial(ConvNorm, 16), (2, 4, 4, 8)),
        "depthwise": (functools.partial(ConvNorm, 8, 3, depthwise=True), (2, 4, 4, 8)),
    }[name]
    x = jnp.zeros(shape, jnp.bfloat16)
    module = make(param_dtype=jnp.bfloat16, implementation=implementation)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    apply = functools.partial(module.apply, train=train, mutable="batch_stats")
    y, _ = jax.eval_shape(apply, variables, x)
    assert y.dtype == ("float32" if name == "network" else "bfloat16")


@pytest.mark.parametrize("implementation", NAMES)
def test_features_have_the_dtype_by_every_implementation(implementation):
    model = ShiftResNet(8, dtype=jnp.bfloat16, implementation=implementation)
    images = jnp.zeros(BATCH)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    apply = functools.partial(model.apply, capture_features=True)
    logits, features = jax.eval_shape(apply, variables, images)
    assert logits.dtype == jnp.float32
    assert {value.dtype for value in features.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("implementation", NAMES)
def test_a_block_of_low_precision_can_be_scanned(implementation):
    """Its output is its next input, and so of the same dtype."""
    block, x = (
        ShiftConv(8, expansion=2, dtype=jnp.bfloat16, implementation=implementation),
        (2, 4, 4, 8),
    )
    x = jnp.zeros(x, jnp.bfloat16)
    variables = jax.eval_shape(block.init, jax.random.key(0), x)

    def repeat(variables, x):
        return jax.lax.scan(lambda x, _: (block.apply(variables, x), None), x, length=3)

    y, _ = jax.eval_shape(repeat, variables, x)
    assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("implementation", NAMES)
def test_missing_statistics_are_refused_by_flax(implementation, scan):
    model = ShiftResNet(14, implementation=implementation, scan=scan)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(BATCH))
    params = {"params": variables["params"]}
    with pytest.raises(ScopeCollectionNotFound, match="batch_stats"):
        jax.eval_shape(model.apply, params, jnp.zeros(BATCH))
