"""Programs of PyTorch, in the fastest implementation known there.

Tensors are channels_last. On a GPU, float32 uses TF32, as in JAX, bfloat16 uses
autocast in training, and cuDNN chooses its algorithms by timing them. In inference,
every BatchNorm that follows a convolution is folded into it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

import shiftjax
from benchmarks.cases import Program
from benchmarks.torch_modules import (
    TorchBlock,
    TorchDenseBlock,
    cifar_net,
    fold_norms,
    one_hot,
    shift_net,
)

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
if CUDA:
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")

NETS: Mapping[str, Callable[..., nn.Module]] = {
    "cifar": cifar_net,
    "shiftnet": shift_net,
}


def make_torch_program(
    call: Callable[[], Any], *, queued: bool = True, steps: int = 1, **facts: int
) -> Program:
    """Makes a program, and measures the memory of a call on a GPU."""
    if not CUDA:
        return Program(call, lambda _: None, steps=steps, facts=facts)
    call()  # cuDNN tries its algorithms, and gradients are allocated
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return Program(
        call,
        lambda _: torch.cuda.synchronize(),
        steps=steps,
        queued=queued,
        memory_bytes=torch.cuda.max_memory_allocated() - before if steps == 1 else None,
        peak_bytes=torch.cuda.max_memory_allocated,
        facts=facts,
    )


def on_copies(call: Callable[..., Any], inputs: Sequence, copies: int) -> Program:
    """Makes a program that calls a function on several copies of its inputs.

    On a GPU the launches of all calls are one graph, to avoid the overhead of Python.
    """
    groups = [[x.clone() for x in inputs] for _ in range(copies)]

    def run() -> list[Any]:
        return [call(*group) for group in groups]

    if not CUDA:
        return make_torch_program(run, steps=copies)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return make_torch_program(graph.replay, steps=copies)


def random_images(*shape: int, dtype: str = "float32") -> torch.Tensor:
    """Returns normally distributed numbers `[batch, channels, height, width]`."""
    torch.manual_seed(0)
    x = torch.randn(*shape, device=DEVICE, dtype=getattr(torch, dtype))
    return x.to(memory_format=torch.channels_last)


def to_device(net: nn.Module) -> nn.Module:
    """Puts a network on the device, in channels_last."""
    net = net.to(DEVICE)
    return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _compile_network(net: nn.Module) -> Any:
    """Compiles a network; on a GPU, the launches of a step are one graph."""
    return torch.compile(net, mode="reduce-overhead" if CUDA else None)


def trainable_count(net: nn.Module) -> int:
    """Returns the number of parameters, without the one-hot kernels."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def torch_training_step(
    family: str,
    batch_size: int,
    dtype: str,
    image_size: int = 32,
    compile: bool = False,  # noqa: A002 (as torch has it)
    **options: Any,
) -> Program:
    """Makes a step of SGD with momentum.

    Args:
      family: one of `NETS`.
      batch_size: images in a step.
      dtype: float32, or bfloat16 by autocast.
      image_size: side of the images.
      compile: if True, use torch.compile.
      **options: options of the network.
    """
    net = to_device(NETS[family](**options))
    x = random_images(batch_size, 3, image_size, image_size)
    labels = torch.randint(0, 10, (batch_size,), device=DEVICE)
    forward = _compile_network(net) if compile else net
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        trained, 0.01, momentum=0.9, weight_decay=5e-4, fused=True
    )

    def call() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = nn.functional.cross_entropy(forward(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    return make_torch_program(call, params=trainable_count(net))


def torch_inference(
    family: str,
    batch_size: int,
    dtype: str,
    image_size: int = 32,
    compile: bool = False,  # noqa: A002 (as torch has it)
    **options: Any,
) -> Program:
    """Makes inference by a folded network; for arguments see `torch_training_step`."""
    net = NETS[family](**options)
    params = trainable_count(net)
    net = to_device(fold_norms(net)).to(getattr(torch, dtype))
    x = random_images(batch_size, 3, image_size, image_size, dtype=dtype)
    forward = _compile_network(net) if compile else net

    @torch.inference_mode()
    def call() -> torch.Tensor:
        return forward(x)

    return make_torch_program(call, queued=batch_size > 1, params=params)


def slices(x: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """Shifts by copying a slice per group of channels."""
    moves = shiftjax.displacements(x.shape[1], kernel_size).tolist()
    starts = [c for c in range(len(moves)) if not c or moves[c] != moves[c - 1]]
    out = torch.zeros_like(x)
    for start, end in zip(starts, [*starts[1:], len(moves)], strict=True):
        ends = zip(moves[start], x.shape[-2:], strict=True)
        read = [slice(max(d, 0), size + min(d, 0)) for d, size in ends]
        ends = zip(moves[start], x.shape[-2:], strict=True)
        write = [slice(max(-d, 0), size - max(d, 0)) for d, size in ends]
        out[:, start:end, write[0], write[1]] = x[:, start:end, read[0], read[1]]
    return out


def torch_operation(
    kind: str,
    shape: Sequence[int],
    dtype: str,
    backward: bool,
    kernel_size: int = 3,
    lowering: str = "one-hot",
    copies: int = 1,
) -> Program:
    """Makes an operation on one tensor, as `benchmarks.jax_operations.jax_operation`.

    Args:
      kind: "copy" (of two tensors with `backward`), "shift", "depthwise" or "dense".
      shape: `[batch, height, width, channels]` of input and result.
      dtype: dtype of both.
      backward: if True, also compute gradients of input and kernel.
      kernel_size: side of the window.
      lowering: lowering of the shift: "one-hot", a depthwise convolution; or "slices",
        copies of slices, for which tensors are not channels_last.
      copies: number of inputs of a call.
    """
    batch, height, width, channels = shape
    x = random_images(batch, channels, height, width, dtype=dtype)
    conv = functools.partial(nn.functional.conv2d, padding=kernel_size // 2)
    inputs = [x]
    if kind == "copy":
        tensors = [x, x.clone()] if backward else [x]
        clone = of(lambda *each: [t.clone() for t in each])
        return on_copies(clone, tensors, copies)
    if kind == "shift" and lowering == "slices":
        inputs = [x.contiguous(memory_format=torch.contiguous_format)]
        function: Callable = functools.partial(slices, kernel_size=kernel_size)
    elif kind == "shift":
        kernel = one_hot(channels, kernel_size).to(x)
        function = functools.partial(conv, weight=kernel, groups=channels)
    else:
        groups = channels if kind == "depthwise" else 1
        kernel = torch.randn(channels, channels // groups, kernel_size, kernel_size)
        inputs.append(kernel.to(x))
        function = functools.partial(conv, groups=groups)
    if not backward:
        return on_copies(of(function), inputs, copies)
    return on_copies(differentiated(function), with_cotangent(function, inputs), copies)


def of(function: Callable) -> Callable[..., Any]:
    """Returns a function without gradients."""
    return torch.inference_mode()(function)


def differentiated(
    function: Callable, params: Sequence[Any] = ()
) -> Callable[..., Any]:
    """Returns a function with the gradients of inputs and parameters.

    Its last argument is the gradient of the result.
    """

    def call(*inputs: torch.Tensor) -> Any:
        *given, g = inputs
        y = function(*[x.requires_grad_() for x in given])
        return torch.autograd.grad(y, [*given, *params], g)

    return call


def with_cotangent(
    function: Callable, inputs: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Returns the inputs, and a gradient of the result of a function of them."""
    with torch.no_grad():
        return [*inputs, torch.ones_like(function(*inputs))]


def torch_block(
    middle: str,
    shape: Sequence[int],
    expansion: int,
    kernel_size: int,
    dtype: str,
    backward: bool,
    strides: int = 1,
    copies: int = 1,
    compile: bool = False,  # noqa: A002 (as torch has it)
) -> Program:
    """Makes a block, as `benchmarks.jax_blocks.jax_block`.

    Args:
      middle: "shift", "slices", "depthwise", "dense" or "nothing".
      shape: `[batch, height, width, channels]` of the input.
      expansion: E.
      kernel_size: side of the window.
      dtype: dtype of the computation.
      backward: True for training with gradients; False for evaluation, folded.
      strides: strides of the block; the output has `strides * channels` features.
      copies: number of inputs of a call.
      compile: if True, use torch.compile.
    """
    batch, height, width, channels = shape
    features = strides * channels
    if middle == "dense":
        net: nn.Module = TorchDenseBlock(channels, features, kernel_size, strides)
    else:
        net = TorchBlock(middle, channels, features, strides, expansion, kernel_size)
    net = to_device(net if backward else fold_norms(net))
    if not backward:
        net = net.to(getattr(torch, dtype))
    # Launches are recorded by `on_copies`.
    forward = torch.compile(net) if compile else net
    x = random_images(batch, channels, height, width, dtype=dtype)
    if not backward:
        return on_copies(of(forward), [x], copies)
    # A graph must not reuse the casts of another call.
    cast = torch.autocast(
        DEVICE, torch.bfloat16, enabled=dtype == "bfloat16", cache_enabled=False
    )
    params = [p for p in net.parameters() if p.requires_grad]
    inputs = with_cotangent(cast(net), [x])
    return on_copies(differentiated(cast(forward), params), inputs, copies)
