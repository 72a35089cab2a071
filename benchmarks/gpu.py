"""What the shift nets cost on a GPU: `python -m benchmarks.gpu`.

Measures, all cases of a table in turns: a copy of memory; the shift alone in every
lowering; the shift block in every form, forward and backward, against its floor, and in
PyTorch if it is there; whole training steps of ShiftResNet-20, as `python -m train`
does them. Every case is warm, runs on several inputs so that no cache holds them, and
takes the median of its turns. Prints tables, and writes benchmarks/results/gpu.json
after each. A part stops when its share of the minutes is over, and says so.

The floor of a block is the larger of its bytes over the bandwidth of the copy measured
here, and of its products over `--tflops`.
"""

import argparse
import functools
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch is beside

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_cases import BLOCKS, LOWERINGS, SIZES, Block, block, middles, shift
from benchmarks.gpu_timing import Cases, Report, Run, in_turns

RESULTS = Path(__file__).parent / "results" / "gpu.json"
TORCH = importlib.util.find_spec("torch") is not None
PARTS = {"copy": 0.5, "shift": 1, "block": 4.5, "training": 2}  # of 8 minutes
COLD = 200e6  # bytes that no cache holds
MOST_COPIES = 4  # each of which is compiled
FIRST = ("plain", "narrow, select", "kernel")  # then PyTorch, then the other forms
DEFAULT_BLOCKS = (  # each takes a minute or two, most of it the compilers'
    "1024 x 32 x 32 x 16, E 3",
    "128 x 32 x 32 x 16, E 3",
    "128 x 56 x 56 x 64, E 4, K 5",
)
SMALL = {"2 x 8 x 8 x 16, E 3": (2, 8, 16, 3, 3, 1)}


def random(shapes: Any, seed: int) -> Any:
    """Returns random numbers of some shapes."""
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    arrays = [jnp.asarray(rng.standard_normal(s.shape), s.dtype) for s in leaves]
    return jax.tree.unflatten(tree, arrays)


def on_copies(function: Callable[..., Any], shapes: tuple, copies: int) -> Run:
    """Returns a program that calls a function on each of some arguments.

    One dispatch for all, so that Python is not what is measured, and arguments that do
    not fit into a cache together.
    """
    groups = [random(shapes, seed) for seed in range(copies)]

    def all_of_them(groups: list[Any]) -> list[Any]:
        return [function(*group) for group in groups]

    compiled = jax.jit(all_of_them).lower(groups).compile()
    return lambda: compiled(groups)


def copies_of(shapes: Any, quick: bool) -> int:
    """Returns how many arguments fill more than the caches."""
    size = sum(s.size * s.dtype.itemsize for s in jax.tree.leaves(shapes))
    return 2 if quick else min(max(int(COLD // size), 2), MOST_COPIES)


def measure_copy(report: Report, options: Any, deadline: float) -> float:
    """Measures the bandwidth of a copy, in bytes read and written a second."""
    size = 2**16 if options.quick else 2**29  # of bfloat16
    function, shapes = shift("copy", (1, 1, size), 1, False)
    build = functools.partial(on_copies, function, shapes, 2)
    measured = in_turns({"copy": build}, {"copy": 2}, options, deadline, report.say)
    bandwidth = 4 * size / statistics.median(measured["copy"][0])
    report.data["bandwidth"] = bandwidth
    report.say(f"a copy moves {bandwidth / 1e12:.2f} TB/s")
    report.add("copy of memory", measured, 4 * size / options.bandwidth, "the sheet's")
    return bandwidth


def measure_shift(report: Report, options: Any, deadline: float) -> None:
    """Times the shift alone in every lowering, beside a copy of the same bytes."""
    sizes = [(1024, 32, 32, 48, 3), (1024, 32, 32, 144, 3), (128, 56, 56, 256, 5)]
    for *shape, kernel_size in [(2, 8, 8, 48, 3)] if options.quick else sizes:
        for backward in (False, True):
            cases: Cases = {}
            copies = 2
            for name in ("copy", *LOWERINGS):
                case = shift(name, tuple(shape), kernel_size, backward)
                copies = copies_of(case[1], options.quick)
                cases[name] = functools.partial(on_copies, *case, copies)
            calls = dict.fromkeys(cases, copies)
            title = f"shift {shape}, K {kernel_size}, forward{' + backward' * backward}"
            measured = in_turns(cases, calls, options, deadline, report.say)
            report.add(title, measured, "copy", "copy")


def measure_blocks(
    report: Report, options: Any, deadline: float, bandwidth: float
) -> None:
    """Times the block in every form, against its floor."""
    blocks = SMALL if options.quick else {n: BLOCKS[n] for n in options.blocks}
    forms = middles(SIZES)
    if options.quick:
        forms = {name: forms[name] for name in ("plain", "narrow, folded", "kernel")}
    start, last = time.perf_counter(), len(blocks)
    for index, (title, numbers) in enumerate(blocks.items(), 1):
        shapes = Block(*numbers)
        share = start + (deadline - start) * index / last
        for backward in (True, False) if options.forward else (True,):
            cases: Cases = {}
            copies = 2
            for name, middle in forms.items():
                case = block(shapes, middle, backward)
                copies = copies_of(case[1], options.quick)
                cases[name] = functools.partial(on_copies, *case, copies)
            first = {name: cases[name] for name in FIRST if name in cases}
            cases = first | torch_blocks(shapes, backward, copies) | cases
            calls = dict.fromkeys(cases, copies)
            moved = shapes.floor_bytes(backward) / bandwidth
            floor = max(moved, shapes.flops(backward) / options.tflops / 1e12)
            measured = in_turns(cases, calls, options, share, report.say)
            what = f"block {title}, forward{' + backward' * backward}"
            name = f"floor {1e6 * floor:.1f} us"
            report.add(what, measured, floor, name)


def torch_blocks(shapes: Block, backward: bool, copies: int) -> Cases:
    """PyTorch's forms of the block, its better candidates first."""
    if not TORCH:
        return {}
    from benchmarks import gpu_torch

    if not gpu_torch.torch.cuda.is_available():
        return {}  # minutes of compiling for a CPU
    return {
        f"PyTorch {'compiled' if compiled else 'eager'}, {form}": functools.partial(
            gpu_torch.block, shapes, form, compiled, backward, copies
        )
        for compiled in (True, False)
        for form in gpu_torch.FORMS
    }


def measure_training(report: Report, options: Any, deadline: float) -> None:
    """Times whole training steps, ours as the trainer does them."""
    steps = 2 if options.quick else 20
    batch_sizes = (8,) if options.quick else (1024, 128)
    for batch_size in batch_sizes:
        for expansion in (3,) if options.quick else (3, 9):
            cases: Cases = {}
            for form in ("plain",) if options.quick else ("plain", "kernel"):
                cases[f"ours, {form}"] = functools.partial(
                    training_step,
                    f"shiftresnet20_e{expansion}",
                    batch_size,
                    steps,
                    form=form,
                )
            if not options.quick:
                cases["Flax ResNet-20"] = functools.partial(
                    training_step, "resnet20", batch_size, steps, form="plain"
                )
            calls = dict.fromkeys(cases, steps)
            if TORCH and not options.quick:
                cases |= torch_steps(expansion, batch_size)
            title = f"training step, ShiftResNet-20, E {expansion}, {batch_size} images"
            measured = in_turns(cases, calls, options, deadline, report.say)
            report.add(title, measured, "ours, plain", "ours, plain")


def torch_steps(expansion: int, batch_size: int) -> Cases:
    """PyTorch's training steps."""
    from benchmarks import gpu_torch

    step = gpu_torch.training_step
    cases = {
        f"PyTorch compiled, {form}": functools.partial(
            step, expansion, form, batch_size, True
        )
        for form in gpu_torch.FORMS
    }
    cases["PyTorch eager, depthwise"] = functools.partial(
        step, expansion, "depthwise", batch_size, False
    )
    cases["PyTorch compiled, ResNet-20"] = functools.partial(
        step, None, "", batch_size, True
    )
    return cases


def training_step(model: str, batch_size: int, steps: int, **overrides: Any) -> Run:
    """Returns a function that does several steps of `python -m train cifar10`."""
    import shiftjax
    from train import experiments
    from train.data.image_set import ImageSet
    from train.data.resident import Resident
    from train.data.stream import Order, items
    from train.optimizer import learning_rate, make_optimizer
    from train.parallel import AXIS, Replicas
    from train.state import create_state
    from train.steps import Trainer
    from train.tasks.classification import Classification

    config = experiments.load("cifar10")
    rng = np.random.default_rng(0)
    count = steps * batch_size
    images = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    labels = rng.integers(0, 10, count).astype(np.int32)
    replicas = Replicas.local()
    network = shiftjax.create_model(
        model, axis_name=AXIS, dtype=jnp.bfloat16, **overrides
    )
    data = config.data
    task = Classification(network, 10, data.mean, data.std, config.augment)
    optimizer = make_optimizer(
        config.optimizer, learning_rate(config.schedule, 10_000, 400)
    )
    program = Trainer(task, optimizer).train_steps
    step = replicas.parallelize(program, donate_state=True)
    examples = ImageSet(images, labels, tuple(map(str, range(10))))
    data = replicas.replicate(Resident.of(examples))
    state = replicas.replicate(create_state(network, optimizer, 0, (32, 32, 3)))
    order = Order(count, batch_size, 0)
    indices = np.stack([order.indices(i) for i in range(steps)])
    batches = replicas.split(items(indices, None, steps))
    compiled = step.lower(state, data, batches, np.int32(steps)).compile()
    box = [state]

    def run() -> Any:
        box[0], sums = compiled(box[0], data, batches, np.int32(steps))
        return sums

    return run


def parse(arguments: Iterable[str] | None = None) -> Any:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--parts", nargs="*", choices=PARTS, default=[*PARTS], help="what to measure")
    add("--blocks", nargs="*", choices=BLOCKS, default=DEFAULT_BLOCKS, help="which")
    add("--forward", action="store_true", help="blocks also forward alone")
    add("--minutes", type=float, default=8, help="for all parts")
    add("--rounds", type=int, default=5, help="turns of each case")
    add("--seconds", type=float, default=0.02, help="of a turn, at least")
    add("--bandwidth", type=float, default=4.3e12, help="a copy should move, bytes/s")
    add("--tflops", type=float, default=790, help="of a large bfloat16 product")
    add("--quick", action="store_true", help="tiny shapes, to test this program")
    add("--traceback", action="store_true", help="of each case that fails")
    add("--out", type=Path, default=RESULTS, help="the file to write")
    return parser.parse_args(None if arguments is None else list(arguments))


def main(arguments: Iterable[str] | None = None) -> int:
    """Measures all parts."""
    options = parse(arguments)
    report, bandwidth = Report(options), options.bandwidth
    total = sum(PARTS[part] for part in options.parts)
    end = report.start
    for part in options.parts:
        end += 60 * options.minutes * PARTS[part] / total
        if part == "copy":
            bandwidth = measure_copy(report, options, end)
        elif part == "shift":
            measure_shift(report, options, end)
        elif part == "block":
            measure_blocks(report, options, end, bandwidth)
        else:
            measure_training(report, options, end)
    return 0


if __name__ == "__main__":
    sys.exit(main())
