"""SGD and Muon against NumPy's loops; learning rates at points computed by hand."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from shiftjax.errors import InputError
from train.config import Optimizer, Schedule
from train.optimizer import check_boundaries, learning_rate, make_optimizer

# --- the update ---------------------------------------------------------------------

RATES = [0.005, 0.01, 0.002, 0.004, 0.001, 0.003]


def problem() -> tuple[dict, np.ndarray, np.ndarray]:
    """Params, inputs and labels of a least-squares problem."""
    rng = np.random.default_rng(0)
    params = {
        "dense": {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)},
        "norm": {"scale": rng.normal(size=3)},
    }
    return params, rng.normal(size=(8, 4)), rng.normal(size=(8, 3))


def gradient(params: dict, x: np.ndarray, y: np.ndarray) -> dict:
    """Differentiates the sum of squares of `(x kernel + bias) * scale - y` by hand."""
    scale = params["norm"]["scale"]
    hidden = x @ params["dense"]["kernel"] + params["dense"]["bias"]
    error = 2 * (hidden * scale - y)
    return {
        "dense": {"kernel": x.T @ (error * scale), "bias": (error * scale).sum(0)},
        "norm": {"scale": (error * hidden).sum(0)},
    }


def torch_sgd(options: Optimizer) -> list[dict]:
    """The params after each step, by the loop in the documentation of torch.optim.SGD.

    With clip_grad_norm_ before it. https://docs.pytorch.org/docs/stable/generated/
    torch.optim.SGD.html
    """
    params, x, y = problem()
    buffers, history = {}, []
    for rate in RATES:
        gradients = gradient(params, x, y)
        flat = [g for group in gradients.values() for g in group.values()]
        norm = math.sqrt(sum((g**2).sum() for g in flat))
        shrink = 1.0
        if options.clip_norm is not None:
            shrink = min(1.0, options.clip_norm / norm)
        new = {}
        for name, group in params.items():
            for key, p in group.items():
                g = shrink * gradients[name][key]
                if options.decay == "all" or key == "kernel":
                    g = g + options.weight_decay * p
                if (name, key) in buffers:
                    b = options.momentum * buffers[name, key] + g
                else:
                    b = g
                buffers[name, key] = b
                step = g + options.momentum * b if options.nesterov else b
                new.setdefault(name, {})[key] = p - rate * step
        params = new
        history.append(params)
    return history


@pytest.mark.parametrize(
    "options",
    [
        Optimizer(momentum=0.0, weight_decay=0.0),
        Optimizer(momentum=0.9, weight_decay=0.0),
        Optimizer(momentum=0.9, nesterov=True, weight_decay=0.0),
        Optimizer(momentum=0.5, weight_decay=0.1),
        Optimizer(momentum=0.5, weight_decay=0.1, decay="kernels"),
        Optimizer(momentum=0.5, weight_decay=0.1, clip_norm=3.0),
        Optimizer(momentum=0.5, weight_decay=0.0, clip_norm=1e9),
        Optimizer("sgd", 0.9, True, 0.2, "kernels", 5.0),
    ],
    ids=str,
)
def test_updates_are_those_of_pytorch(options):
    """In float64: the formulas agree to its rounding, amplified by six steps."""
    with jax.enable_x64(True):
        params, x, y = problem()
        params = jax.tree.map(jnp.asarray, params)
        optimizer = make_optimizer(options, lambda step: jnp.asarray(RATES)[step])
        state = optimizer.init(params)
        for wanted in torch_sgd(options):
            gradients = gradient(jax.tree.map(np.asarray, params), x, y)
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11),
                params,
                wanted,
            )


def test_the_options_matter():
    """Else the comparison above could be of an option that does nothing."""
    one = Optimizer(momentum=0.5, weight_decay=0.1, clip_norm=3.0)
    others = [
        Optimizer(momentum=0.4, weight_decay=0.1, clip_norm=3.0),
        Optimizer(momentum=0.5, weight_decay=0.1, clip_norm=3.0, nesterov=True),
        Optimizer(momentum=0.5, weight_decay=0.2, clip_norm=3.0),
        Optimizer(momentum=0.5, weight_decay=0.1, clip_norm=3.0, decay="kernels"),
        Optimizer(momentum=0.5, weight_decay=0.1, clip_norm=2.0),
        Optimizer(momentum=0.5, weight_decay=0.1),
    ]
    ends = [torch_sgd(options)[-1]["norm"]["scale"] for options in [one, *others]]
    assert all(np.abs(end - ends[0]).max() > 1e-3 for end in ends[1:])


def test_only_kernels_are_decayed_when_asked():
    """With no gradient, what is decayed shrinks by rate * decay: 1 - 0.5 * 0.2."""
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 2, 4))},
        "dense": {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)},
        "norm": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    left = {}
    for decay in ("all", "kernels"):
        options = Optimizer(weight_decay=0.2, decay=decay)
        optimizer = make_optimizer(options, lambda _: 0.5)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        updated = optax.apply_updates(params, updates)
        left[decay] = jax.tree.map(lambda x: round(float(x.mean()), 4), updated)
    assert set(jax.tree.leaves(left["all"])) == {0.9}
    assert left["kernels"] == {
        "conv": {"kernel": 0.9},
        "dense": {"kernel": 0.9, "bias": 1.0},
        "norm": {"scale": 1.0, "bias": 1.0},
    }


# --- Muon ---------------------------------------------------------------------------


def orthogonalized(matrix: np.ndarray) -> np.ndarray:
    """Five Newton-Schulz steps, as in https://kellerjordan.github.io/posts/muon/."""
    rows, columns = matrix.shape
    x = matrix.T if rows > columns else matrix
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.T if rows > columns else x


def numpy_muon(kernel: np.ndarray, gradients: list[np.ndarray], options: Optimizer):
    """The kernel after each step, in the order [in, out]."""
    beta, average, history = options.momentum, np.zeros_like(kernel), []
    for step, (gradient, rate) in enumerate(zip(gradients, RATES, strict=True), 1):
        average = beta * average + (1 - beta) * gradient
        direction = average
        if options.nesterov:  # the next average but one, were the gradient to stay
            ahead = average / (1 - beta ** (step + 1))
            direction = beta * ahead + (1 - beta) * gradient / (1 - beta**step)
        wide = max(1, kernel.shape[1] / kernel.shape[0]) ** 0.5
        change = wide * orthogonalized(direction) + options.muon_decay * kernel
        kernel = kernel - options.muon_rate * rate * change
        history.append(kernel)
    return history


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (3, 3, 2, 5)])
def test_muon_is_that_of_its_author_for_hidden_kernels(shape, nesterov):
    """In float64; a kernel of 3x3 is the matrix of its 18 inputs and 5 outputs."""
    options = Optimizer(
        "muon", 0.8, nesterov, weight_decay=0.0, muon_rate=0.4, muon_decay=0.3
    )
    rng = np.random.default_rng(0)
    start, *gradients = rng.normal(size=(7, *shape))
    flat = [g.reshape(-1, shape[-1]) for g in gradients]
    with jax.enable_x64(True):
        optimizer = make_optimizer(options, lambda step: jnp.asarray(RATES)[step])
        params = {"stage1": {"kernel": jnp.asarray(start)}}
        state = optimizer.init(params)
        wanted = numpy_muon(start.reshape(-1, shape[-1]), flat, options)
        for gradient, kernel in zip(gradients, wanted, strict=True):
            given = {"stage1": {"kernel": jnp.asarray(gradient)}}
            updates, state = optimizer.update(given, state, params)
            params = optax.apply_updates(params, updates)
            # Optax adds 1e-8 to the norm, and the iteration amplifies it.
            np.testing.assert_allclose(
                params["stage1"]["kernel"].reshape(kernel.shape),
                kernel,
                rtol=1e-7,
                atol=1e-8,
            )


def test_beside_muon_other_parameters_move_as_with_sgd():
    """The first and the last layer, depthwise kernels, scales and biases."""
    rng = np.random.default_rng(0)
    shapes = {
        "stem": {"conv": {"kernel": (3, 3, 3, 4)}},
        "stage1": {"conv": {"kernel": (4, 6)}, "norm": {"scale": (6,), "bias": (6,)}},
        "stage2": {"depthwise": {"kernel": (3, 3, 1, 6)}},
        "head": {"kernel": (6, 2), "bias": (2,)},
    }
    draw = functools.partial(
        jax.tree.map, lambda shape: rng.normal(size=shape), is_leaf=is_shape
    )
    params, gradient = draw(shapes), draw(shapes)
    options = Optimizer("muon", 0.9, True, 0.1, "kernels", muon_rate=0.4)
    sgd = make_optimizer(dataclasses.replace(options, kind="sgd"), lambda step: 0.5)
    muon = make_optimizer(options, lambda step: 0.5)
    expected, _ = sgd.update(gradient, sgd.init(params), params)
    actual, _ = muon.update(gradient, muon.init(params), params)
    expected, actual = (flatten_dict(tree, sep="/") for tree in (expected, actual))
    differing = {p for p in actual if not np.array_equal(actual[p], expected[p])}
    assert differing == {"stage1/conv/kernel"}


def is_shape(node: object) -> bool:
    return isinstance(node, tuple)


# --- the learning rate --------------------------------------------------------------


def check(schedule: Schedule, total: int, epoch: float, points: dict[int, float]):
    rate = jax.jit(learning_rate(schedule, total, epoch))
    received = {step: float(rate(step)) for step in points}
    # Float32, and a cosine near its end is a difference of nearly equal numbers.
    assert received == pytest.approx(points, rel=1e-5, abs=1e-7)


def test_the_papers_steps_at_their_boundaries():
    """CIFAR in batches of 125: epoch 82 ends with step 32800, epoch 124 with 49600."""
    schedule = Schedule("steps", 0.1, boundaries=(82, 124), factor=0.1)
    points = {0: 0.1, 32799: 0.1, 32800: 0.01, 49599: 0.01, 49600: 0.001, 63999: 0.001}
    check(schedule, 64000, 400.0, points)


def test_boundaries_are_rounded_to_steps():
    """In batches of 128 an epoch has 390.625 steps: 82 have 32031.25, 124 48437.5."""
    schedule = Schedule("steps", 0.1, boundaries=(82, 124), factor=0.1)
    points = {32030: 0.1, 32031: 0.01, 48436: 0.01, 48438: 0.001, 62499: 0.001}
    check(schedule, 62500, 50000 / 128, points)


def test_boundaries_count_from_the_start_also_after_a_warmup():
    schedule = Schedule("steps", 0.4, 1.0, boundaries=(2, 3.5), factor=0.5)
    points = {0: 0, 5: 0.2, 10: 0.4, 19: 0.4, 20: 0.2, 34: 0.2, 35: 0.1, 49: 0.1}
    check(schedule, 50, 10.0, points)


def test_a_boundary_may_be_at_the_end_of_the_warmup_and_not_before():
    check_boundaries(Schedule("steps", 0.4, 1.0, boundaries=(2.0, 1.0)))
    check_boundaries(Schedule("cosine", 0.4, 1.0, boundaries=(0.5,)))  # not used
    with pytest.raises(InputError, match=r"boundaries 0\.5: it is within the warm-up"):
        check_boundaries(Schedule("steps", 0.4, 1.0, boundaries=(2.0, 0.5)))


@pytest.mark.parametrize("kind", ["steps", "cosine"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_boundary_is_finite(kind, value):
    """Also one that is not used: as NaN differs from itself, no run could resume."""
    schedule = Schedule(kind, boundaries=(2.0, float(value)))
    with pytest.raises(InputError, match=f"boundaries {value}: it must be finite"):
        check_boundaries(schedule)


def test_the_rate_falls_at_each_boundary_also_where_two_are_one_step():
    schedule = Schedule("steps", 1.0, boundaries=(1.0, 1.01, 2.0), factor=0.5)
    check(schedule, 30, 10.0, {9: 1.0, 10: 0.25, 19: 0.25, 20: 0.125})


def test_cosine():
    """peak (1 + cos(pi t / T)) / 2 at 0, a quarter, a third, half and all of T."""
    quarter = 0.4 * (1 + math.sqrt(0.5)) / 2
    points = {0: 0.4, 30: quarter, 40: 0.3, 60: 0.2, 80: 0.1, 120: 0.0, 200: 0.0}
    check(Schedule("cosine", 0.4), 120, 10.0, points)


def test_cosine_after_a_warmup():
    points = {0: 0, 10: 0.08, 25: 0.2, 49: 0.392, 50: 0.4, 150: 0.2, 250: 0.0}
    check(Schedule("cosine", 0.4, warmup_epochs=5), 250, 10.0, points)


def test_the_last_step_of_a_cosine_still_learns():
    rate = learning_rate(Schedule("cosine", 0.4), 100, 10.0)
    assert float(rate(99)) > 0


def test_one_cycle_is_a_triangle():
    points = {0: 0, 15: 0.3, 30: 0.6, 65: 0.3, 100: 0.0, 110: 0.0}
    check(Schedule("one_cycle", 0.6, warmup_epochs=3), 100, 10.0, points)


def test_constant_with_and_without_warmup():
    check(Schedule("constant", 0.3), 100, 10.0, {0: 0.3, 99: 0.3})
    points = {0: 0, 5: 0.15, 9: 0.27, 10: 0.3, 99: 0.3}
    check(Schedule("constant", 0.3, warmup_epochs=1), 100, 10.0, points)


def test_a_warmup_of_a_fraction_of_an_epoch():
    """1.5 epochs of 2.5 steps are 3.75, that is 4 steps."""
    points = {0: 0, 1: 0.1, 3: 0.3, 4: 0.4, 5: 0.4}
    check(Schedule("constant", 0.4, warmup_epochs=1.5), 12, 2.5, points)


def test_a_warmup_as_long_as_the_run():
    points = {0: 0, 10: 0.2, 19: 0.38}
    check(Schedule("cosine", 0.4, warmup_epochs=2), 20, 10.0, points)


def test_the_optimizer_starts_with_the_rate_of_step_0():
    """The update of step t has the rate of t steps done; no momentum, gradient 1."""
    rate = learning_rate(Schedule("cosine", 0.4, warmup_epochs=0.2), 10, 10.0)
    optimizer = make_optimizer(Optimizer(momentum=0.0, weight_decay=0.0), rate)
    params = {"bias": jnp.zeros(1)}
    state, steps = optimizer.init(params), []
    for _ in range(4):
        updates, state = optimizer.update({"bias": jnp.ones(1)}, state, params)
        steps.append(-float(updates["bias"][0]))
    body = [0.2 * (1 + math.cos(math.pi * t / 8)) for t in (0, 1)]
    # float32
    assert steps == pytest.approx([0.0, 0.2, *body], rel=1e-6)


def test_adam_begins_with_a_step_of_the_rate_against_the_gradient():
    """Kingma and Ba 2014, section 2.1: corrected for the start, the ratio is 1."""
    params = {"kernel": np.array([1.0, -2.0, 3.0], np.float32)}
    gradient = {"kernel": np.array([5.0, -1e-3, 40.0], np.float32)}
    options = Optimizer("adam", weight_decay=0.0)
    optimizer = make_optimizer(options, lambda step: 0.125)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [-0.125, 0.125, -0.125], rtol=1e-4)
