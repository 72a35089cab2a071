"""What is missing from a wheel is found before it is published."""

import json
import tarfile

import pytest

import shiftjax
from tests.package.check_files import ROOT, read_files, wheel_faults

INFO = f"shiftjax-{shiftjax.__version__}.dist-info"
METADATA = f"""Metadata-Version: 2.4
Name: shiftjax
Version: {shiftjax.__version__}
License-Expression: Apache-2.0
Description-Content-Type: text/markdown

"""


@pytest.fixture
def wheel():
    """The content of the files of a wheel, as far as they are checked."""
    weights = ROOT / "checkpoints"
    manifest = json.loads((weights / "manifest.json").read_text())
    names = ["manifest.json", *(release["file"] for release in manifest["releases"])]
    return {
        "shiftjax/py.typed": b"",
        "train/__init__.py": b"",
        f"{INFO}/METADATA": METADATA.encode() + (ROOT / "README.md").read_bytes(),
        f"{INFO}/licenses/LICENSE": b"Apache",
        **{f"shiftjax/checkpoints/{n}": (weights / n).read_bytes() for n in names},
    }


def test_a_wheel_without_faults(wheel):
    assert wheel_faults(wheel) == []


def test_each_fault_of_a_wheel_is_named(wheel):
    path = "shiftjax/checkpoints/shiftresnet20_e1.cifar10.safetensors"
    wheel[path] = wheel[path][:-1]
    wheel["tests/test_x.py"] = wheel.pop("shiftjax/py.typed")
    wheel[f"{INFO}/METADATA"] = METADATA.replace("markdown", "plain").encode()
    assert wheel_faults(wheel) == [
        "Description-Content-Type is 'text/plain', not 'text/markdown'",
        "the description is not README.md",
        "shiftjax/py.typed is missing",
        "tests would be installed too",
        f"{path} is missing or has another sha256",
    ]


def test_an_sdist_is_read_without_its_first_folder(tmp_path):
    (tmp_path / "README.md").write_text("# shiftjax\n")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as sdist:
        sdist.add(tmp_path / "README.md", "shiftjax-0.1.0/README.md")
    assert read_files(tmp_path / "a.tar.gz") == {"README.md": b"# shiftjax\n"}
