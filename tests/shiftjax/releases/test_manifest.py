"""The entries of the manifest."""

import dataclasses

import pytest

from shiftjax.releases.manifest import Release, Run


def test_means_and_spreads_are_those_of_the_runs():
    """By hand: 0.75, 0.85 have mean 0.8 and deviation sqrt(2 * 0.05^2 / 1)."""
    runs = (Run(0, {"top1": 0.75}), Run(1, {"top1": 0.85}))
    entry = Release("a.b", "f", 1, "", 1, 1, "d", "", runs)
    assert entry.mean() == pytest.approx(0.8)
    assert entry.spread() == pytest.approx(0.0707107, rel=1e-5)
    assert dataclasses.replace(entry, runs=runs[:1]).spread() is None
    assert entry.architecture == "a"
