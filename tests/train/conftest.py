"""Small runs for the trainer's tests, and one compilation of each of their programs."""

import contextlib
import dataclasses
import errno
import functools
import io
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console

from tests.train.processes import TIMEOUT, free_port
from tests.train.runs import EPOCH, NETWORK, STEPS
from train import loop
from train.assemble import set_up
from train.config import Augment, Config, Data, Hosts, Model, Schedule, flatten

ROOT = Path(__file__).parents[2]

# The tests compile much and compute little. Subprocesses share what is compiled.
COMPILATION = {
    "jax_disable_most_optimizations": True,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    """The folder that SHIFTJAX_CACHE names."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def compiled_once(cache_dir):
    """Returns a context in which each program is compiled once in the session."""

    @contextlib.contextmanager
    def context():
        options = COMPILATION | {"jax_compilation_cache_dir": f"{cache_dir}/compiled"}
        before = {name: jax.config.values[name] for name in options}
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # which has noted the folder
        try:
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()

    return context


@pytest.fixture
def quick(compiled_once):
    """Compiles quickly, and each program once."""
    with compiled_once():
        yield


def tiny_config(workdir: object, **changes) -> Config:
    """A run of a second: an 8-layer network on 40 digits of 8x8 pixels."""
    config = Config(
        workdir=str(workdir),
        epochs=STEPS / EPOCH,
        batch_size=16,
        model=Model("shiftresnet20", NETWORK),
        data=Data(image_size=8, validation_examples=1397),
        augment=Augment(crop_padding=1, flip=True),
        schedule=Schedule(learning_rate=0.05, warmup_epochs=1),
        log_steps=3,
        eval_epochs=10 / EPOCH,
        save_epochs=5 / EPOCH,
        log_to=(),
    )
    return dataclasses.replace(config, **changes)


def command_line_of(config: Config) -> list[str]:
    """The command line of a run, with every option."""
    words = ["digits"]
    for name, value in flatten(config).items():
        group, dot, last = name.replace("_", "-").rpartition(".")
        if isinstance(value, bool):
            words.append(f"--{group}{dot}{'' if value else 'no-'}{last}")
            continue
        if isinstance(value, dict):
            value = [word for pair in value.items() for word in pair]
        values = value if isinstance(value, tuple | list) else [value]
        if values or name == "log_to":  # whose default is not empty
            words += [f"--{group}{dot}{last}", *map(str, values)]
    return words


@pytest.fixture(scope="session")
def tiny():
    """Returns a function that configures a tiny run in a workdir."""
    return tiny_config


@pytest.fixture(scope="session")
def command_line():
    """Returns a function that writes a run's configuration as command line."""
    return command_line_of


@pytest.fixture(scope="session")
def run(compiled_once):
    """Returns a function that runs `train`: its outcome, and what a person reads."""

    def run(config: Config) -> tuple[loop.Outcome, str]:
        text = io.StringIO()
        with compiled_once():
            outcome = loop.train(config, Console(file=text, soft_wrap=True))
        return outcome, text.getvalue()

    return run


@pytest.fixture(scope="session")
def start(cache_dir):
    """Returns a function that starts `python -m train` in a process of its own."""

    def start(
        *words: str, devices: int = 4, cwd: Path | None = None, program: str = "train"
    ):
        added = {name.upper(): str(value) for name, value in COMPILATION.items()}
        added |= {"PYTHONPATH": str(ROOT), "SHIFTJAX_CACHE": str(cache_dir)}
        added["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", program, *words],
            env=os.environ | added | {"JAX_PLATFORMS": "cpu"},
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def pair(start):
    """Returns a function that starts both processes of a run.

    They run `python -m PROGRAM WORDS` with the options of each configuration.
    """
    begun = []

    def pair(*configs, devices=(2, 2), folders=(None, None), program="train", words=()):
        port = free_port()
        for index, config in enumerate(configs):
            options = Hosts(f"localhost:{port}", len(configs), index, TIMEOUT)
            line = command_line_of(dataclasses.replace(config, hosts=options))
            kind = {"devices": devices[index], "cwd": folders[index]}
            begun.append(start(*words, *line, **kind, program=program))
        return begun[-len(configs) :]

    yield pair
    for process in begun:
        process.kill()
        process.communicate()


@dataclasses.dataclass(frozen=True)
class Finished:
    """An uninterrupted run on four devices.

    Attributes:
      config: what was asked for.
      outcome: what `train` returned.
      text: what a person read.
      splits: the splits that were loaded, in order.
    """

    config: Config
    outcome: loop.Outcome
    text: str
    splits: list[str]


@pytest.fixture(scope="session")
def finished(tmp_path_factory, run) -> Finished:
    """The run that others are compared with; its workdir must stay as it is."""
    config = tiny_config(tmp_path_factory.mktemp("finished") / "run")
    splits: list[str] = []

    def load_split(config: Config, split: str):
        splits.append(split)
        return original(config, split)

    original = loop.load_split
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "load_split", load_split)
        outcome, text = run(config)
    return Finished(config, outcome, text, splits)


@pytest.fixture
def read_only():
    """Returns a function that makes a folder read-only for the rest of the test.

    Python's calls that would write into it fail as on a read-only file system, also for
    root, whom permissions do not stop.
    """
    folders: list[Path] = []
    names = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}

    def refuse(event: str, arguments: tuple) -> None:
        if not folders or not (event == "open" or event in names):
            return
        path, *_, flags = arguments
        if event == "open" and not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if isinstance(path, str) and Path(path).is_relative_to(folders[0]):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    sys.addaudithook(refuse)  # which stays, without effect after the test
    yield folders.append
    folders.clear()


@pytest.fixture
def stop_at(monkeypatch):
    """Returns a function that has the process signalled in a step of the next run."""

    def stop_at(step: int, number: int = signal.SIGTERM) -> None:
        def signalling(config: Config):
            setup = set_up(config)
            train_steps, calls = setup.train_steps, itertools.count(1)

            @functools.wraps(train_steps)
            def run(*arguments: Any) -> Any:
                if next(calls) == step:
                    signal.raise_signal(number)
                return train_steps(*arguments)

            setup.__dict__["train_steps"] = run  # where the property keeps it
            return setup

        monkeypatch.setattr(loop, "set_up", signalling)

    yield stop_at
    monkeypatch.undo()
