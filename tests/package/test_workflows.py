"""The workflows run what a contributor runs, and publish what they have checked."""

import os
import re
import subprocess
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="it comes with the hub's client, an extra")

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(path):
    """A workflow; YAML takes the key `on` for a boolean."""
    workflow = yaml.safe_load(path.read_text())
    return workflow | {"on": workflow[True]}


def steps(workflow):
    return [s for job in workflow["jobs"].values() for s in job.get("steps", [])]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_targets_exist_and_actions_have_versions(path):
    makefile = (ROOT / "Makefile").read_text()
    workflow = load(path)
    found = steps(workflow)
    words = [w for s in found for w in re.findall(r"^make (\w+)", s.get("run", ""))]
    for job in workflow["jobs"].values():
        chosen = job.get("strategy", {}).get("matrix", {}).get("include", [])
        words += [choice["target"] for choice in chosen]
    assert words
    for word in words:
        assert re.search(rf"^{word}:", makefile, re.MULTILINE), word
    for step in found:
        assert re.search(r"@(v\d+|release/v\d+)$", step.get("uses", "@v0")), step


def test_a_tag_publishes_what_was_checked():
    workflow = load(ROOT / ".github" / "workflows" / "release.yml")
    jobs = workflow["jobs"]
    assert workflow["on"] == {"push": {"tags": ["v*"]}}
    assert workflow["permissions"] == {"contents": "read"}
    called = ROOT / jobs["check"]["uses"]
    assert "workflow_call" in load(called)["on"]
    publish = jobs["publish"]
    assert sorted(publish["needs"]) == ["build", "check"]
    assert publish["permissions"] == {"id-token": "write"}
    kept, taken = jobs["build"]["steps"][-1], publish["steps"][0]
    assert kept["with"]["name"] == taken["with"]["name"]
    assert kept["with"]["path"] == taken["with"]["path"] == "dist/"


@pytest.mark.parametrize("tag", ["v1.2.3", "v1.2.4"])
def test_a_tag_that_is_not_the_version_stops_the_release(tag, tmp_path):
    (tmp_path / "shiftjax").mkdir()
    (tmp_path / "shiftjax" / "version.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("## [1.2.3] - 2030-01-01\n")
    workflow = load(ROOT / ".github" / "workflows" / "release.yml")
    script = workflow["jobs"]["build"]["steps"][1]["run"]
    command = ["bash", "-e", "-c", script]  # as the runner does
    done = subprocess.run(
        command, cwd=tmp_path, env={"GITHUB_REF_NAME": tag, "PATH": os.defpath}
    )
    assert (done.returncode == 0) == (tag == "v1.2.3")
