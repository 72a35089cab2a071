"""The CIFAR networks: their numbers in NumPy, their options and their mistakes."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from shiftjax import InputError, create_model
from shiftjax.models.resnet import DepthwiseResNet, ResNet, ShiftResNet
from shiftjax.module import SHARED, Unit
from tests.shiftjax.models.conftest import cifar_features

pytestmark = pytest.mark.usefixtures("quick")

# Twenty layers in float64, of which each loses some hundred units in the last place.
FLOAT64 = 1e-11


def train(model, variables, images):
    return model.apply(variables, images, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize(
    ("name", "options"),
    # Of ShiftResNet-50 each kind of block once, and one that repeats.
    [("shiftnet_c", {}), ("shiftresnet50", {"blocks": (2, 1, 1, 1)})],
)
def test_imagenet_networks_train_in_bfloat16(rng, randomize, name, options):
    """Everything finite, forward and backward; stem and head have gradients."""
    options = {"num_classes": 5, "dtype": jnp.bfloat16, "remat": True} | options
    model = create_model(name, **options)
    images = rng.normal(size=(2, 64, 64, 3)).astype("float32")
    variables = randomize(model, images)

    @jax.jit
    def gradient(params):
        def loss(params):
            logits, _ = train(model, variables | {"params": params}, images)
            return (logits * jnp.arange(5)).mean()

        return jax.value_and_grad(loss)(params)

    value, found = gradient(variables["params"])
    assert jnp.isfinite(value)
    for leaf in jax.tree.leaves(found):
        assert jnp.isfinite(leaf).all()
    for leaf in jax.tree.leaves([found["stem"], found["head"]]):
        assert jnp.linalg.norm(leaf) > 0


NETWORKS = {
    "resnet20": (create_model("resnet20"), "residual_block", {}),
    "shiftresnet20_e3": (create_model("shiftresnet20_e3"), "shift_conv", {}),
    "ResNet, reduced": (
        ResNet(8, block_reduction=2.8, net_reduction=2.9),
        "residual_block",
        {},
    ),
    "DepthwiseResNet": (DepthwiseResNet(8, reduction=0.38), "depthwise_block", {}),
    "ShiftResNet, 5x5, dilated": (
        ShiftResNet(8, expansion=2.5, kernel_size=5, dilation=2),
        "shift_conv",
        {"kernel_size": 5, "dilation": 2},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.usefixtures("float64")
def test_a_network_equals_numpy(reference, rng, randomize, assert_trees_close, name):
    """Logits, features and running averages of a step of training."""
    model, block, options = NETWORKS[name]
    images = rng.normal(size=(2, 8, 8, 3))
    variables = randomize(model, images)
    train = functools.partial(
        model.clone(implementation="reference").apply,
        train=True,
        capture_features=True,
        mutable=["batch_stats"],
    )
    block = functools.partial(getattr(reference, block), **options)
    weights = variables["params"], variables["batch_stats"]
    *outputs, stats = reference.cifar_network(block, *weights, images, True)
    actual = jax.jit(train)(variables, images)
    assert_trees_close(actual, (tuple(outputs), {"batch_stats": stats}), FLOAT64)


@pytest.mark.parametrize("name", ["resnet20", "shiftresnet20_e1"])
@pytest.mark.usefixtures("float64")
def test_evaluation_equals_numpy(reference, rng, randomize, assert_trees_close, name):
    """By default, by the machine's implementation, with the running averages."""
    model = create_model(name)
    images = rng.normal(size=(3, 9, 7, 3))
    variables = randomize(model, images)
    block = reference.shift_conv if "shift" in name else reference.residual_block
    weights = variables["params"], variables["batch_stats"]
    expected, *_ = reference.cifar_network(block, *weights, images, False)
    assert_trees_close(jax.jit(model.apply)(variables, images), expected, FLOAT64)


@pytest.mark.parametrize(
    "model", [ResNet(8), DepthwiseResNet(8), ShiftResNet(8)], ids=type
)
@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize("shape", [(1, 33, 33, 3), (4, 28, 28, 1), (3, 5, 64, 4)])
def test_other_images(model, implementation, shape):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    model = model.clone(implementation=implementation)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert variables["params"]["stem"]["conv"]["kernel"].shape == (3, 3, shape[-1], 16)
    apply = functools.partial(model.apply, capture_features=True)
    logits, features = jax.eval_shape(apply, variables, images)
    assert logits.shape == (shape[0], 10)
    shapes = {name: value.shape for name, value in features.items()}
    assert shapes == cifar_features(shape)


def test_features_of_a_reduced_network():
    """Widths int(16 / sqrt(2.9)), int(32 / sqrt(2.9)), int(64 / sqrt(2.9))."""
    model, images = ResNet(8, net_reduction=2.9), jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    apply = functools.partial(model.apply, capture_features=True)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(apply, variables, images)[1])
    assert shapes == cifar_features(images.shape, (9, 18, 37))


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize("kind", [ResNet, DepthwiseResNet, ShiftResNet])
def test_remat_makes_a_checkpoint_of_each_block(kind, implementation):
    """The program has three checkpoints, on the same variables."""
    images = jnp.zeros((2, 8, 8, 3))
    plain = kind(8, implementation=implementation)
    again = plain.clone(remat=True)
    variables, same = (
        jax.eval_shape(model.init, jax.random.key(0), images)
        for model in (plain, again)
    )
    assert variables == same

    def checkpoints(model):
        program = jax.make_jaxpr(functools.partial(train, model))(variables, images)
        return sum("remat" in equation.primitive.name for equation in program.eqns)

    assert (checkpoints(plain), checkpoints(again)) == (0, 3)


@pytest.mark.usefixtures("float64")
def test_remat_gives_the_same_gradients(rng, randomize, assert_trees_close):
    images = rng.normal(size=(4, 8, 8, 3))
    model = ShiftResNet(8, implementation="reference")
    variables = randomize(model, images)

    def loss(model, params):
        logits, updates = train(model, variables | {"params": params}, images)
        return (logits**2).mean(), updates

    actual, expected = (
        jax.jit(jax.grad(functools.partial(loss, remat), has_aux=True))(
            variables["params"]
        )
        for remat in (model.clone(remat=True), model)
    )
    assert_trees_close(actual, expected, FLOAT64)


@pytest.mark.parametrize("kind", [ResNet, DepthwiseResNet, ShiftResNet])
def test_scanned_blocks_are_one_program(kind):
    """A loop replaces equal blocks; the variables are those of single blocks."""
    images = jnp.zeros((2, 8, 8, 3), jnp.bfloat16)
    plain = kind(
        26, implementation="reference", dtype=jnp.bfloat16
    )  # four blocks a stage
    variables, same = (
        jax.eval_shape(model.init, jax.random.key(0), images)
        for model in (plain, plain.clone(scan=True))
    )
    assert variables == same

    def loops(model):
        program = jax.make_jaxpr(functools.partial(train, model))(variables, images)
        return [
            equation.params["length"]
            for equation in program.eqns
            if equation.primitive.name == "scan"
        ]

    assert loops(plain) == []
    assert loops(plain.clone(scan=True)) == [3, 3, 3]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_scanned_blocks_give_the_same_gradients_and_statistics(
    rng, randomize, assert_trees_close, implementation
):
    """With and without rematerialization, which evaluation does not have."""
    images = rng.normal(size=(4, 8, 8, 3))
    model = ShiftResNet(20, implementation=implementation)
    variables = randomize(model, images)

    def loss(model, params):
        logits, updates = train(model, variables | {"params": params}, images)
        return (logits**2).mean(), updates

    scanned = model.clone(scan=True)
    expected, kept, again = (
        jax.jit(jax.grad(functools.partial(loss, model), has_aux=True))(
            variables["params"]
        )
        for model in (model, scanned, scanned.clone(remat=True))
    )
    assert_trees_close(kept, expected, FLOAT64)
    assert_trees_close(again, expected, FLOAT64)
    expected, actual = (
        jax.jit(model.apply)(variables, images) for model in (model, scanned)
    )
    assert_trees_close(actual, expected, FLOAT64)


@pytest.mark.parametrize("kind", [ResNet, DepthwiseResNet, ShiftResNet])
def test_the_fields_of_a_network_reach_every_unit_and_norm(kind):
    def kernel_init(*args):
        return jnp.ones(args[1], args[2])

    fields = {
        "axis_name": "replicas",
        "momentum": 0.75,
        "epsilon": 1e-3,
        "dtype": jnp.bfloat16,
        "param_dtype": jnp.float16,
        "kernel_init": kernel_init,
        "implementation": "reference",
    }
    assert set(fields) == set(SHARED)
    modules = []

    def collect(call, args, kwargs, context):
        modules.append(context.module)
        return call(*args, **kwargs)

    model = kind(8, **fields)
    with nn.intercept_methods(collect):
        images = jnp.zeros((1, 8, 8, 3))
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
    for module in modules:
        if isinstance(module, Unit | nn.BatchNorm):
            own = {name for name in fields if hasattr(module, name)}
            assert len(own) >= 5
            assert {name: getattr(module, name) for name in own} == {
                name: fields[name] for name in own
            }
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(variables["params"])}
    assert dtypes == {jnp.dtype("float16")}


def test_a_network_inside_another():
    """The network is a trunk in evaluation mode, with another head."""

    class Detector(nn.Module):
        @nn.compact
        def __call__(self, images):
            trunk = ShiftResNet(8, name="trunk")
            _, features = trunk(images, capture_features=True)
            return nn.Conv(5, (1, 1))(features["stage3"])

    images = jnp.zeros((2, 16, 16, 3))
    variables = jax.eval_shape(Detector().init, jax.random.key(0), images)
    assert set(variables["params"]) == {"trunk", "Conv_0"}
    y = jax.eval_shape(Detector().apply, variables, images)
    assert y.shape == (2, 4, 4, 5)


IMAGES = jnp.zeros((2, 8, 8, 3))
INVALID = {
    "depth between two networks": (ResNet(21), IMAGES, "depth=21"),
    "no blocks": (ShiftResNet(2), IMAGES, "depth=2"),
    "no classes": (ResNet(8, num_classes=0), IMAGES, "num_classes=0"),
    "implementation": (
        ResNet(8, implementation="tup"),
        IMAGES,
        "'tup': did you mean.* 'tpu'",
    ),
    "block reduction": (ResNet(8, block_reduction=17), IMAGES, "reduction of 17 "),
    "block reduction 0": (ResNet(8, block_reduction=0), IMAGES, "reduction of 0 "),
    "net reduction": (ResNet(8, net_reduction=300), IMAGES, "reduction of 17.32"),
    "net reduction negative": (ResNet(8, net_reduction=-2), IMAGES, "net_reduction=-2"),
    "reduction": (DepthwiseResNet(8, reduction=-1), IMAGES, "reduction of -1 "),
    "reduction not a number": (
        DepthwiseResNet(8, reduction=math.nan),
        IMAGES,
        "reduction of nan ",
    ),
    "expansion": (ShiftResNet(8, expansion=0.05), IMAGES, "expansion=0.05"),
    "kernel size": (ShiftResNet(8, kernel_size=0), IMAGES, "kernel_size=0"),
    "dilation": (ShiftResNet(8, dilation=1.5), IMAGES, "dilation=1.5"),
    "bytes": (ResNet(8), IMAGES.astype(jnp.uint8), r"uint8 \[2, 8, 8, 3\]"),
    "no rows": (ResNet(8), IMAGES[:, :0], r"\[2, 0, 8, 3\]: height, width and chan"),
    "no columns": (ShiftResNet(8), IMAGES[:, :, :0], r"\[2, 8, 0, 3\]: height"),
    "no channels": (ResNet(8), IMAGES[..., :0], r"\[2, 8, 8, 0\]: height"),
    "one image": (ResNet(8), IMAGES[0], r"float32 \[8, 8, 3\]"),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_option_or_input_is_named_with_its_value(name):
    model, images, message = INVALID[name]
    with pytest.raises(InputError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), images)


def test_no_images_have_no_logits():
    model = ResNet(8)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert jax.eval_shape(model.apply, variables, IMAGES[:0]).shape == (0, 10)


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_images_of_other_channels_than_the_params_are_named(implementation):
    model = ResNet(8, implementation=implementation)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    with pytest.raises(InputError, match=r"4 channels.* 3"):
        jax.eval_shape(model.apply, variables, jnp.zeros((2, 8, 8, 4)))
