"""The package as a whole: what its import costs, and that all of it is documented."""

import ast
import inspect
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import shiftjax

ROOT = Path(__file__).parents[2]
PACKAGE = Path(shiftjax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Needed to train or for commands, and heavy or fond of the accelerator's memory.
NOT_IMPORTED = [
    "PIL",
    "array_record",
    "grain",
    "matplotlib",
    "optax",
    "orbax",
    "safetensors",
    "sklearn",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "train",
    "tyro",
]

IMPORT = """
import json, sys, warnings
warnings.simplefilter("error")
import shiftjax
import jax
loaded = {name.partition(".")[0] for name in sys.modules}
try:
    jax.devices()
except RuntimeError as error:
    started_now = "no_such_platform" in str(error)
print(json.dumps([sorted(loaded), started_now]))
"""


def test_import_is_light_and_starts_no_backend():
    """No backend can start here; the import must not notice, and JAX must, later."""
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "no_such_platform"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    loaded, started_now = json.loads(done.stdout)
    assert {"jax", "flax", "shiftjax"} <= set(loaded)
    assert set(loaded).isdisjoint(NOT_IMPORTED)
    assert started_now


FORWARD = """
import sys
import shiftjax, jax.numpy as jnp, jax
def kernels():
    names = ("jax.experimental.pallas", "shiftjax.fast.gpu", "shiftjax.fast.tpu")
    return [name for name in sys.modules if name.startswith(names)]

before = kernels()
model = shiftjax.create_model("shiftresnet20_e1")
variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables)
assert model.apply(variables, jnp.ones((1, 8, 8, 3))).shape == (1, 10)
print([before, kernels()])
"""


def test_a_cpu_loads_no_kernels():
    """Pallas is half of the time of the import."""
    done = subprocess.run(
        [sys.executable, "-c", FORWARD],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[[], []]"


def test_types_are_published():
    assert (PACKAGE / "py.typed").is_file()


def test_version_is_the_packages():
    version = {}
    exec((PACKAGE / "version.py").read_text(), version)
    assert shiftjax.__version__ == version["__version__"]
    assert all(part.isdigit() for part in shiftjax.__version__.split(".")[:2])


def test_the_citation_is_that_of_the_package():
    yaml = pytest.importorskip("yaml", reason="it comes with the hub's client")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == project["name"]
    assert citation["version"] == shiftjax.__version__
    assert citation["license"] == project["license"]
    assert citation["authors"] == project["authors"]
    assert citation["preferred-citation"]["url"] == project["urls"]["Paper"]


def test_public_names_are_sorted_once_and_documented():
    assert len(set(shiftjax.__all__)) == len(shiftjax.__all__)
    for name in shiftjax.__all__:
        value = getattr(shiftjax, name)
        if name != "__version__":
            assert inspect.getdoc(value), name


def public(body):
    """Public functions and classes of a module, and their public methods."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_":
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


def unannotated(node):
    """Arguments of a function without annotation, and "return" if it has none."""
    a = node.args
    named = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
    missing = [
        arg.arg
        for arg in named
        if arg and arg.annotation is None and arg.arg not in ("self", "cls")
    ]
    return missing + ["return"] * (node.returns is None)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_everything_public_is_documented_and_annotated(path):
    module = ast.parse(path.read_text())
    assert ast.get_docstring(module)
    for node in public(module.body):
        assert ast.get_docstring(node), node.name
        if isinstance(node, ast.FunctionDef):
            assert unannotated(node) == [], node.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_library_never_imports_the_trainer(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        assert "train" not in {module.partition(".")[0] for module in modules}
