"""The ImageNet networks, small ones of their kind, in NumPy."""

import math

import jax
import numpy as np
import pytest

from shiftjax.errors import InputError
from shiftjax.models.active_resnet import ActiveResNet
from shiftjax.models.bottleneck import BottleneckResNet
from shiftjax.models.shiftnet import ShiftNet, Stage

pytestmark = pytest.mark.usefixtures("quick")


def shiftnet(reference, model, params, stats, x, train):
    """Stem, CSC modules, BatchNorm, ReLU, mean and the dense layer."""
    new, features = {}, {}
    y = features["stem"] = reference.conv(x, params["stem"]["kernel"], 2)
    for number, stage in enumerate(model.stages, 1):
        for index in range(stage.count + 1):
            name = f"stage{number}_block{index + 1:02}"
            y, new[name] = reference.csc(
                params[name],
                stats[name],
                y,
                train,
                stage.features,
                1 if index else 2,
                stage.kernel_size,
                model.dilation,
                model.second_shift,
                model.shortcut == "add",
            )
        features[f"stage{number}"] = y
    norm = params["norm"], stats["norm"]
    y, new["norm"] = reference.batch_norm(*norm, y, train)
    return finish(params, np.maximum(y, 0), features, new)


def max_pool(x):
    """3x3, stride 2, padded by one of what is never the largest."""
    height, width = x.shape[1:3]
    padding = [(0, 0), (1, 1), (1, 1), (0, 0)]
    x = np.pad(x, padding, constant_values=-np.inf)
    taps = [
        x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)
    ]
    return np.max(taps, 0)


def bottleneck(reference, model, params, stats, x, train):
    """Stem, blocks of 1x1, 3x3 or shift, 1x1; the stride in the middle."""

    def unit(tree, name, y, stride=1):
        own = params[tree][name], stats[tree][name]
        y, new[tree][name] = reference.conv_norm(*own, y, train, stride)
        return y

    new, features = {}, {}
    y, new["stem"] = reference.conv_norm(params["stem"], stats["stem"], x, train, 2)
    y = features["stem"] = max_pool(np.maximum(y, 0))
    for name in sorted(key for key in params if key.startswith("stage")):
        new[name] = {}
        stride = 2 if name.endswith("01") and name[5] != "1" else 1
        inner = np.maximum(unit(name, "reduce", y), 0)
        if "expand" in params[name]:
            inner = np.maximum(unit(name, "expand", inner), 0)
            inner = reference.shift(inner, model.kernel_size, model.dilation)
            inner = np.maximum(unit(name, "project", inner, stride), 0)
        else:
            inner = np.maximum(unit(name, "conv3x3", inner, stride), 0)
        inner = unit(name, "grow", inner)
        skip = unit(name, "shortcut", y, stride) if "shortcut" in params[name] else y
        y = np.maximum(inner + skip, 0)
        features[name.split("_")[0]] = y
    return finish(params, y, features, new)


def active_shift(x, offsets, stride):
    """Bilinear interpolation between slices of an image with zeros around it."""
    out, (height, width) = np.zeros_like(x), x.shape[1:3]
    x = np.pad(x, [(0, 0), (9, 9), (9, 9), (0, 0)])
    for c, move in enumerate(offsets):
        top, left = np.floor(move).astype(int)
        down, right = move - (top, left)
        for i, rows in ((top, 1 - down), (top + 1, down)):
            for j, columns in ((left, 1 - right), (left + 1, right)):
                part = x[:, 9 + i : 9 + i + height, 9 + j : 9 + j + width, c]
                out[..., c] += rows * columns * part
    return out[:, ::stride, ::stride]


def active_resnet(reference, model, params, stats, x, train):
    """Stem of a convolution and a block; blocks; BatchNorm and ReLU at the end."""

    def block(name, x, stride):
        own, past, new[name] = params[name], stats[name], {}

        def active(norm, x):
            y, new[name][norm] = reference.batch_norm(own[norm], past[norm], x, train)
            return np.maximum(y, 0)

        before = active("expand_norm", x)
        y = active("shift_norm", before @ own["expand"]["kernel"])
        y = active_shift(y, own["shift"]["offsets"], stride)
        y = y @ own["project"]["kernel"]
        if "shortcut" in own:
            x = before[:, ::stride, ::stride] @ own["shortcut"]["kernel"]
        return y + x

    new, features = {}, {}
    y = reference.conv(x, params["stem"]["kernel"], 2)
    y = features["stem"] = block("stem_block", y, 1)
    for stage, count in enumerate(model.blocks, 1):
        for index in range(1, count + 1):
            y = block(f"stage{stage}_block{index:02}", y, 2 if index == 1 else 1)
        features[f"stage{stage}"] = y
    norm = params["norm"], stats["norm"]
    y, new["norm"] = reference.batch_norm(*norm, y, train)
    return finish(params, np.maximum(y, 0), features, new)


def finish(params, y, features, new):
    y = features["pre_logits"] = y.mean((1, 2))
    return y @ params["head"]["kernel"] + params["head"]["bias"], features, new


SMALL = (Stage(8, 3, 2, 1, 1), Stage(12, 5, 1, 1.5, 1))
NETWORKS = {
    "ShiftNet": (ShiftNet(stages=SMALL, stem_features=5, num_classes=3), shiftnet),
    "ShiftNet of SC2, added, dilated": (
        ShiftNet(
            stages=SMALL,
            stem_features=5,
            num_classes=3,
            second_shift=True,
            shortcut="add",
            dilation=2,
        ),
        shiftnet,
    ),
    "AS-ResNet": (ActiveResNet(width=6, blocks=(1, 2), num_classes=3), active_resnet),
    "ResNet": (
        BottleneckResNet(blocks=(1, 2), net_reduction=100, num_classes=3),
        bottleneck,
    ),
    "ShiftResNet": (
        BottleneckResNet(
            blocks=(1, 2), net_reduction=100, num_classes=3, expansion=3, dilation=2
        ),
        bottleneck,
    ),
}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.usefixtures("float64")
def test_a_network_equals_numpy(assert_equals_numpy, name, train):
    assert_equals_numpy(*NETWORKS[name], train)


def test_stages_may_be_as_on_a_card():
    """Mappings, which JSON has, of the fields of `Stage`."""
    given = [vars(stage) for stage in SMALL]
    networks = [ShiftNet(stages=stages, stem_features=5) for stages in (SMALL, given)]
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    ours, theirs = (
        jax.eval_shape(network.init, jax.random.key(0), images) for network in networks
    )
    assert ours == theirs


STAGE = {"features": 9, "kernel_size": 3, "first": 1, "others": 1, "count": 0}
NOT_STAGES = {
    "a number": (3, "stages=3: it must be a tuple of stages"),
    "numbers": ((9, 3), "stages: 9 must have the fields features, kernel_size, first"),
    "a field too few": (({"features": 9},), "must have the fields features, "),
    "a field too many": ((STAGE | {"stride": 2},), "must have the fields features, "),
    "features": ((STAGE | {"features": "9"},), "features='9': it must be an integer"),
    "window": ((STAGE | {"kernel_size": 0},), "kernel_size=0: it must be an integer"),
    "count": ((STAGE | {"count": 1.5},), r"count=1\.5: it must be an integer"),
    "negative count": ((STAGE | {"count": -1},), "count=-1: it must be an integer"),
}


@pytest.mark.parametrize("name", NOT_STAGES)
def test_stages_that_are_none_are_named(name):
    stages, message = NOT_STAGES[name]
    with pytest.raises(InputError, match=message):
        ShiftNet(stages=stages)


INVALID = {
    "stem": (ShiftNet(stem_features=0), "stem_features=0: it must be an integer"),
    "no channel": (
        BottleneckResNet(expansion=-1),
        "expansion=-1: 64 features leave no channel to shift",
    ),
    "infinite": (BottleneckResNet(expansion=math.inf), "expansion=inf: 64 features"),
    "not a number": (BottleneckResNet(expansion=math.nan), "expansion=nan: 64 feat"),
    "no blocks": (
        BottleneckResNet(blocks=(0, -1)),
        r"blocks\[0\]=0: it must be an integer of at least 1",
    ),
    "negative blocks": (ActiveResNet(blocks=(1, -1)), r"blocks\[1\]=-1: it must be"),
    "text": (BottleneckResNet(expansion="3"), "expansion='3': it must be a number"),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_option_is_named_with_its_value(name):
    model, message = INVALID[name]
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    with pytest.raises(InputError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), images)
