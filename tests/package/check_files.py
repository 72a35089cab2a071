"""Checks the files of a built wheel and of a built sdist, without installing them.

`python tests/package/check_files.py dist/*` (`make wheel`) compares them with the
checkout: the released weights by their hashes, the README, the license and the types.
Needs the standard library alone.
"""

import argparse
import email
import hashlib
import json
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
SDIST_FILES = (
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints.txt",
    "pyproject.toml",
    "shiftjax/py.typed",
    "tests/package/check_files.py",
    "train/__main__.py",
)


def read_files(path: Path) -> dict[str, bytes]:
    """Reads all files of a wheel, or of an sdist without its first folder."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    found = {}
    with tarfile.open(path) as sdist:
        for member in sdist:
            if (file := sdist.extractfile(member)) is not None:
                found[member.name.partition("/")[2]] = file.read()
    return found


def wheel_faults(files: Mapping[str, bytes]) -> list[str]:
    """Lists the faults of a wheel.

    Args:
      files: the content of each of its files.
    """
    (metadata,) = (n for n in files if n.endswith(".dist-info/METADATA"))
    info = metadata.rpartition("/")[0]
    faults = metadata_faults(files[metadata])
    faults += [
        f"{name} is missing"
        for name in ("shiftjax/py.typed", f"{info}/licenses/LICENSE")
        if name not in files
    ]
    others = {name.partition("/")[0] for name in files} - {"shiftjax", "train", info}
    faults += [f"{name} would be installed too" for name in sorted(others)]
    return faults + weights_faults(files, "shiftjax/checkpoints")


def sdist_faults(files: Mapping[str, bytes]) -> list[str]:
    """Lists the faults of an sdist; see `wheel_faults`."""
    faults = [f"{name} is missing" for name in SDIST_FILES if name not in files]
    faults += metadata_faults(files["PKG-INFO"])
    return faults + weights_faults(files, "checkpoints")


def metadata_faults(text: bytes) -> list[str]:
    """Lists the faults of the metadata, which an index shows."""
    fields = email.message_from_bytes(text)
    readme = (ROOT / "README.md").read_text()
    version: dict[str, str] = {}
    exec((ROOT / "shiftjax" / "version.py").read_text(), version)
    wanted = {
        "Name": "shiftjax",
        "Version": version["__version__"],
        "License-Expression": "Apache-2.0",
        "Description-Content-Type": "text/markdown",
    }
    faults = [
        f"{name} is {fields[name]!r}, not {value!r}"
        for name, value in wanted.items()
        if fields[name] != value
    ]
    if fields.get_payload(decode=True) != readme.encode():
        faults.append("the description is not README.md")
    return faults


def weights_faults(files: Mapping[str, bytes], folder: str) -> list[str]:
    """Lists the releases of the checkout whose weights are missing or differ."""
    manifest = (ROOT / "checkpoints" / "manifest.json").read_bytes()
    faults = []
    if files.get(f"{folder}/manifest.json") != manifest:
        faults.append(f"{folder}/manifest.json is not that of the checkout")
    for release in json.loads(manifest)["releases"]:
        name = f"{folder}/{release['file']}"
        if hashlib.sha256(files.get(name, b"")).hexdigest() != release["sha256"]:
            faults.append(f"{name} is missing or has another sha256")
    return faults


def main() -> None:
    """Checks the files that are named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("built", type=Path, nargs="+", help="a wheel or an sdist")
    faults = []
    for path in parser.parse_args().built:
        files = read_files(path)
        check = wheel_faults if path.suffix == ".whl" else sdist_faults
        found = check(files)
        faults += [f"{path.name}: {fault}" for fault in found]
        if not found:
            print(f"{path.name} has {len(files)} files, and all that it should")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
