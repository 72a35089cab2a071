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
