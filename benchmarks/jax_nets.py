"""Our own cases: training steps of the trainer's, and forms of the shift."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import shiftjax
from train import experiments
from train.data.image_set import ImageSet
from train.data.stream import Order, items
from train.optimizer import learning_rate, make_optimizer
from train.parallel import AXIS, Replicas
from train.setup import make_task
from train.state import create_state
from train.steps import Trainer


def training_step(model, batch_size, **overrides):
    """Returns a function that does one step of `python -m train cifar10`."""
    config = experiments.load("cifar10")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10 * batch_size, 32, 32, 3)).astype(np.uint8)
    labels = rng.integers(0, 10, len(images)).astype(np.int32)
    examples = ImageSet(images, labels, tuple("0123456789"))
    replicas = Replicas.local()
    network = shiftjax.create_model(model, axis_name=AXIS, **overrides)
    task = dataclasses.replace(make_task(config, 10), model=network)
    optimizer = make_optimizer(
        config.optimizer, learning_rate(config.schedule, 10_000, 400)
    )
    step = replicas.parallelize(Trainer(task, optimizer).train_steps, donate_state=True)
    order = Order(len(examples), batch_size, 0)
    data = replicas.replicate({"images": images, "labels": labels})
    state = replicas.replicate(create_state(network, optimizer, 0, (32, 32, 3)))

    def batch(index):
        return replicas.split(items(order.indices(index)[None], None, 1))

    compiled = step.lower(state, data, batch(0), np.int32(1)).compile()
    box = [state, 0]

    def run():
        box[0], sums = compiled(box[0], data, batch(box[1]), np.int32(1))
        box[1] += 1
        return float(sums["loss"])

    # The compiler's own count: the process's peak may be that of the compiler.
    run.temporary_bytes = compiled.memory_analysis().temp_size_in_bytes
    return run


def shift(lowering, shape, kernel_size, dtype, backward):
    """Returns a function that shifts once; "copy" adds one to each value instead."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)
    table = shiftjax.displacements(shape[-1], kernel_size)

    def forward(x):
        if lowering == "copy":
            return x + jnp.ones((), x.dtype)
        return shiftjax.displace(x, table, lowering=lowering)

    def both(x):
        y, transpose = jax.vjp(forward, x)
        return y, transpose(jax.lax.optimization_barrier(y))

    compiled = jax.jit(both if backward else forward)
    return lambda: jax.block_until_ready(compiled(x))
