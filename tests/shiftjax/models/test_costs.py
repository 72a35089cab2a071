"""The networks: their cost to the digit, and the shapes of what they compute.

One table runs over every registered network, so a new one needs a row to pass.
"""

import functools
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from shiftjax import create_model, list_models, summarize
from shiftjax.models import facenet, stylizer
from shiftjax.registry import VARIANTS
from tests.shiftjax.models.conftest import cifar_features

pytestmark = pytest.mark.usefixtures("quick")


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
NETWORKS = [name for name in list_models() if name not in stylizer.VARIANTS]
# The option for the number of features that a network returns.
RETURNED = {
    name: "embedding_size" if name in facenet.VARIANTS else "num_classes"
    for name in NETWORKS
}

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
    return params, inputs * wide * size**2 + wide * branch * (-(-size // stride)) ** 2


def shiftnet_c_macs(size=112, outputs=1000):
    """Multiply-adds of ShiftNet-C, for which none are published; `size` of the stem."""
    macs, channels = 49 * 3 * 16 * size**2, 16
    for features, count in ((32, 1), (64, 4), (128, 4), (256, 3)):
        for index in range(count):
            stride = 1 if index else 2
            macs += csc_cost(channels, features, 3, 1, size, stride, True)[1]
            channels, size = features, -(-size // stride)
    return macs + 256 * outputs


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


def facenet_resnet_cost(width, size=56):
    """Params and multiply-adds of a plain ResNet of faces; `size` of the stem."""
    channels = width // 2
    params, macs = 49 * 3 * channels + 2 * channels, 49 * 3 * channels * size**2
    for stage, count in enumerate((1, 4, 4, 3)):
        features = width * 2**stage
        for index in range(count):
            kernels = 9 * channels * features + 9 * features**2
            params += kernels + 4 * features
            if index == 0:
                size = -(-size // 2)
                kernels += channels * features
                params += channels * features + 2 * features
            macs += kernels * size**2
            channels = features
    return params + channels * 128 + 128, macs + channels * 128


def active_resnet_cost(width, size=112):
    """Params and multiply-adds of an AS-ResNet; `size` of the stem."""
    params, macs = 9 * 3 * width, 9 * 3 * width * size**2
    channels = width
    strides = {(0, 0): 1} | {(stage, 0): 2 for stage in range(1, 5)}
    for stage, count in enumerate((1, 3, 4, 6, 3)):
        features = width * 2 ** max(stage - 1, 0)
        for index in range(count):
            after = size // strides.get((stage, index), 1)
            params += 2 * channels + channels * features + 2 * features  # to the ReLU
            params += 2 * features + features**2  # displacements, 1x1 convolution
            macs += channels * features * size**2 + features**2 * after**2
            if after < size:
                params += channels * features
                macs += channels * features * after**2
            channels, size = features, after
    return params + 2 * channels + channels * 1000 + 1000, macs + channels * 1000


# params, params with 100 classes, multiply-adds at 224 x 224.
for _name, _params, _features, _macs in (
    ("shiftnet_a", 4_188_680, 512, 1_424_306_176),
    ("shiftnet_b", 1_183_480, 256, 370_956_288),
    ("shiftnet_c", 781_240, 256, shiftnet_c_macs()),
    ("resnet50", 25_557_032, 2048, bottleneck_macs(0)),
    ("shiftresnet50", 21_807_272, 2048, bottleneck_macs(3)),
):
    COSTS[_name] = _params, _params - 900 * (_features + 1), _macs
for _width in (32, 50, 68):
    _params, _macs = active_resnet_cost(_width)
    COSTS[f"as_resnet_w{_width}"] = _params, _params - 900 * (8 * _width + 1), _macs

# params with 128 features, with 100, multiply-adds at 112 x 112. The published params
# of ShiftNet-C are those with 1000 classes.
_params = 781_240 - 257 * 1000 + 257 * 128
COSTS["shift_facenet"] = _params, _params - 28 * 257, shiftnet_c_macs(56, 128)
for _width in (11, 13):
    _params, _macs = facenet_resnet_cost(_width)
    _name = f"facenet_resnet26_w{_width}"
    COSTS[_name] = _params, _params - 28 * (8 * _width + 1), _macs

# Features of the stem with its stride, and of the stages with theirs; a network without
# a row has those of a CIFAR network.
FEATURES = {
    "shiftnet_a": (32, 2, (64, 128, 256, 512), (4, 8, 16, 32)),
    "shiftnet_b": (16, 2, (32, 64, 128, 256), (4, 8, 16, 32)),
    "shiftnet_c": (16, 2, (32, 64, 128, 256), (4, 8, 16, 32)),
    "shift_facenet": (16, 2, (32, 64, 128, 256), (4, 8, 16, 32)),
    "facenet_resnet26_w11": (5, 2, (11, 22, 44, 88), (4, 8, 16, 32)),
    "facenet_resnet26_w13": (6, 2, (13, 26, 52, 104), (4, 8, 16, 32)),
    "as_resnet_w32": (32, 2, (32, 64, 128, 256), (4, 8, 16, 32)),
    "as_resnet_w50": (50, 2, (50, 100, 200, 400), (4, 8, 16, 32)),
    "as_resnet_w68": (68, 2, (68, 136, 272, 544), (4, 8, 16, 32)),
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


def features_of(name, images):
    """Shapes of the features: every size divides here."""
    batch, side, _, _ = images
    stem, stride, widths, strides = FEATURES[name]
    shapes = {"stem": (batch, side // stride, side // stride, stem)}
    for stage, (width, total) in enumerate(zip(widths, strides, strict=True), 1):
        shapes[f"stage{stage}"] = (batch, side // total, side // total, width)
    return shapes | {"pre_logits": (batch, widths[-1])}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_costs_what_is_published(name):
    params, _, macs = COSTS[name]
    summary = summarize(name)
    assert (summary.params, summary.macs) == (params, macs)


def test_the_page_of_networks_has_every_cost():
    """`python -m train results` was called after the last network."""
    page = (Path(__file__).parents[3] / "docs" / "zoo.md").read_text()
    row = r"^\| `(\w+)` \| ([\d,]+) \| ([\d,.]+) M \| \d+ \|$"
    found = {name: costs for name, *costs in re.findall(row, page, re.MULTILINE)}
    assert list(found) == list(VARIANTS)
    for name in NETWORKS:
        params, _, macs = COSTS[name]
        assert found[name] == [f"{params:,}", f"{macs / 1e6:,.1f}"], name


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_its_form(name):
    """100 outputs, bfloat16 compute, training: outputs, features and variables."""
    model = create_model(name, **{RETURNED[name]: 100}, dtype=jnp.bfloat16)
    size = 64 if name in FEATURES else 32
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert count(variables["params"]) == COSTS[name][1]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    train = functools.partial(
        model.apply, train=True, capture_features=True, mutable=["batch_stats"]
    )
    (outputs, features), updates = jax.eval_shape(train, variables, images)
    assert (outputs.shape, outputs.dtype) == ((2, 100), jnp.float32)
    shapes = {name: value.shape for name, value in features.items()}
    if name in FEATURES:
        assert shapes == features_of(name, images.shape)
    else:
        assert shapes == cifar_features(images.shape)
    assert updates == {"batch_stats": variables["batch_stats"]}


@pytest.mark.parametrize(("name", "options", "params"), REDUCED)
def test_reduced_networks_have_the_published_size(name, options, params):
    assert summarize(create_model(name, **options)).params == params
    if "reduction" in options:  # which is what the table above relies on
        assert depthwise_cost(20, **options)[0] == params


@pytest.mark.parametrize(("reduction", "millions"), REDUCED_50)
def test_reduced_shiftresnet50s_have_the_published_size(reduction, millions):
    params = summarize(create_model("shiftresnet50", net_reduction=reduction)).params
    assert round(params / 1e6, 2) == millions


def test_the_as_resnets_have_the_published_size():
    """In millions: the table beside the authors' files, of which w32 has 0.9."""
    millions = [COSTS[f"as_resnet_w{width}"][0] / 1e6 for width in (32, 50, 68)]
    assert [round(n, 1) for n in millions[:1]] == [0.9]
    assert [round(n, 2) for n in millions[1:]] == [1.96, 3.42]


def test_the_plain_resnet50_costs_what_is_published():
    """4,089,184,256: https://github.com/facebookresearch/fvcore and others."""
    assert COSTS["resnet50"][2] == 4_089_184_256


def test_the_face_networks_cost_nearly_the_same():
    """The plain ones: one has the parameters, the other one the multiply-adds."""
    params, _, macs = COSTS["shift_facenet"]
    assert (params, macs) == (557_136, 31_116_288)
    assert COSTS["facenet_resnet26_w11"][0] == pytest.approx(params, rel=0.02)
    assert COSTS["facenet_resnet26_w13"][2] == pytest.approx(macs, rel=0.005)


def test_a_shift_facenet_of_1000_features_has_the_published_size():
    """0.78 million, which are those of ShiftNet-C with its classifier."""
    model = create_model("shift_facenet", embedding_size=1000)
    assert summarize(model).params == 781_240


@pytest.mark.parametrize("second", [False, True])
def test_a_shiftnet_of_other_modules(second):
    """SC² costs what CSC does; dilation costs nothing."""
    model = create_model("shiftnet_b", second_shift=second, dilation=2)
    summary = summarize(model, 64)
    assert summary.params == COSTS["shiftnet_b"][0]
    shifts = [layer for layer in summary.layers if layer.kind == "Shift"]
    assert len(shifts) == (2 if second else 1) * (5 + 6 + 7 + 3)
