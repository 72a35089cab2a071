"""Networks for perceptual losses, from files of random weights, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shiftjax import InputError, MissingFileError, UnknownNameError
from shiftjax.weights import Card, save
from tests.shiftjax.convert import torch_writer as writer
from train.style import features
from train.style.files import convolutions, decode_codebooks, read_npz

pytestmark = pytest.mark.usefixtures("quick")

# Convolutions of VGG-16 up to relu4_3: torchvision's index, inputs, outputs.
VGG = [
    (0, 3, 64),
    (2, 64, 64),
    (5, 64, 128),
    (7, 128, 128),
    (10, 128, 256),
    (12, 256, 256),
    (14, 256, 256),
    (17, 256, 512),
    (19, 512, 512),
    (21, 512, 512),
]
RELUS = {2: "relu1_2", 7: "relu2_2", 14: "relu3_3", 21: "relu4_3"}
POOLS = (2, 7, 14)  # behind which the picture is halved

# Fire modules of SqueezeNet 1.0: torchvision's index, inputs, narrow, half of outputs.
FIRES = {
    2: (3, 96, 16, 64),
    3: (4, 128, 16, 64),
    4: (5, 128, 32, 128),
    5: (7, 256, 32, 128),
    6: (8, 256, 48, 192),
    7: (9, 384, 48, 192),
    8: (10, 384, 64, 256),
}
CAFFE = ("conv1x1_1", "conv1x1_2", "conv3x3_2")
TORCH = ("squeeze", "expand1x1", "expand3x3")


def conv(x, weight, bias, stride=1):
    """A convolution `[out, in, K, K]` of an NHWC array that is padded already."""
    size = weight.shape[2]
    height, width = (n - size + 1 for n in x.shape[1:3])
    out = bias
    for i in range(size):
        for j in range(size):
            tap = x[:, i : i + height : stride, j : j + width : stride]
            out = out + tap @ weight[:, :, i, j].T
    return out


def padded(x):
    return np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def pool(x, size):
    """The largest in each window of stride 2; of three, the last reaches over."""
    height, width = (-(-(n - size) // 2) + 1 for n in x.shape[1:3])
    out = np.empty((x.shape[0], height, width, x.shape[3]))
    for h in range(height):
        for w in range(width):
            window = x[:, 2 * h : 2 * h + size, 2 * w : 2 * w + size]
            out[:, h, w] = window.max((1, 2))
    return out


def relu(x):
    return np.maximum(x, 0)


def close(actual, expected):
    """Compares float32 sums of up to 4608 products, after ten layers."""
    assert set(actual) == set(expected)
    for name, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(actual[name] / scale, value / scale, 0, 1e-4)


def randoms(rng, shapes):
    """Weights and biases by name, that keep the size of activations."""
    found = {}
    for name, shape in shapes.items():
        weight = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        found[f"{name}.weight"] = weight.astype(np.float32)
        bias = 0.1 * rng.normal(size=shape[0])
        found[f"{name}.bias"] = bias.astype(np.float32)
    return found


@pytest.fixture
def vgg_arrays(rng):
    return randoms(rng, {f"features.{i}": (out, n, 3, 3) for i, n, out in VGG})


def squeezenet_shapes(torch):
    shapes = {"features.0" if torch else "conv1": (96, 3, 7, 7)}
    for fire, (index, inputs, narrow, half) in FIRES.items():
        prefix = f"features.{index}." if torch else f"fire{fire}/"
        one, two, three = TORCH if torch else CAFFE
        shapes[prefix + one] = (narrow, inputs, 1, 1)
        shapes[prefix + two] = (half, narrow, 1, 1)
        shapes[prefix + three] = (half, narrow, 3, 3)
    return shapes


def save_torch(path, arrays):
    tensors = {name: writer.tensor(array) for name, array in arrays.items()}
    path.write_bytes(writer.archive(tensors))
    return path


def test_vgg16_equals_numpy(tmp_path, rng, vgg_arrays):
    """Reads a file with more layers, as torchvision's."""
    more = {"classifier.6.bias": np.zeros(1000, np.float32)}
    path = save_torch(tmp_path / "vgg16.pth", vgg_arrays | more)
    net = features.load_feature_net("vgg16", path)
    assert net.content_layer == "relu2_2"
    assert net.style_layers == ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
    assert net.weights == (1e5, 1e10)

    pictures = rng.uniform(size=(2, 17, 16, 3)).astype("float32")
    x = (pictures - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = {}
    for index, *_ in VGG:
        weights = (
            vgg_arrays[f"features.{index}.{part}"] for part in ("weight", "bias")
        )
        x = relu(conv(padded(x), *weights))
        if index in RELUS:
            expected[RELUS[index]] = x
        if index in POOLS:
            x = pool(x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2], 2)
    close(jax.jit(net.__call__)(net.params, pictures), expected)


def quantized(rng, arrays):
    """A file of codes, in which each weight is one of its codebook's 256; and these."""
    content, weights = {"license": np.array("BSD"), "prototxt": np.array("...")}, {}
    for name, value in arrays.items():
        if name.endswith(".bias"):
            content[name] = weights[name] = value
            continue
        layer = name.removesuffix(".weight")
        codebook = rng.choice(value.ravel(), 256).astype(np.float32)
        codes = rng.integers(0, 256, value.shape, np.uint8)
        content |= {f"{layer}.codes": codes, f"{layer}.codebook": codebook}
        entries = [codebook[code] for code in codes.ravel()]
        weights[name] = np.reshape(entries, codes.shape)
    return content, weights


@pytest.mark.parametrize(
    ("size", "codes"), [((37, 35), False), ((40, 45), False), ((37, 36), True)]
)
def test_squeezenet_equals_numpy(tmp_path, rng, size, codes):
    """Reads an .npz, for BGR less the mean; windows end inside and beyond the edge."""
    content = arrays = randoms(rng, squeezenet_shapes(torch=False))
    if codes:
        content, arrays = quantized(rng, arrays)
    np.savez(tmp_path / "s.npz", **content)
    net = features.load_feature_net("squeezenet", tmp_path / "s.npz")
    pictures = rng.uniform(size=(1, *size, 3)).astype("float32")
    x = 255 * pictures[..., ::-1].astype(np.float64) - [104, 117, 123]

    x = relu(conv(x, arrays["conv1.weight"], arrays["conv1.bias"], 2))
    expected = {"conv1": x}
    for fire in FIRES:
        if fire in (2, 5):
            x = pool(x, 3)
        one, two, three = (
            [arrays[f"fire{fire}/{name}.{part}"] for part in ("weight", "bias")]
            for name in CAFFE
        )
        x = relu(conv(x, *one))
        x = relu(np.concatenate([conv(x, *two), conv(padded(x), *three)], -1))
        expected[f"fire{fire}"] = x
    close(jax.jit(net.__call__)(net.params, pictures), expected)
    assert {net.content_layer, *net.style_layers} <= set(expected)


def test_squeezenet_of_torchvision_has_the_same_layers(tmp_path, rng):
    theirs = randoms(rng, squeezenet_shapes(torch=True))
    names = zip(
        squeezenet_shapes(torch=True), squeezenet_shapes(torch=False), strict=True
    )
    ours = {
        f"{b}.{part}": theirs[f"{a}.{part}"]
        for a, b in names
        for part in ("weight", "bias")
    }
    np.savez(tmp_path / "s.npz", **ours)
    first = features.squeezenet(save_torch(tmp_path / "s.pth", theirs))
    second = features.squeezenet(tmp_path / "s.npz")
    kernel = np.asarray(second.params["conv1"]["kernel"])[:, :, ::-1]  # to BGR
    second.params["conv1"]["kernel"] = kernel
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    np.testing.assert_allclose(first.mean, (0.485, 0.456, 0.406))


CARD = Card(
    architecture="shiftresnet20_e1",
    options={"depth": 8, "num_classes": 2},
    class_names=("a", "b"),
    image_size=8,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.5),
)


@pytest.fixture
def own(tmp_path):
    """A file of weights of a network of ours."""
    init = jax.jit(CARD.model().init)
    variables = init(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))
    path = tmp_path / "x.safetensors"
    save(path, variables, CARD)
    return path, variables


def test_a_network_of_ours_gives_its_stem_and_stages(own, rng):
    """And its gradient, in the form for this machine, is that of the plain form."""
    path, variables = own
    net = features.load_feature_net(str(path))
    assert set(net.style_layers) == {"stem", "stage1", "stage2", "stage3"}
    assert net.content_layer in net.style_layers
    pictures = rng.uniform(size=(2, 12, 8, 3)).astype("float32")
    plain = CARD.model().clone(implementation="reference")

    def expected(pictures):
        x = (pictures - np.array(CARD.mean, "f")) / np.array(CARD.std, "f")
        found = plain.apply(variables, x, capture_features=True)[1]
        return {name: found[name] for name in net.style_layers}

    def actual(pictures):
        return net(net.params, pictures)

    def slope(function):
        def energy(pictures):
            found = function(pictures)
            return sum((y**2).mean() for y in found.values()), found

        (_, found), slope = jax.jit(jax.value_and_grad(energy, has_aux=True))(pictures)
        return found | {"slope": slope}

    close(slope(actual), slope(expected))


def test_other_layers_can_be_compared(own):
    net = features.load_feature_net(str(own[0]))
    assert net.with_layers(None, ()) is net
    other = net.with_layers("stage3", ("stem",))
    assert (other.content_layer, other.style_layers) == ("stage3", ("stem",))
    assert net.with_layers("stem", ()).style_layers == net.style_layers
    assert net.with_layers(None, ("stem",)).content_layer == net.content_layer
    for option, layers in (
        ("content-layer", ("stag3", ())),
        ("style-layers", (None, ("stem", "stag3"))),
    ):
        with pytest.raises(UnknownNameError) as error:
            net.with_layers(*layers)
        assert str(error.value) == (
            f"unknown --style.{option} 'stag3': did you mean 'stage3' or 'stage2' or "
            "'stage1'? (known: stage1, stage2, stage3, stem)"
        )


def test_params_are_no_constants_of_the_program(own):
    net = features.load_feature_net(str(own[0]))
    images = jnp.zeros((1, 8, 8, 3))
    program = jax.make_jaxpr(net.__call__)(net.params, images)
    assert max((np.size(c) for c in program.consts), default=0) <= 3  # mean and std


# Mistakes.


def test_all_that_is_missing_is_named(tmp_path, vgg_arrays):
    arrays = vgg_arrays
    del arrays["features.5.weight"]
    arrays["features.0.bias"] = np.zeros(63, np.float32)
    arrays["features.2.bias"] = np.zeros(64, np.int64)
    path = save_torch(tmp_path / "vgg.pth", arrays)
    with pytest.raises(InputError) as error:
        features.vgg16(path)
    for words in (
        "vgg.pth does not fit",
        "features.5.weight [128, 64, 3, 3] is missing",
        "features.0.bias is [63], not [64]",
        "features.2.bias is not an array of floats",
    ):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_array_is_refused():
    arrays = {"0.weight": np.zeros((1, 1, 1, 1), "f"), "0.bias": "text"}
    with pytest.raises(InputError, match=r"0\.bias is not an array of floats"):
        convolutions(arrays, {"stem": ("0", (1, 1, 1, 1))}, "it")


WRONG_CODES = {
    "no codebook": ({"a.codes": [0]}, r"a\.codebook is missing or not a vector"),
    "a table": ({"a.codes": [0], "a.codebook": [[1.0]]}, "missing or not a vector"),
    "beyond": ({"a.codes": [2], "a.codebook": [1.0, 2.0]}, "integers from 0 to 1"),
    "negative": ({"a.codes": [-1], "a.codebook": [1.0]}, "integers from 0 to 0"),
    "floats": ({"a.codes": [0.0], "a.codebook": [1.0]}, "must be integers"),
}


@pytest.mark.parametrize("name", WRONG_CODES)
def test_codes_that_cannot_be_read_are_refused(name):
    arrays, message = WRONG_CODES[name]
    with pytest.raises(InputError, match=f"^s.npz: .*{message}"):
        decode_codebooks(
            {key: np.array(value) for key, value in arrays.items()}, "s.npz"
        )


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x93NUMPY", b"text"])
def test_a_file_of_another_format(tmp_path, content):
    path = tmp_path / "s.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a NumPy archive"):
        read_npz(path)


def test_a_single_array_is_no_archive(tmp_path):
    with (tmp_path / "s.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match="is not a NumPy archive"):
        read_npz(tmp_path / "s.npz")


NO_NET = {
    "no file": (("vgg16",), InputError, "vgg16 needs its file of weights"),
    "missing": (("vgg16", "no.pth"), MissingFileError, r"no file no\.pth"),
    "missing npz": (("squeezenet", "no.npz"), MissingFileError, r"no file no\.npz"),
    "released": (("resnet20.x", "no.pth"), InputError, "takes no other weights"),
    "unknown": (("vgg19",), UnknownNameError, "unknown weights 'vgg19'"),
}


@pytest.mark.parametrize("name", NO_NET)
def test_a_mistake_says_what_is_needed(name):
    arguments, kind, message = NO_NET[name]
    with pytest.raises(kind, match=message):
        features.load_feature_net(*arguments)
