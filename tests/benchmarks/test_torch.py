"""PyTorch's networks are the same networks."""

import jax
import numpy as np
import pytest

import shiftjax
from benchmarks.nets import REDUCTIONS, SHIFTNETS

torch = pytest.importorskip("torch", reason="PyTorch is no dependency")

from benchmarks import (  # noqa: E402 (need it)
    torch_modules,
    torch_programs,
    torch_style,
)
from benchmarks.jax_blocks import Block  # noqa: E402
from benchmarks.jax_nets import CSCNet  # noqa: E402


@pytest.mark.parametrize("expansion", [1, 3, 6, 9])
def test_sizes_of_the_cifar_networks(expansion):
    """PyTorch's count, and that of `summarize`, which is the paper's."""
    net = torch_modules.cifar_net("shift", 20, expansion)
    model = f"shiftresnet20_e{expansion}"
    assert torch_programs.trainable_count(net) == shiftjax.summarize(model).params
    reduction = REDUCTIONS[expansion]
    net = torch_modules.cifar_net("depthwise", 20, 1 / reduction)
    model = shiftjax.create_model("depthwise_resnet20", reduction=reduction)
    assert torch_programs.trainable_count(net) == shiftjax.summarize(model).params


@pytest.mark.parametrize(
    ("name", "params"), [("shiftnet_a", 4_188_680), ("shiftnet_b", 1_183_480)]
)
def test_sizes_of_the_shiftnets(name, params):
    """Counted by hand from the paper's table."""
    shape = SHIFTNETS[name]
    assert shiftjax.summarize(CSCNet(**shape), 224).params == params
    net = torch_modules.shift_net("shift", **shape)
    assert torch_programs.trainable_count(net) == params


def load(unit, variables, part):
    """Copies a convolution and its BatchNorm from `variables[...][part]`."""
    params, stats = (variables[kind][part] for kind in ("params", "batch_stats"))
    load_kernel(unit.conv, params["conv"]["kernel"])
    load_norm(unit.norm, params["norm"], stats["norm"])


def load_kernel(conv, kernel):
    kernel = kernel if kernel.ndim == 4 else kernel[None, None]
    conv.weight.data = torch.from_numpy(kernel.transpose(3, 2, 0, 1))


def load_norm(norm, params, stats):
    norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var = (
        torch.from_numpy(x)
        for x in (params["scale"], params["bias"], stats["mean"], stats["var"])
    )


def load_block(block, variables, names):
    units = [m for m in block.modules() if isinstance(m, torch_modules.TorchConvNorm)]
    if "shortcut" in variables["params"]:
        names = [*names, "shortcut"]
    for unit, part in zip(units, names, strict=True):
        load(unit, variables, part)


def of(variables, name):
    """The variables of a part of a network."""
    return {kind: tree[name] for kind, tree in variables.items()}


def random_variables(rng, model, images):
    """Numbers near 1 for scales and variances, else near 0."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)

    def draw(path, x):
        center = 1 if path[-1].key in ("scale", "var") else 0
        return (center + rng.uniform(-0.3, 0.3, x.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def assert_same_values(model, variables, net, images):
    """In evaluation and in training, up to rounding."""
    x = torch.from_numpy(images.transpose(0, 3, 1, 2))
    for train in (False, True):
        options = {"train": True, "mutable": ["batch_stats"]} if train else {}
        result = jax.jit(lambda v, x, o=options: model.apply(v, x, **o))
        wanted = result(variables, images)
        wanted = np.asarray(wanted[0] if train else wanted)
        with torch.no_grad():
            found = net.train(train)(x)
        found = (found.permute(0, 2, 3, 1) if found.ndim == 4 else found).numpy()
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * scale)


PARTS = {
    "shift": ("shiftresnet20_e3", ["expand", "project"]),
    "slices": ("shiftresnet20_e3", ["expand", "project"]),
    "depthwise": ("depthwise_resnet20", ["expand", "depthwise", "project"]),
    "dense": ("resnet20", ["first", "second"]),
}


@pytest.mark.parametrize("kind", PARTS)
def test_cifar_networks_are_the_same(rng, kind):
    name, parts = PARTS[kind]
    model = shiftjax.create_model(name, depth=8, implementation="reference")
    images = rng.normal(size=(4, 32, 32, 3)).astype(np.float32)
    variables = random_variables(rng, model, images)
    net = torch_modules.cifar_net(kind, 8, 3 if "shift" in name else 1)
    stem, _, *blocks, _, _, head = net.children()
    load(stem, variables, "stem")
    for stage, block in enumerate(blocks, 1):
        load_block(block, of(variables, f"stage{stage}_block01"), parts)
    head.weight.data = torch.from_numpy(variables["params"]["head"]["kernel"].T)
    head.bias.data = torch.from_numpy(variables["params"]["head"]["bias"])
    assert_same_values(model, variables, net, images)


def test_shiftnets_are_the_same(rng):
    shape = {"stem": 8, "groups": [[3, 16, [2, 2]], [5, 40, [3]]]}
    model = CSCNet(**shape)
    images = rng.normal(size=(4, 34, 30, 3)).astype(np.float32)
    variables = random_variables(rng, model, images)
    params, stats = variables["params"], variables["batch_stats"]
    net = torch_modules.shift_net("shift", **shape)
    stem, *modules, norm, _, _, _, head = net.children()
    load_kernel(stem, params["Conv_0"]["kernel"])
    for index, module in enumerate(modules):
        part, of_part = params[f"CSC_{index}"], stats[f"CSC_{index}"]
        load_norm(module.norm, part["expand_norm"], of_part["expand_norm"])
        load_kernel(module.expand, part["expand"]["kernel"])
        load_norm(module.middle.norm, part["project_norm"], of_part["project_norm"])
        load_kernel(module.project, part["project"]["kernel"])
    load_norm(norm, params["norm"], stats["norm"])
    head.weight.data = torch.from_numpy(params["Dense_0"]["kernel"].T)
    head.bias.data = torch.from_numpy(params["Dense_0"]["bias"])
    assert_same_values(model, variables, net, images)


@pytest.mark.parametrize("middle", ["shift", "slices", "depthwise", "nothing", "dense"])
@pytest.mark.parametrize("strides", [1, 2])
def test_blocks_are_the_same(rng, middle, strides):
    kind = "shift" if middle == "slices" else middle
    sizes = {"expansion": 3, "kernel_size": 3}
    model = Block(8 * strides, middle=kind, strides=strides, **sizes)
    images = rng.normal(size=(2, 7, 6, 8)).astype(np.float32)
    variables = random_variables(rng, model, images)
    if middle == "dense":
        net = torch_modules.TorchDenseBlock(8, 8 * strides, 3, strides)
        parts = ["dense"]
    else:
        net = torch_modules.TorchBlock(middle, 8, 8 * strides, strides, **sizes)
        parts = ["expand", "project"]
    if middle == "depthwise":
        load_kernel(net.middle, variables["params"]["depthwise"])
    load_block(net, variables, parts)
    assert_same_values(model, variables, net, images)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("lowering", ["one-hot", "slices", "fused"])
def test_shifts_are_the_shift(rng, kernel_size, lowering):
    """Both move numbers, so nothing is rounded."""
    x = rng.standard_normal((2, 7, 6, 55)).astype(np.float32)
    images = torch.from_numpy(x).permute(0, 3, 1, 2)
    if lowering == "slices":
        y = torch_programs.slices(images, kernel_size)
    elif lowering == "fused":
        y = torch_modules.Slices(55, kernel_size)(images)
    else:
        kernel = torch_modules.one_hot(55, kernel_size)
        y = torch.nn.functional.conv2d(
            images, kernel, padding=kernel_size // 2, groups=55
        )
    moved = np.asarray(shiftjax.shift(x, kernel_size))
    np.testing.assert_array_equal(y.permute(0, 2, 3, 1).numpy(), moved)


@pytest.mark.parametrize("family", ["cifar", "shiftnet"])
def test_folding_changes_nothing(family):
    """Up to rounding in float64, of some twenty layers."""
    options = {"depth": 20, "expansion": 3}
    if family == "shiftnet":
        options = {"stem": 8, "groups": [[3, 16, [2, 2]], [5, 40, [3]]]}
    torch.manual_seed(0)
    net = torch_programs.NETS[family](kind="shift", **options).double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    net.train()(x)  # running statistics other than 0 and 1
    before = net.eval()(x).detach()
    after = torch_modules.fold_norms(net)(x).detach()
    units = [m for m in net.modules() if isinstance(m, torch_modules.TorchConvNorm)]
    assert all(isinstance(unit.norm, torch.nn.Identity) for unit in units)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["training_step", "inference", "block", "operation"])
def test_programs_run(kind, dtype):
    if kind in ("training_step", "inference"):
        options = {"kind": "shift", "depth": 20, "expansion": 1, "batch_size": 2}
        program = getattr(torch_programs, f"torch_{kind}")(
            "cifar", dtype=dtype, **options
        )
    else:
        more = {"expansion": 3, "kernel_size": 3} if kind == "block" else {}
        program = getattr(torch_programs, f"torch_{kind}")(
            "shift", (2, 4, 4, 18), dtype=dtype, backward=True, **more
        )
    program.wait(program.call())


@pytest.mark.parametrize("middle", ["shift", "slices", "depthwise", "dense", "nothing"])
@pytest.mark.parametrize("backward", [False, True])
def test_blocks_run_on_several_inputs(middle, backward):
    """With stride 2 the output has half the side and twice the channels."""
    program = torch_programs.torch_block(
        middle, (2, 6, 6, 16), 3, 3, "float32", backward, strides=2, copies=3
    )
    results = program.call()
    assert program.steps == len(results) == 3
    shapes = {tuple((each[0] if backward else each).shape) for each in results}
    assert shapes == {(2, 16, 6, 6) if backward else (2, 32, 3, 3)}


@pytest.mark.parametrize("name", ["stylizer", "shift_stylizer"])
def test_stylizers_are_the_same_network(rng, name):
    """The image, with all params at random."""
    model = shiftjax.create_model(name, blocks=1, implementation="reference")
    images = rng.normal(size=(1, 24, 20, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape) / 10, shapes)
    net = torch_style.TorchStyleNet(shifted=model.shifted, blocks=1)
    net.load(variables["params"])
    with torch.inference_mode():
        actual = net(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    expected = jax.jit(model.apply)(variables, images)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        actual.transpose(0, 2, 3, 1), expected, rtol=0, atol=1e-4 * scale
    )
