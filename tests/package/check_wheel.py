"""Checks a built wheel as a user gets it: alone, in an empty virtual environment.

`python tests/package/check_wheel.py dist/shiftjax-*.whl` (`make wheel`) installs the
wheel with the pinned versions, without the trainer and away from the repository, and
runs what a user would: the releases that come with it are listed, verified and loaded,
and the class of an image is predicted. Needs the standard library alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
MODEL = "shiftresnet20_e3.digits"
CLASSES = 10

# A white stroke on black, which is a handwritten one.
SIDE = 32
STROKE = bytes(
    255 if 4 <= y < 28 and 14 <= x < 19 else 0 for y in range(SIDE) for x in range(SIDE)
)

NEEDS_INDEX = "pip installs packages from the network or from PIP_INDEX_URL"

LOAD = f"""
import jax.numpy as jnp
import shiftjax

model, variables = shiftjax.load_pretrained("{MODEL}")
print(shiftjax.__version__, shiftjax.__file__)
assert model.apply(variables, jnp.zeros((2, {SIDE}, {SIDE}, 3))).shape == (2, {CLASSES})
"""


def run(*command: str | Path, cwd: Path, hint: str = "") -> str:
    """Runs a command that has to succeed, and returns what it prints.

    Args:
      command: the program and its arguments.
      cwd: the folder in which it runs.
      hint: printed last if it fails.

    Raises:
      SystemExit: if it fails; with what it printed.
    """
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    environment = {name: x for name, x in os.environ.items() if name not in hidden}
    environment["JAX_PLATFORMS"] = "cpu"
    print("$", *[Path(command[0]).name, *command[1:]], flush=True)
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"exit status {done.returncode}\n{done.stdout}{done.stderr}{hint}")
    return done.stdout


def check(wheel: Path, folder: Path) -> None:
    """Installs a wheel into an empty folder, and runs its commands there.

    Args:
      wheel: the file.
      folder: an empty folder, outside the repository.

    Raises:
      SystemExit: if anything fails or prints something else than it should.
    """
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / "bin"
    python, shiftjax = programs / "python", programs / "shiftjax"
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", CONSTRAINTS]
    run(*pip, wheel, cwd=folder, hint=NEEDS_INDEX)

    releases = run(shiftjax, "list", "--pretrained", cwd=folder).split()
    if MODEL not in releases:
        sys.exit(f"{MODEL} is not among the releases of the wheel: {releases}")
    print(run(shiftjax, "verify", "--all", cwd=folder), end="")

    (folder / "one.pgm").write_bytes(f"P5 {SIDE} {SIDE} 255\n".encode() + STROKE)
    line = run(shiftjax, "predict", "--model", MODEL, "--json", "one.pgm", cwd=folder)
    print(line, end="")
    best = json.loads(line)["classes"][0]
    if best["class"] != "1":
        sys.exit(f"the image of a one is taken for {best}")

    (folder / "load.py").write_text(LOAD)
    loaded = run(python, "-W", "error", "load.py", cwd=folder)
    print(loaded, end="")
    if str(folder.resolve()) not in loaded:
        sys.exit("shiftjax was imported from elsewhere than the wheel")


def main() -> None:
    """Checks the wheel that is named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel.resolve()
    with tempfile.TemporaryDirectory(prefix="shiftjax-wheel-") as folder:
        check(wheel, Path(folder))
    print(f"{wheel.name} works alone")


if __name__ == "__main__":
    main()
