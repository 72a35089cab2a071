"""The cost of a training step on TPUs that are not there, by their compiler."""

import dataclasses
import importlib.util
import subprocess
import sys

import jax
import numpy as np
import pytest

from shiftjax.errors import InputError
from train import compile as compiler
from train.__main__ import parse, run_command
from train.assemble import set_up
from train.data.stream import items
from train.experiments import load
from train.parallel import Replicas

PROGRAM = """
ENTRY %main {
  %p = f32[10,4]{1,0} parameter(0)
  %all-reduce = f32[10,4]{1,0:T(8,128)} all-reduce(%p), channel_id=1
  %b = (bf16[3]{0}, f32[], pred[8]{0}) all-reduce-start(%x, %y, %z), channel_id=2
  %all-reduce-done = (bf16[3]{0}, f32[], pred[8]{0}) all-reduce-done(%b)
  %g = f32[64]{0} all-gather(%p), dimensions={0}
}
"""


def test_sums_are_counted_once_with_the_bytes_of_their_results():
    assert compiler.sums(PROGRAM) == (2, 10 * 4 * 4 + 3 * 2 + 4 + 8)
    assert compiler.sums("ENTRY %main {\n}") == (0, 0)


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5", "unknown kind of TPU 'v5': did you mean 'v5"),
        ("v5e", "--topology v5e: it must be a kind and a layout, as v5e:4x4"),
        ("v5e:big", "--topology v5e:big: it must be a kind and a layout, as v5e:4x4"),
    ],
)
def test_a_wrong_slice_is_one_line(topology, message, capsys):
    assert run_command(["compile", "cifar10", "--topology", topology]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed"
)
def test_without_libtpu_the_way_to_install_it_is_told(capsys):
    assert run_command(["compile", "cifar10", "--topology", "v5e:2x2"]) == 2
    assert 'it needs libtpu: pip install "shiftjax[tpu]"' in capsys.readouterr().err


def test_options_of_the_experiment_and_of_the_compilation_go_together():
    own = ["--topology", "v5e:2x2", "v6e:4x4", "--per-chip", "64"]
    command = parse(["compile", "cifar10", *own, "--model.name", "shiftnet_c"])
    assert command.topology == ("v5e:2x2", "v6e:4x4")
    assert command.per_chip == 64
    assert command.config.model.name == "shiftnet_c"
    assert command.config.schedule == load("cifar10").schedule
    assert parse(["compile"]).config == load("digits")


@pytest.mark.parametrize("backend", ["pmap", "shard_map"])
@pytest.mark.parametrize("resident_bytes", [0, 2**31])
def test_shapes_are_those_of_the_input_of_a_dispatch(backend, resident_bytes):
    config = load("digits")
    data = dataclasses.replace(config.data, resident_bytes=resident_bytes)
    config = dataclasses.replace(
        config,
        batch_size=8,
        devices=1,
        backend=backend,
        data=data,
        steps_per_dispatch=3,
    )
    examples = compiler.blank(16, 10, 32)
    setup = set_up(config, examples)
    fed = None if resident_bytes else examples
    given = setup.replicas.split(items(np.zeros((3, 8), np.int32), fed, 3))
    shapes = setup.replicas.split_shapes(compiler.item_shapes(setup))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), given
    )


def test_a_batch_is_split_over_the_chips_of_the_slice():
    replicas = Replicas(tuple(range(4)))  # type: ignore[arg-type]
    shape = jax.ShapeDtypeStruct((2, 12, 5), np.float32)
    assert replicas.split_shapes(shape).shape == (4, 2, 3, 5)


def test_a_million_images_take_no_memory():
    images = compiler.blank(1_281_167, 1000, 224).images
    assert images.shape == (1_281_167, 224, 224, 3)
    assert not any(images.strides)


def test_the_time_of_a_step_is_that_of_its_slowest_part():
    chip = compiler.CHIPS["v5e"]
    assert chip.bound(flops=197e12, traffic=0, summed=0) == 1
    assert chip.bound(flops=0, traffic=819e9 / 2, summed=0) == 0.5
    # Each byte of a sum passes twice through the links.
    assert chip.bound(flops=0, traffic=0, summed=200e9) == 2


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for a TPU needs libtpu: pip install libtpu",
)
@pytest.mark.parametrize("backend", ["pmap", "shard_map"])
def test_a_step_compiles_for_a_slice(backend):
    """In a process of its own, since libtpu reads its environment when it is loaded."""
    command = [sys.executable, "-m", "train", "compile", "digits", "--classes", "10"]
    command += ["--topology", "v5e:2x2", "--per-chip", "8", "--examples", "1000"]
    command += ["--model.name", "shiftresnet20_e1", "--backend", backend]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row = done.stdout.splitlines()[-1]
    assert row.startswith("| v5e:2x2 | 4 | 8 |")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 12}, "batch_size=12: 8 devices share it"),
        ({"batch_size": 48, "accumulate": 4}, "--accumulate 4: .* choose 3 or 6"),
    ],
)
def test_a_batch_that_the_chips_cannot_share_is_refused(options, message, monkeypatch):
    monkeypatch.setattr(compiler, "devices_of", lambda topology: tuple(range(8)))
    run = dataclasses.replace(load("digits"), **options)
    with pytest.raises(InputError, match=message):
        compiler.compile_step(run, "v5e:2x4", 100, 10)


def test_too_little_memory_is_one_line_that_names_options(monkeypatch):
    def lower(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 17.1G of 15.7G hbm")

    monkeypatch.setattr(Replicas, "lower", lower)
    monkeypatch.setattr(compiler, "devices_of", lambda topology: jax.devices("cpu")[:1])
    with pytest.raises(InputError, match=r"memory of a device .*--model\.remat"):
        compiler.compile_step(load("digits"), "v5e:1x1", 100, 10)
