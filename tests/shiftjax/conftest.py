"""A reference in NumPy, random variables and comparisons, for tests of the library."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

MOMENTUM, EPSILON = 0.9, 1e-5


class Reference:
    """The operation and the modules as the papers define them, in plain NumPy.

    Nothing here calls the library. A module is a function of the params and running
    statistics under its name, NHWC arrays, and `train`; it returns its output and the
    running statistics after the step.
    """

    @staticmethod
    def displace(x, table, stride=1):
        """Moves each channel by its row of the table, number by number."""
        height, width, channels = x.shape[-3:]
        size = -(-height // stride), -(-width // stride)
        out = np.zeros((*x.shape[:-3], *size, channels), x.dtype)
        for h in range(size[0]):
            for w in range(size[1]):
                for c, (dy, dx) in enumerate(table):
                    row, column = stride * h + dy, stride * w + dx
                    if 0 <= row < height and 0 <= column < width:
                        out[..., h, w, c] = x[..., row, column, c]
        return out

    @staticmethod
    def spread(g, table, shape, stride=1):
        """The transpose of `displace`: brings every number back to where it was."""
        out = np.zeros(shape, g.dtype)
        for h in range(g.shape[-3]):
            for w in range(g.shape[-2]):
                for c, (dy, dx) in enumerate(table):
                    row, column = stride * h + dy, stride * w + dx
                    if 0 <= row < shape[-3] and 0 <= column < shape[-2]:
                        out[..., row, column, c] += g[..., h, w, c]
        return out

    @staticmethod
    def table(channels, kernel_size, dilation=1):
        """The displacements of the paper: contiguous groups, the rest in place."""
        moves = []
        for row in range(kernel_size):
            for column in range(kernel_size):
                dy, dx = row - kernel_size // 2, column - kernel_size // 2
                moves += [(dilation * dy, dilation * dx)] * (channels // kernel_size**2)
        return moves + [(0, 0)] * (channels - len(moves))

    @classmethod
    def shift(cls, x, kernel_size=3, dilation=1, stride=1):
        """The shift of the paper."""
        return cls.displace(x, cls.table(x.shape[-1], kernel_size, dilation), stride)

    @staticmethod
    def conv(x, kernel, stride=1, groups=1):
        """A convolution `[K, K, in / groups, out]` or `[in, out]`, padded by K // 2."""
        kernel = kernel if kernel.ndim == 4 else kernel[None, None]
        size, half = len(kernel), len(kernel) // 2
        height, width = x.shape[1:3]
        x = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
        outs = []
        for inputs, kernels in zip(
            np.split(x, groups, -1), np.split(kernel, groups, -1), strict=True
        ):
            out = 0
            for i in range(size):
                for j in range(size):
                    tap = inputs[:, i : i + height : stride, j : j + width : stride]
                    out = out + np.einsum("bhwi,io->bhwo", tap, kernels[i, j])
            outs.append(out)
        return np.concatenate(outs, -1)

    @staticmethod
    def batch_norm(params, stats, x, train):
        """BatchNorm; running averages are of the mean and of the biased variance."""
        mean, var = stats["mean"], stats["var"]
        if train:
            pixels = x.reshape(-1, x.shape[-1])
            mean = pixels.sum(0) / len(pixels)
            var = ((pixels - mean) ** 2).sum(0) / len(pixels)
        y = (x - mean) / np.sqrt(var + EPSILON) * params["scale"] + params["bias"]
        return y, {
            "mean": MOMENTUM * stats["mean"] + (1 - MOMENTUM) * mean,
            "var": MOMENTUM * stats["var"] + (1 - MOMENTUM) * var,
        }

    @classmethod
    def conv_norm(cls, params, stats, x, train, stride=1, groups=1):
        """A convolution and BatchNorm."""
        y = cls.conv(x, params["conv"]["kernel"], stride, groups)
        y, norm = cls.batch_norm(params["norm"], stats["norm"], y, train)
        return y, {"norm": norm}

    @classmethod
    def shortcut(cls, params, stats, x, train, stride, new):
        """The input, or its 1x1 convolution and BatchNorm where there is one."""
        if "shortcut" not in params:
            return x
        y, new["shortcut"] = cls.conv_norm(
            params["shortcut"], stats["shortcut"], x, train, stride
        )
        return y

    @classmethod
    def shift_conv(cls, params, stats, x, train, stride=1, kernel_size=3, dilation=1):
        """The block of a CIFAR ShiftResNet (the authors' code), no ReLU at its end."""
        new = {}
        unit = params["expand"], stats["expand"]
        y, new["expand"] = cls.conv_norm(*unit, x, train)
        y = cls.shift(np.maximum(y, 0), kernel_size, dilation)
        unit = params["project"], stats["project"]
        y, new["project"] = cls.conv_norm(*unit, y, train, stride)
        return np.maximum(y, 0) + cls.shortcut(
            params, stats, x, train, stride, new
        ), new

    @classmethod
    def residual_block(cls, params, stats, x, train, stride=1):
        """The plain block of He et al., with a projection where the shape changes."""
        new = {}
        unit = params["first"], stats["first"]
        y, new["first"] = cls.conv_norm(*unit, x, train, stride)
        unit = params["second"], stats["second"]
        y, new["second"] = cls.conv_norm(*unit, np.maximum(y, 0), train)
        y = y + cls.shortcut(params, stats, x, train, stride, new)
        return np.maximum(y, 0), new

    @classmethod
    def depthwise_block(cls, params, stats, x, train, stride=1):
        """The depthwise block of the authors' code."""
        new = {}
        unit = params["expand"], stats["expand"]
        y, new["expand"] = cls.conv_norm(*unit, x, train)
        unit = params["depthwise"], stats["depthwise"]
        y = np.maximum(y, 0)
        y, new["depthwise"] = cls.conv_norm(*unit, y, train, groups=y.shape[-1])
        unit = params["project"], stats["project"]
        y, new["project"] = cls.conv_norm(*unit, y, train, stride)
        y = y + cls.shortcut(params, stats, x, train, stride, new)
        return np.maximum(y, 0), new

    @classmethod
    def csc(
        cls,
        params,
        stats,
        x,
        train,
        features,
        stride=1,
        kernel_size=3,
        dilation=1,
        shift_first=False,
        add=False,
    ):
        """Conv-shift-conv, whose stride is that of the second convolution."""
        new = {}
        y = cls.shift(x, kernel_size, dilation) if shift_first else x
        norm = params["expand_norm"], stats["expand_norm"]
        y, new["expand_norm"] = cls.batch_norm(*norm, y, train)
        y = cls.conv(np.maximum(y, 0), params["expand"]["kernel"])
        y = cls.shift(y, kernel_size, dilation)
        norm = params["project_norm"], stats["project_norm"]
        y, new["project_norm"] = cls.batch_norm(*norm, y, train)
        y = cls.conv(np.maximum(y, 0), params["project"]["kernel"], stride)
        if features == x.shape[-1] and stride == 1:
            return x + y, new
        mean = np.full((3, 3, 1, x.shape[-1]), 1 / 9)  # padding counts
        pooled = cls.conv(x, mean, stride, x.shape[-1])
        if not add:
            return np.concatenate([y, pooled], -1), new
        y[..., : x.shape[-1]] += pooled
        return y, new

    @classmethod
    def cifar_network(cls, block, params, stats, x, train):
        """Stem, three stages of blocks, mean over the pixels and the dense layer."""
        new, features = {}, {}
        y, new["stem"] = cls.conv_norm(params["stem"], stats["stem"], x, train)
        y = features["stem"] = np.maximum(y, 0)
        for name in sorted(key for key in params if key.startswith("stage")):
            stride = 2 if name in ("stage2_block01", "stage3_block01") else 1
            y, new[name] = block(params[name], stats[name], y, train, stride)
            features[name.split("_")[0]] = y
        y = features["pre_logits"] = y.mean((1, 2))
        return y @ params["head"]["kernel"] + params["head"]["bias"], features, new


# kernel_size, dilation, stride, shape. The names say what each is there for.
SHIFT_CASES = {
    "plain": (3, 1, 1, (2, 5, 6, 9)),
    "left_over_channels": (3, 1, 1, (2, 4, 5, 13)),
    "too_few_channels": (3, 1, 1, (2, 4, 5, 8)),
    "even": (2, 1, 1, (5, 4, 9)),
    "dilated": (3, 2, 1, (2, 7, 6, 18)),
    "strided": (3, 1, 2, (2, 5, 8, 9)),
    "strided_dilated_even": (4, 2, 3, (1, 2, 10, 11, 16)),
    "smaller_than_the_displacement": (5, 2, 1, (2, 3, 2, 25)),
    "one_pixel": (3, 1, 2, (2, 1, 1, 9)),
}


def numbers(rng, shape, dtype):
    """Random numbers that tell every place from its neighbours, of any dtype."""
    dtype = jnp.dtype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if jnp.issubdtype(dtype, jnp.integer):
        return rng.integers(0, 100, shape).astype(dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)
    return rng.normal(size=shape).astype(dtype)


def whole_numbers(rng, *shape):
    """float32 small enough that all sums of products here are exact."""
    return rng.integers(-9, 10, shape).astype(np.float32)


def assert_identical(actual, expected):
    """Asserts the same dtype, shape and bits."""
    actual = np.asarray(actual)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)
    assert actual.tobytes() == expected.tobytes()


@functools.partial(jax.jit, static_argnums=0)
def with_gradient(function, x, g):
    """Returns function(x) and the gradient of its product with g."""
    y, pull = jax.vjp(function, x)
    return y, pull(g)[0]


@functools.partial(jax.jit, static_argnums=0)
def train_and_evaluate(module, variables, x):
    """Returns the output and new statistics of training, and the evaluated output."""
    train = functools.partial(module.apply, train=True, mutable=["batch_stats"])
    return train(variables, x), module.apply(variables, x)


@contextlib.contextmanager
def few_optimizations(few):
    """Lets the compiler do little (these tests compile much and compute little)."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", few)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def quick():
    """Compiles in half the time."""
    with few_optimizations(True):
        yield


@pytest.fixture
def optimized(quick):
    """Compiles as users do, in a module that is otherwise `quick`."""
    with few_optimizations(False):
        yield


@pytest.fixture(scope="session")
def reference():
    """Plain NumPy for everything that the library computes."""
    return Reference


def random_variables(rng, module, *inputs):
    """Makes random variables for a module and its input.

    Unlike fresh ones they hide nothing: no scale is 1, no bias or mean 0. Params keep
    the size of activations near 1.
    """

    def leaf(path, shape):
        name = path[-1].key
        if name == "kernel":
            value = rng.normal(size=shape.shape) / np.sqrt(np.prod(shape.shape[:-1]))
        elif name in ("scale", "var"):
            value = rng.uniform(0.5, 1.5, shape.shape)
        else:
            value = rng.normal(size=shape.shape) / 2
        dtype = np.float64 if jax.config.jax_enable_x64 else shape.dtype
        return value.astype(dtype)

    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.fixture
def randomize(rng):
    """Returns `random_variables` with the generator of the test."""
    return functools.partial(random_variables, rng)


@pytest.fixture(scope="session")
def assert_trees_close():
    """Returns a comparison of two trees: the same names, and values within rtol.

    The tolerance of a leaf is relative to its own largest number, or to a thousandth of
    the tree's where that is more: numbers that are small by cancellation, as the
    gradient of what a later BatchNorm takes away, are not asked for more digits than
    the arithmetic can give.
    """

    def compare(actual, expected, rtol):
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(expected)]
        floor = max(np.abs(leaf).max(initial=0) for leaf in leaves) / 1000
        paths = jax.tree_util.tree_leaves_with_path(actual)
        for (path, a), b in zip(paths, leaves, strict=True):
            a = np.asarray(a, np.float64)
            scale = np.abs(b).max(initial=floor)
            where = jax.tree_util.keystr(path)
            np.testing.assert_allclose(a / scale, b / scale, 0, rtol, err_msg=where)

    return compare
