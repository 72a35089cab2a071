"""The networks: their cost to the digit, their forms, and their numbers in NumPy.

One table runs over every registered network, so a new one needs a row to pass.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from shiftjax import InputError, create_model, list_models, summarize
from shiftjax.models import stylizer
from shiftjax.models.resnet import DepthwiseResNet, ResNet, ShiftResNet
from shiftjax.module import SHARED, Unit

pytestmark = pytest.mark.usefixtures("quick")

# Twenty layers in float64, of which each loses some hundred units in the last place.
FLOAT64 = 1e-11


def depthwise_cost(depth, reduction=1.0):
    """Params and multiply-adds of a depthwise ResNet, added up layer by layer."""
    params, macs = 27 * 16 + 2 * 16, 27 * 16 * 32 * 32
    channels, size = 16, 32
    for width in (16, 32, 64):
        for block in range((depth - 2) // 6):
            inner, stride = int(width / reduction), 1
            params += channels * inner + 2 * inner + 9 * inner + 2 * inner
            macs += (channels * inner + 9 * inner) * size**2
            if block == 0 and width > 16:
                size, stride = size // 2, 2
            params += inner * width + 2 * width
            macs += inner * width * size**2
            if stride == 2:
                params += channels * width + 2 * width
                macs += channels * width * size**2
            channels = width
    return params + 64 * 10 + 10, macs + 64 * 10


# Those that map images to images are in test_stylizer.py.
CLASSIFIERS = [name for name in list_models() if name not in stylizer.VARIANTS]

# params with 10 classes, params with 100, multiply-adds: the published table.
COSTS = {
    "resnet20": (272_474, 278_324, 40_813_184),
    "resnet56": (855_770, 861_620, 125_747_840),
    "resnet110": (1_730_714, 1_736_564, 253_149_824),
    "shiftresnet20_e1": (34_906, 40_756, 5_948_032),
    "shiftresnet20_e3": (95_642, 101_492, 16_433_792),
    "shiftresnet20_e6": (186_746, 192_596, 32_162_432),
    "shiftresnet20_e9": (277_850, 283_700, 47_891_072),
    "shiftresnet56_e1": (102_106, 107_956, 15_385_216),
    "shiftresnet56_e3": (294_554, 300_404, 44_745_344),
    "shiftresnet56_e6": (583_226, 589_076, 88_785_536),
    "shiftresnet56_e9": (871_898, 877_748, 132_825_728),
    "shiftresnet110_e1": (202_906, 208_756, 29_540_992),
    "shiftresnet110_e3": (592_922, 598_772, 87_212_672),
    "shiftresnet110_e6": (1_177_946, 1_183_796, 173_720_192),
    "shiftresnet110_e9": (1_762_970, 1_768_820, 260_227_712),
}
for _depth in (20, 56, 110):
    _params, _macs = depthwise_cost(_depth)
    COSTS[f"depthwise_resnet{_depth}"] = _params, _params + 90 * 65, _macs


def csc_cost(inputs, features, kernel_size, expansion, size, stride, add):
    """Params and multiply-adds of a CSC module, at its own resolutions."""
    del kernel_size  # of the shift, which costs nothing
    same = inputs == features and stride == 1
    branch = features if same or add else features - inputs
    wide = int(expansion * branch)
    params = 2 * inputs + inputs * wide + 2 * wide + wide * branch
    return params, inputs * wide * size**2 + wide * branch * (size // stride) ** 2


def shiftnet_c_macs():
    """Multiply-adds of ShiftNet-C, for which none are published."""
    macs, channels, size = 49 * 3 * 16 * 112**2, 16, 112
    for features, count in ((32, 1), (64, 4), (128, 4), (256, 3)):
        for index in range(count):
            stride = 1 if index else 2
            macs += csc_cost(channels, features, 3, 1, size, stride, True)[1]
            channels, size = features, size // stride
    return macs + 256 * 1000


def bottleneck_macs(expansion):
    """Multiply-adds of a ResNet-50; of the plain one, 4.09 G are published."""
    macs, channels, size = 49 * 3 * 64 * 112**2, 64, 56
    for stage, count in enumerate((3, 4, 6, 3)):
        inner = 64 * 2**stage
        for index in range(count):
            stride = 2 if stage and index == 0 else 1
            after = size // stride
            macs += channels * inner * size**2
            if expansion:
                wide = expansion * inner
                macs += inner * wide * size**2 + wide * inner * after**2
            else:
                macs += 9 * inner**2 * after**2
            macs += inner * 4 * inner * after**2
            if index == 0:
                macs += channels * 4 * inner * after**2
            channels, size = 4 * inner, after
    return macs + 2048 * 1000


# params, params with 100 classes, multiply-adds at 224 x 224.
for _name, _params, _features, _macs in (
    ("shiftnet_a", 4_188_680, 512, 1_424_306_176),
    ("shiftnet_b", 1_183_480, 256, 370_956_288),
    ("shiftnet_c", 781_240, 256, shiftnet_c_macs()),
    ("resnet50", 25_557_032, 2048, bottleneck_macs(0)),
    ("shiftresnet50", 21_807_272, 2048, bottleneck_macs(3)),
):
    COSTS[_name] = _params, _params - 900 * (_features + 1), _macs

# Features of the ImageNet networks: of the stem with its stride, and of the stages.
IMAGENET = {
    "shiftnet_a": (32, 2, (64, 128, 256, 512), (4, 8, 16, 32)),
    "shiftnet_b": (16, 2, (32, 64, 128, 256), (4, 8, 16, 32)),
    "shiftnet_c": (16, 2, (32, 64, 128, 256), (4, 8, 16, 32)),
    "resnet50": (64, 4, (256, 512, 1024, 2048), (4, 8, 16, 32)),
    "shiftresnet50": (64, 4, (256, 512, 1024, 2048), (4, 8, 16, 32)),
}

# Published counts of networks of other sizes, with 10 classes.
REDUCED = [
    ("depthwise_resnet20", {"reduction": 1.12}, 34_735),
    ("depthwise_resnet20", {"reduction": 0.38}, 93_956),
    ("depthwise_resnet20", {"reduction": 0.19}, 183_374),
    ("depthwise_resnet20", {"reduction": 0.125}, 277_050),
    ("resnet20", {"block_reduction": 2.8}, 96_206),
    ("resnet20", {"net_reduction": 2.9}, 90_358),
]
# In millions: the paper's ShiftResNet-50 of two smaller widths, with 1000 classes.
REDUCED_50 = [(2, 11.34), (4, 5.99)]


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def cifar_features(images, widths=(16, 32, 64)):
    """Shapes of the features: strides 2 round the size up."""
    batch, height, width, _ = images
    sizes = [(-(-height // stride), -(-width // stride)) for stride in (1, 2, 4)]
    stages = [(batch, *size, c) for size, c in zip(sizes, widths, strict=True)]
    names = ["stage1", "stage2", "stage3", "pre_logits", "stem"]
    return dict(zip(names, [*stages, (batch, widths[2]), stages[0]], strict=True))


def imagenet_features(name, images):
    """Shapes of the features: every size divides here."""
    batch, side, _, _ = images
    stem, stride, widths, strides = IMAGENET[name]
    shapes = {"stem": (batch, side // stride, side // stride, stem)}
    for stage, (width, total) in enumerate(zip(widths, strides, strict=True), 1):
        shapes[f"stage{stage}"] = (batch, side // total, side // total, width)
    return shapes | {"pre_logits": (batch, widths[-1])}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_network_costs_what_is_published(name):
    params, _, macs = COSTS[name]
    summary = summarize(name)
    assert (summary.params, summary.macs) == (params, macs)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_network_has_its_form(name):
    """100 classes, bfloat16 compute, training: logits, features and variables."""
    model = create_model(name, num_classes=100, dtype=jnp.bfloat16)
    size = 64 if name in IMAGENET else 32
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert count(variables["params"]) == COSTS[name][1]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    train = functools.partial(
        model.apply, train=True, capture_features=True, mutable=["batch_stats"]
    )
    (logits, features), updates = jax.eval_shape(train, variables, images)
    assert (logits.shape, logits.dtype) == ((2, 100), jnp.float32)
    shapes = {name: value.shape for name, value in features.items()}
    if name in IMAGENET:
        assert shapes == imagenet_features(name, images.shape)
    else:
        assert shapes == cifar_features(images.shape)
    assert updates == {"batch_stats": variables["batch_stats"]}


@pytest.mark.parametrize(("name", "options", "params"), REDUCED)
def test_reduced_networks_have_the_published_size(name, options, params):
    assert summarize(create_model(name, **options)).params == params
    if "reduction" in options:  # which is what the table above relies on
        assert depthwise_cost(20, **options)[0] == params


def train(model, variables, images):
    return model.apply(variables, images, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize(("reduction", "millions"), REDUCED_50)
def test_reduced_shiftresnet50s_have_the_published_size(reduction, millions):
    params = summarize(create_model("shiftresnet50", net_reduction=reduction)).params
    assert round(params / 1e6, 2) == millions


def test_the_plain_resnet50_costs_what_is_published():
    """4,089,184,256: https://github.com/facebookresearch/fvcore and others."""
    assert COSTS["resnet50"][2] == 4_089_184_256


@pytest.mark.parametrize("second", [False, True])
def test_a_shiftnet_of_other_modules(second):
    """SC² costs what CSC does; dilation costs nothing."""
    model = create_model("shiftnet_b", second_shift=second, dilation=2)
    summary = summarize(model, 64)
    assert summary.params == COSTS["shiftnet_b"][0]
    shifts = [layer for layer in summary.layers if layer.kind == "Shift"]
    assert len(shifts) == (2 if second else 1) * (5 + 6 + 7 + 3)


@pytest.mark.parametrize("name", ["shiftnet_c", "shiftresnet50"])
def test_imagenet_networks_train_in_bfloat16(rng, name):
    """Everything finite, forward and backward; stem and head have gradients."""
    model = create_model(name, num_classes=5, dtype=jnp.bfloat16, remat=True)
    images = rng.normal(size=(2, 64, 64, 3)).astype("float32")
    variables = jax.jit(model.init)(jax.random.key(0), images)

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
        model.clone(form="plain").apply,
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
    """By default, in the form for the machine, with the running averages."""
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
@pytest.mark.parametrize("form", ["plain", "planes"])
@pytest.mark.parametrize("shape", [(1, 33, 33, 3), (4, 28, 28, 1), (3, 5, 64, 4)])
def test_other_images(model, form, shape):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    model = model.clone(form=form)
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


@pytest.mark.parametrize("form", ["plain", "planes"])
@pytest.mark.parametrize("kind", [ResNet, DepthwiseResNet, ShiftResNet])
def test_remat_makes_a_checkpoint_of_each_block(kind, form):
    """Of all three, on the same variables."""
    images = jnp.zeros((2, 8, 8, 3))
    plain = kind(8, form=form)
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
    model = ShiftResNet(8, form="plain")
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
    """Of the equal ones of each stage; the variables are those of single blocks."""
    images = jnp.zeros((2, 8, 8, 3), jnp.bfloat16)
    plain = kind(26, form="plain", dtype=jnp.bfloat16)  # four blocks a stage
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
@pytest.mark.parametrize("remat", [False, True], ids=["kept", "remat"])
@pytest.mark.parametrize("form", ["plain", "planes"])
def test_scanned_blocks_give_the_same_gradients_and_statistics(
    rng, randomize, assert_trees_close, form, remat
):
    images = rng.normal(size=(4, 8, 8, 3))
    model = ShiftResNet(20, form=form)
    variables = randomize(model, images)

    def loss(model, params):
        logits, updates = train(model, variables | {"params": params}, images)
        return (logits**2).mean(), updates

    models = model, model.clone(scan=True, remat=remat)
    expected, actual = (
        jax.jit(jax.grad(functools.partial(loss, model), has_aux=True))(
            variables["params"]
        )
        for model in models
    )
    assert_trees_close(actual, expected, FLOAT64)
    expected, actual = (jax.jit(model.apply)(variables, images) for model in models)
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
        "form": "plain",
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
    """As a trunk, in evaluation mode, with a head of the user's own."""

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
    "form": (ResNet(8, form="plane"), IMAGES, "'plane': did you mean.* 'plain'"),
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
    "one image": (ResNet(8), IMAGES[0], r"float32 \[8, 8, 3\]"),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_option_or_input_is_named_with_its_value(name):
    model, images, message = INVALID[name]
    with pytest.raises(InputError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), images)


@pytest.mark.parametrize("form", ["plain", "planes"])
def test_images_of_other_channels_than_the_params_are_named(form):
    model = ResNet(8, form=form)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    with pytest.raises(InputError, match=r"4 channels.* 3"):
        jax.eval_shape(model.apply, variables, jnp.zeros((2, 8, 8, 4)))
