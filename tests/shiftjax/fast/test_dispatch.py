"""The form that a module is computed in: by its field, its input and the platform."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax.errors import ScopeCollectionNotFound

from shiftjax import CSC, ConvNorm, InputError, ShiftConv, create_model, summarize
from shiftjax.fast import tpu
from shiftjax.fast.cpu import Planes
from shiftjax.fast.dispatch import DEFAULT_FORM, FORMS, resolve
from shiftjax.fast.tpu.block import middle
from shiftjax.models.resnet import DepthwiseResNet, ResNet, ShiftResNet

pytestmark = pytest.mark.usefixtures("quick")

# In float32, normalisations and their derivatives lose some 2,000 units of 6e-8.
FLOAT32 = 1e-4
FLOAT64 = 1e-11

BATCH = (2, 8, 8, 3)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_asked_for_is_taken(form):
    assert resolve(form, BATCH) == form


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
def test_auto_is_the_default_of_the_platform(monkeypatch, platform):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    expected = {"cpu": "planes", "tpu": "kernel", "gpu": "plain"}[platform]
    assert resolve("auto", BATCH) == expected
    assert summarize("shiftresnet20_e3").form == expected
    others = {summarize(name).form for name in ("depthwise_resnet20", "resnet20")}
    assert others == {"planes" if platform == "cpu" else "plain"}
    assert set(DEFAULT_FORM) == {"cpu", "tpu"}


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (2, 0, 8, 3), (8, 8, 3)])
def test_shapes_that_only_the_plain_form_takes(shape):
    for form in ("auto", *FORMS):
        assert resolve(form, shape) == "plain"


def test_a_free_batch_is_computed_plainly():
    """One exported program runs any number of images."""
    model = ShiftResNet(8, form="auto")
    (free,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((free, *BATCH[1:]), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros(BATCH))
    exported = jax.export.export(jax.jit(model.apply))(variables, images)
    for count in (1, 3):
        assert (
            exported.call(variables, jnp.zeros((count, *BATCH[1:]))).shape[0] == count
        )


@pytest.mark.parametrize(
    ("kind", "form", "entered"),
    [
        (ShiftResNet, "auto", {False: 1, True: 1}),
        (ResNet, "auto", {False: 0, True: 1}),
        (ResNet, "planes", {False: 1, True: 1}),
    ],
)
def test_a_plain_resnet_is_evaluated_plainly(monkeypatch, kind, form, entered):
    """Which is faster, if it is not told otherwise; it is trained on planes."""
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    calls, original = [], Planes.from_nhwc

    def from_nhwc(*args, **options):
        calls.append(args)
        return original(*args, **options)

    monkeypatch.setattr(Planes, "from_nhwc", from_nhwc)
    model = kind(8, form=form)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(BATCH))
    for train, expected in entered.items():
        calls.clear()
        apply = functools.partial(model.apply, train=train, mutable=["batch_stats"])
        jax.eval_shape(apply, variables, jnp.zeros(BATCH))
        assert len(calls) == expected


@pytest.mark.parametrize("module", [ResNet(8), ConvNorm(8), ShiftConv(9), CSC(3)])
def test_an_unknown_form_is_answered_with_the_nearest(module):
    module = module.clone(form="kernal")
    with pytest.raises(InputError, match="'kernal': did you mean 'kernel'"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(BATCH))


def step(module, variables, x, g):
    """Output, new statistics and gradients of a step of training."""

    def apply(params, x):
        now = variables | {"params": params}
        return module.apply(now, x, train=True, mutable=["batch_stats"])

    with jax.default_matmul_precision("highest"):
        y, pull, updates = jax.vjp(apply, variables["params"], x, has_aux=True)
        return {"y": y, "updates": updates, "gradient": pull(g)}


def compare(make, shape, form, assert_trees_close, randomize, rng, rtol=FLOAT32):
    """One step in a form, and in the plain form."""
    module = make(form="plain")
    x = rng.normal(size=shape).astype(jnp.result_type(float))
    variables = randomize(module, x)
    y = jax.eval_shape(module.apply, variables, x)
    g = rng.normal(size=y.shape).astype(y.dtype)
    actual, expected = (
        jax.jit(functools.partial(step, make(form=form)))(variables, x, g)
        for form in (form, "plain")
    )
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


@pytest.mark.parametrize("form", ["auto", "planes", "kernel"])
@pytest.mark.parametrize("name", MODULES)
def test_every_form_of_a_module_is_its_definition(
    rng, randomize, assert_trees_close, name, form
):
    """NHWC arrays in every form; without a TPU, the kernel's block runs its formula.

    The network in float64: in float32 the gradient of an offset that a later BatchNorm
    takes away is rounding alone.
    """
    make, shape = MODULES[name]
    precise = name == "DepthwiseResNet"
    rtol = FLOAT64 if precise else FLOAT32
    with jax.enable_x64(precise):
        compare(make, shape, form, assert_trees_close, randomize, rng, rtol)


def test_forms_keep_planes_and_arrays_apart():
    """What comes as planes leaves as planes, and NHWC arrays as arrays."""
    module, x = ShiftConv(9, form="planes"), jnp.zeros((4, 5, 6, 9))
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    apply = functools.partial(jax.eval_shape, module.apply, variables)
    assert apply(x).shape == x.shape
    assert isinstance(apply(jax.eval_shape(Planes.from_nhwc, x)), Planes)


@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_variables_are_those_of_the_plain_form(form):
    images = jnp.zeros((128, 8, 8, 3))
    plain, other = (
        jax.eval_shape(ShiftResNet(8, form=f).init, jax.random.key(0), images)
        for f in ("plain", form)
    )
    assert plain == other


def kernels(module, shape):
    """How many kernels the program of a forward and backward pass calls."""
    x = jnp.zeros(shape, module.dtype)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    y = jax.eval_shape(module.apply, variables, x)
    text = str(jax.make_jaxpr(functools.partial(step, module))(variables, x, y))
    return text.count("shift_project ") + text.count("shift_project_backward ")


def test_the_kernel_runs_where_it_is_supported():
    """Forward and backward; strides go by phases, many channels by selects."""
    block = functools.partial(ShiftConv, dtype=jnp.bfloat16, expansion=3, form="kernel")
    assert kernels(block(16), (128, 4, 4, 16)) == 2
    assert kernels(block(16), (64, 4, 4, 16)) == 0
    assert kernels(block(16, strides=2), (128, 4, 4, 16)) == 0
    assert kernels(block(256), (128, 4, 4, 256)) == 0
    model = create_model("shiftresnet20_e3", depth=8, dtype=jnp.bfloat16, form="kernel")
    assert kernels(model, (128, 8, 8, 3)) == 2


def test_a_network_through_the_interpreted_kernel(
    monkeypatch, rng, randomize, assert_trees_close
):
    """Stages of kernels, phases of the strides; eight layers amplify what one loses."""
    interpreted = functools.partial(
        tpu.shift_block, middle=functools.partial(middle, interpret=True)
    )
    monkeypatch.setattr(tpu, "shift_block", interpreted)
    make = functools.partial(ShiftResNet, 14, expansion=2)
    shape = (128, 6, 5, 3)
    compare(make, shape, "kernel", assert_trees_close, randomize, rng, 10 * FLOAT32)


# The dtype of the output, and refusals, are the same in every form of these.
FORMLESS = {
    "conv 1x1": (functools.partial(ConvNorm, 8), (2, 4, 4, 8)),
    "conv 3x3": (functools.partial(ConvNorm, 8, 3), (2, 4, 4, 8)),
    "block": (functools.partial(ShiftConv, 8, expansion=2), (2, 4, 4, 8)),
    "strided block": (functools.partial(ShiftConv, 8, 3, 2), (2, 5, 4, 8)),
    "network": (functools.partial(ShiftResNet, 8, expansion=2), (2, 8, 8, 3)),
}
DTYPES = [None, "bfloat16", "float16", "float32"]


@pytest.mark.parametrize("name", FORMLESS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", ["float32", "bfloat16"])
def test_the_dtype_is_the_same_in_every_form(name, form, dtype, given):
    """That asked for; else the wider of the input's and the params', float32."""
    make, shape = FORMLESS[name]
    x = jnp.zeros(shape, given)
    module = make(dtype=dtype, form=form)
    expected = jnp.dtype("float32" if name == "network" or dtype is None else dtype)
    with jax.numpy_rank_promotion("raise"):
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        for train in (False, True):
            apply = functools.partial(module.apply, train=train, mutable="batch_stats")
            y, updates = jax.eval_shape(apply, variables, x)
            assert y.dtype == expected
            stats = jax.tree.leaves(updates["batch_stats"])
            assert {leaf.dtype for leaf in stats} == {jnp.dtype("float32")}


@pytest.mark.parametrize("form", FORMS)
def test_features_have_the_dtype_in_every_form(form):
    model = ShiftResNet(8, dtype=jnp.bfloat16, form=form)
    images = jnp.zeros(BATCH)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    apply = functools.partial(model.apply, capture_features=True)
    logits, features = jax.eval_shape(apply, variables, images)
    assert logits.dtype == jnp.float32
    assert {value.dtype for value in features.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("form", FORMS)
def test_a_block_of_low_precision_can_be_scanned(form):
    """Its output is its next input, and so of the same dtype."""
    block, x = ShiftConv(8, expansion=2, dtype=jnp.bfloat16, form=form), (2, 4, 4, 8)
    x = jnp.zeros(x, jnp.bfloat16)
    variables = jax.eval_shape(block.init, jax.random.key(0), x)

    def repeat(variables, x):
        return jax.lax.scan(lambda x, _: (block.apply(variables, x), None), x, length=3)

    y, _ = jax.eval_shape(repeat, variables, x)
    assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_missing_statistics_are_refused_by_flax(form, scan):
    model = ShiftResNet(14, form=form, scan=scan)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(BATCH))
    params = {"params": variables["params"]}
    with pytest.raises(ScopeCollectionNotFound, match="batch_stats"):
        jax.eval_shape(model.apply, params, jnp.zeros(BATCH))
