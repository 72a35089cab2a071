"""The command, end to end with programs that compute nothing."""

import pytest

from benchmarks import __main__ as command
from benchmarks.cases import Case, Table
from benchmarks.report import load_report

SLEEP = "tests.benchmarks.programs:sleep"


def tables(options, machine):
    cases = tuple(
        Case(name, "jax", SLEEP, {"seconds": seconds})
        for name, seconds in (("short", 0.001), ("long", 0.002))
    )
    return [Table(f"naps {i}", "short", cases, {"number": i}) for i in range(2)]


def test_a_benchmark_is_run_shown_and_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(command.BENCHMARKS, "shift", tables)
    options = ["--quick", "--rounds", "3", "--minutes", "1", "--models", "shiftnet_*"]
    assert command.run_benchmarks(["shift", *options, "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "naps 0" in printed
    assert "over short" in printed
    (path,) = tmp_path.glob("*.json")
    report = load_report(tmp_path, "shift", path.stem.removeprefix("shift-"))
    assert report is not None
    assert report.command.startswith("python -m benchmarks shift --quick")
    assert "--models 'shiftnet_*' --results" in report.command
    assert {"commit", "date", "platform", "device", "jax", "cores"} <= set(
        report.machine
    )
    assert [table.facts["number"] for table in report.tables] == [0, 1]
    assert [len(row.times) for row in report.tables[0].rows] == [2, 2]
    assert path.with_suffix(".md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "name a benchmark: shift, block, training, inference, memory, input, sty",
        ),
        (["shift", "--rounds", "0"], "--rounds 0: it must be at least 1"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys):
    assert command.run_benchmarks(arguments) == 2
    assert message in capsys.readouterr().err


def test_report_writes_the_pages(monkeypatch, tmp_path):
    """Each has its section, made from the results."""
    section = "<!-- speed: x -->\n<!-- end of speed -->\n"
    (tmp_path / "docs").mkdir()
    pages = tmp_path / "README.md", tmp_path / "docs" / "speed.md"
    for page in pages:
        page.write_text(section)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    assert command.run_benchmarks(["report", "--results", str(command.RESULTS)]) == 0
    readme, tables = (page.read_text() for page in pages)
    assert "docs/speed.png" in readme
    assert "|" in tables
    assert (tmp_path / "docs" / "speed.png").exists()


def test_report_without_results_writes_nothing(monkeypatch, tmp_path):
    """Without results there is nothing to change, and nothing to draw."""
    (tmp_path / "README.md").write_text("as it was")
    monkeypatch.setattr(command, "ROOT", tmp_path)
    assert command.run_benchmarks(["report", "--results", str(tmp_path)]) == 0
    assert (tmp_path / "README.md").read_text() == "as it was"
    assert not (tmp_path / "docs").exists()
