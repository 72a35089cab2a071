"""Results as JSON and Markdown, and the sections of the pages made from them."""

import dataclasses

import pytest

from benchmarks import RESULTS, ROOT
from benchmarks.figure import draw_speed_figure
from benchmarks.report import (
    Report,
    Result,
    load_report,
    markdown,
    pivot,
    result_cells,
    rounded,
    speed_page,
    speed_summary,
    update_section,
)
from benchmarks.turns import Row

MACHINE = {
    "commit": "0123456789ab",
    "cpu": "Abacus",
    "cores": 2,
    "python": "3.11.7",
    "jax": "0.10.2",
    "platform": "cpu",
    "device": "cpu",
}
PAGE = "before\n<!-- speed: made by x -->\nold\n<!-- end of speed -->\nafter\n"


def result(expansion, ours, theirs, resnet=(4.0, 4.0), **changes):
    """Times of two rounds."""
    rows = (
        Row("shiftjax", ours, 9.0, 2_000_000, None, {"params": 10_000 * expansion}),
        Row("ResNet-20", resnet, 1.25, 4_000_000, None, {"params": 200_000}),
        Row("the same in PyTorch", theirs, 1.0, None, None, {"params": 90_000}),
    )
    facts = {"depth": 20, "expansion": expansion, "batch_size": 128}
    values = {
        "title": f"a step, E = {expansion}",
        "base": "shiftjax",
        "facts": facts | {"dtype": "float32"},
        "in_turns": True,
        "rows": rows,
        "left_out": {},
    }
    return Result(**values | changes)


@pytest.fixture
def report():
    tables = result(3, (2.0, 2.0), (3.0, 5.0)), result(1, (1.0, 1.0), (0.5, 0.5))
    return Report("training", "python -m benchmarks training", MACHINE, tables)


def operation(passes, scale):
    rows = (
        Row("copy", (1.0,), 0.0, None, None, {}),
        Row("K = 3, pad (default)", (2.0 * scale,), 0.0, None, None, {}),
        Row("dense 3x3 convolution", (9.0 * scale,), 0.0, None, None, {}),
    )
    facts = {"shape": [1, 2, 3, 4], "dtype": "float32", "passes": passes}
    return Result("shift", "copy", facts, True, rows, {})


def test_a_report_comes_back_as_it_was_kept(report, tmp_path):
    path = report.save(tmp_path)
    assert path == tmp_path / "training-cpu.json"
    assert load_report(tmp_path, "training", "cpu") == report
    assert load_report(tmp_path, "training", "gpu") is None
    assert (tmp_path / "training-cpu.md").read_text() == markdown(report)


def test_numbers_are_kept_to_five_digits():
    assert rounded({"a": [0.123456789, 7], "b": None}) == {"a": [0.12346, 7], "b": None}


def test_markdown_says_everything(report):
    """Ratios of the first table: 3/2 and 5/2, so median 2, quartiles 1.75 and 2.25."""
    (first, *others) = report.tables
    first = dataclasses.replace(first, left_out={"worst": "ValueError: no"})
    text = markdown(dataclasses.replace(report, tables=(first, *others)))
    assert text.startswith("# training, cpu\n")
    assert "`python -m benchmarks training` on 2 cores of Abacus; commit" in text
    assert "jax 0.10.2" in text
    assert "## a step, E = 3" in text
    assert "| shiftjax | 2000 | 1.00 | 1.00 - 1.00 | 9.0 | 2 |" in text
    assert "| the same in PyTorch | 4000 | 2.00 | 1.75 - 2.25 | 1.0 |  |" in text
    assert "Left out worst: ValueError: no" in text
    assert "Rounds: 2." in text


def test_peaks_have_a_column_where_there_are_any(report):
    rows = tuple(
        dataclasses.replace(row, peak_bytes=5_000_000) for row in report.tables[0].rows
    )
    table = dataclasses.replace(report.tables[0], rows=rows, in_turns=False)
    text = markdown(dataclasses.replace(report, tables=(table,)))
    assert "| memory, MB | peak of the device, MB |" in text
    assert "| shiftjax | 2000 | 1.00 |  | 9.0 | 2 | 5 |" in text


def test_the_first_row_stands_for_a_base_that_was_left_out():
    left = result(3, (2.0, 2.0), (3.0, 5.0), base="nothing")
    assert left.ratios()["ResNet-20"].median == 2


def test_expansions_stand_side_by_side(report):
    """Sorted by E; PyTorch's rounds of E = 3 lie a quarter of 2 from their median."""
    text, spread = pivot(list(report.tables))
    assert text == (
        "| relative to ShiftResNet-20 | E = 1 | E = 3 |\n|---|--:|--:|\n"
        "| ResNet-20 | 4.0 | 2.0 |\n| ShiftResNet-20 in PyTorch | 0.5 | 2.0 |"
    )
    assert spread == 0.125


def test_update_writes_between_the_markers(report, tmp_path):
    report.save(tmp_path)
    text = update_section(PAGE, speed_page(tmp_path))
    assert text.startswith("before\n<!-- speed: made by x -->\n")
    assert text.endswith("\n<!-- end of speed -->\nafter\n")
    assert "old" not in text
    assert "### Training step of ShiftResNet-20, 128 images, float32\n" in text
    assert "| ShiftResNet-20 in PyTorch | 0.5 | 2.0 |" in text
    assert update_section(text, speed_page(tmp_path)) == text
    assert max(map(len, text.splitlines())) <= 88


def test_command_machine_and_spread_stand_under_a_table_once(report, tmp_path):
    """And the commit stands in neither heading nor caption."""
    report.save(tmp_path)
    dataclasses.replace(report, benchmark="inference").save(tmp_path)
    text = speed_page(tmp_path)
    assert "0123456789ab" not in text
    for heading in ("Training step", "Inference"):
        part = " ".join(text.split(f"### {heading} of")[1].partition("###")[0].split())
        origin = (
            "Measured by `python -m benchmarks training` on 2 cores of Abacus. "
            "The quartiles lie within 12% of the medians."
        )
        assert part.endswith(f"| {origin}")
        assert part.count("Abacus") == 1


def test_the_summary_takes_its_numbers_from_the_table_of_one_expansion(
    report, tmp_path
):
    """E = 3: PyTorch's rounds are 3/2 and 5/2 of ours, its ResNet's 2 and 1."""
    resnet = Row("ResNet-20 in PyTorch", (4.0, 2.0), 1.0, None, None, {})
    tables = tuple(
        dataclasses.replace(table, rows=(*table.rows, resnet))
        for table in report.tables
    )
    dataclasses.replace(report, tables=tables).save(tmp_path)
    text = " ".join(speed_summary(tmp_path).split())
    assert text.startswith(
        "On 2 cores of Abacus, a training step of ShiftResNet-20 (E = 3, 128 images, "
        "float32) takes 2.0 times as long in PyTorch as in shiftjax, and that of "
        "ResNet-20 in PyTorch takes 1.5 times as long."
    )
    assert text.endswith("](docs/speed.png)")


def test_the_summary_has_no_sentence_without_rows_of_pytorch(report, tmp_path):
    report.save(tmp_path)
    assert speed_summary(tmp_path).startswith("![")


def test_floor_of_a_table():
    """A copy of 32e6 bytes in 4 ms: 16e6 bytes take 2 ms, 1e9 products of 1e12/s 1."""
    rows = (
        Row("copy, in a cache", (5e-4,), 0.0, None, None, {"bytes": 8_000_000}),
        Row("copy of memory", (4e-3,), 0.0, None, None, {"bytes": 32_000_000}),
        Row("block", (6e-3,), 0.0, None, None, {}),
    )
    facts = {"floor_bytes": 16_000_000, "flops": 10**9, "tflops": 1}
    table = Result("block", "block", facts, True, rows, {})
    assert table.floor() == pytest.approx(2e-3)
    headings, shown = result_cells(table)
    assert headings[-1] == "over the floor, 2 ms"
    assert [row[-1] for row in shown] == ["0.25", "2.00", "3.00"]
    products = dataclasses.replace(table, facts=facts | {"flops": 5 * 10**9})
    assert products.floor() == pytest.approx(5e-3)
    assert dataclasses.replace(table, rows=rows[2:]).floor() is None
    assert dataclasses.replace(table, facts={}).floor() is None


def test_update_without_results_changes_nothing(tmp_path):
    assert update_section(PAGE, speed_page(tmp_path)) == PAGE
    assert update_section(PAGE, speed_summary(tmp_path)) == PAGE


@pytest.mark.parametrize(
    ("name", "make"), [("README.md", speed_summary), ("docs/speed.md", speed_page)]
)
def test_the_pages_agree_with_the_results(name, make):
    page = (ROOT / name).read_text()
    assert "<!-- speed: " in page
    assert update_section(page, make(RESULTS)) == page, (
        "run `python -m benchmarks report`"
    )


def test_the_picture_is_drawn_from_what_there_is(report, tmp_path):
    path = tmp_path / "speed.png"
    assert not draw_speed_figure(tmp_path, path)
    report.save(tmp_path)
    assert draw_speed_figure(tmp_path, path)
    first = path.read_bytes()
    tables = operation("forward", 1), operation("forward + backward", 2)
    Report("shift", "python -m benchmarks shift", MACHINE, tables).save(tmp_path)
    assert draw_speed_figure(tmp_path, path)
    assert path.read_bytes() != first
