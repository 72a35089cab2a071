"""Networks in JAX: a step of the trainer, and inference with `model.apply`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np
from jax import lax

import shiftjax
from benchmarks.cases import Program
from benchmarks.jax_programs import (
    compile_program,
    is_queue,
    parameter_count,
    peak_bytes,
    random,
)
from shiftjax.fast.dispatch import default_platform
from shiftjax.layers import CSC
from shiftjax.module import Unit
from train import experiments
from train.assemble import set_up
from train.config import Augment, Optimizer
from train.data.image_set import ImageSet
from train.data.stream import items
from train.parallel import AXIS, Replicas, replica_count, split_cpu
from train.tasks.classification import Classification


class CSCNet(Unit):
    """A network of CSC modules with the shape of the paper's ShiftNets.

    Attributes:
      stem: features of the 7x7 convolution with stride 2 before the modules.
      groups: groups of modules, each with kernel size, features, and the expansion of
        each module, the first of which has stride 2.
      num_classes: number of logits.
    """

    stem: int
    groups: Sequence[tuple[int, int, Sequence[int]]]
    num_classes: int = 1000

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Computes logits `[batch, num_classes]` from `[batch, height, width, 3]`."""
        dtypes: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.Conv(
            self.stem, (7, 7), 2, padding=[(3, 3)] * 2, use_bias=False, **dtypes
        )(images)
        for kernel_size, features, expansions in self.groups:
            for index, expansion in enumerate(expansions):
                strides = 1 if index else 2
                x = self.unit(CSC, features, kernel_size, strides, expansion=expansion)(
                    x, train
                )
        x = nn.relu(self.norm("norm", train)(x)).mean((1, 2))
        return nn.Dense(self.num_classes, **dtypes)(x).astype("float32")


def network(model: str, overrides: Mapping[str, Any], **options: Any) -> Unit:
    """Makes a network of the library, or a "shiftnet" of the given shape."""
    if model == "shiftnet":
        return CSCNet(**overrides, **options)
    return shiftjax.create_model(model, **overrides, **options)


def jax_training_step(
    model: str,
    batch_size: int,
    dtype: str,
    image_size: int = 32,
    overrides: Mapping[str, Any] | None = None,
) -> Program:
    """Makes a training step, on one device or all cores of a CPU.

    The program is that of `python -m train cifar10`, with SGD with momentum and without
    augmentation, as in PyTorch.

    Args:
      model: a name of `shiftjax.list_models()`, or "shiftnet".
      batch_size: images in a step.
      dtype: dtype of the computation.
      image_size: side of the images.
      overrides: options of the network.

    Returns:
      The program; a call runs the number of steps that the trainer dispatches at once.
    """
    config = dataclasses.replace(
        experiments.load("cifar10"),
        batch_size=batch_size,
        devices=len(replicas_for(batch_size).devices),
        optimizer=Optimizer(weight_decay=5e-4),
        augment=Augment(crop_padding=0, flip=False),
    )
    rng = np.random.default_rng(0)
    shape = (4 * batch_size, image_size, image_size, 3)
    images = rng.integers(0, 256, shape).astype(np.uint8)
    net: Any = network(model, overrides or {}, dtype=dtype, axis_name=AXIS)
    labels = rng.integers(0, net.num_classes, len(images)).astype(np.int32)
    classes = tuple(map(str, range(net.num_classes)))
    examples = ImageSet(images, labels, classes)
    setup = set_up(config, examples)
    task = cast(Classification, setup.trainer.task)
    task = dataclasses.replace(task, model=net)
    trainer = dataclasses.replace(setup.trainer, task=task)
    setup = dataclasses.replace(setup, trainer=trainer)
    steps, replicas = setup.steps_per_dispatch, setup.replicas
    data, _ = setup.on_devices(examples)
    state = replicas.replicate(setup.initial_state())
    params, count = parameter_count(state.variables), np.int32(steps)

    def batch(index: int) -> Any:
        indices = [setup.order.indices(index + i) for i in range(steps)]
        return replicas.split(items(np.stack(indices), None, steps))

    program, memory = compile_program(setup.train_steps, state, data, batch(0), count)
    position = 0

    def call() -> jax.Array:
        nonlocal state, position
        state, sums = program(state, data, batch(position), count)
        position += steps
        return sums["loss"]

    return Program(
        call,
        float,
        steps=steps,
        queued=is_queue(),
        memory_bytes=memory * replicas.count,
        peak_bytes=peak_bytes,
        facts={"params": params} | multiply_adds(net, image_size),
    )


def jax_inference(
    model: str,
    batch_size: int,
    dtype: str,
    image_size: int = 32,
    overrides: Mapping[str, Any] | None = None,
) -> Program:
    """Makes the program of inference; see `jax_training_step` for the arguments.

    Returns:
      The program `model.apply(variables, images, train=False)`. A large batch is split
      over the cores of a CPU; single images are not queued.
    """
    replicas = replicas_for(batch_size)
    net = network(model, overrides or {}, dtype=dtype)
    images = random((batch_size, image_size, image_size, 3), dtype)
    variables = jax.jit(net.init)(jax.random.key(0), images)

    def predict(variables: Any, images: jax.Array) -> Any:
        return net.apply(variables, images, train=False)

    def share(variables: Any, data: None, images: jax.Array, count: None) -> Any:
        del data, count
        return lax.all_gather(predict(variables, images[0]), AXIS)

    function, arguments = predict, (variables, images)
    if replicas.count > 1:
        function = replicas.parallelize(share)
        split = replicas.split(images[None])
        arguments = (replicas.replicate(variables), None, split, None)
    program, memory = compile_program(function, *arguments)
    return Program(
        lambda: program(*arguments),
        jax.block_until_ready,
        queued=is_queue() and batch_size > 1,
        memory_bytes=memory * replicas.count,
        peak_bytes=peak_bytes,
        facts={"params": parameter_count(variables)} | multiply_adds(net, image_size),
    )


def replicas_for(batch_size: int) -> Replicas:
    """Returns one device, or the CPU cores over which the trainer splits a batch.

    Call it before the first array.
    """
    split_cpu(batch_size)
    if default_platform() != "cpu":
        return Replicas.local(1)
    return Replicas.local(replica_count(batch_size, jax.local_device_count()))


def multiply_adds(net: Unit, image_size: int) -> dict[str, int]:
    """Returns "macs", the multiply-adds for one image."""
    return {"macs": shiftjax.summarize(net, image_size).macs}
