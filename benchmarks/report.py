"""Saves results as JSON and tables, and writes them into README.md and docs/."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cases import Table
from benchmarks.turns import Measured, Ratio, Row, ratio
from train.markdown import grid

PLATFORMS = ("cpu", "gpu", "tpu")
SECTION = re.compile(r"(<!-- speed: .*? -->\n).*?(<!-- end of speed -->)", re.DOTALL)
FIGURE = "![Relative time of a training step and of the operation](docs/speed.png)"
DEPTH = 20  # of the networks on the pages
EXPANSION = 3  # of the network in the README's sentences
TITLES = {"training": "Training step", "inference": "Inference"}  # by benchmark


@dataclasses.dataclass(frozen=True)
class Result:
    """The measurement of a table, as it is saved.

    Attributes:
      title: description of the table.
      base: name of the case that the others are compared with; if it was left out, the
        first row is used.
      facts: facts by which the table is found.
      in_turns: True if the cases took turns, so that times of a round are comparable.
      rows: a row per case.
      left_out: the reasons, by the name of each case that has no row.
    """

    title: str
    base: str
    facts: Mapping[str, Any]
    in_turns: bool
    rows: tuple[Row, ...]
    left_out: Mapping[str, str]

    @classmethod
    def of(cls, table: Table, measured: Measured) -> "Result":
        """Makes the result of a table."""
        return cls(
            table.title,
            table.base,
            table.facts,
            table.processes != "alone",
            tuple(measured.rows),
            measured.left_out,
        )

    def ratios(self) -> dict[str, Ratio]:
        """Returns the time of each row relative to the base, by name."""
        bases = [row for row in self.rows if row.name == self.base]
        return {
            row.name: ratio(row, (bases or self.rows)[0], in_turns=self.in_turns)
            for row in self.rows
        }

    def floor(self) -> float | None:
        """Returns a lower bound of the seconds, from bytes and products.

        Bytes move at the speed of the largest copy of the table, which no cache holds,
        products are computed at the "tflops" of its facts. Without these facts or a
        copy, the result is None.
        """
        copies = [row for row in self.rows if "bytes" in row.facts]
        if "floor_bytes" not in self.facts or not copies:
            return None
        largest = max(copies, key=lambda row: row.facts["bytes"])
        bandwidth = largest.facts["bytes"] / largest.seconds
        products = self.facts["flops"] / (1e12 * self.facts["tflops"])
        return max(self.facts["floor_bytes"] / bandwidth, products)

    def row(self, name: str) -> Row | None:
        """Returns the row of that name, if there is one."""
        return next((row for row in self.rows if row.name == name), None)


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of a benchmark.

    Attributes:
      benchmark: name of the benchmark.
      command: the command that measured it.
      machine: facts about the machine and the versions.
      tables: the tables, in the order of their measurement.
    """

    benchmark: str
    command: str
    machine: Mapping[str, Any]
    tables: tuple[Result, ...]

    def save(self, folder: Path) -> Path:
        """Writes BENCHMARK-PLATFORM.json and .md.

        Returns:
          The path of the JSON.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.benchmark}-{self.machine['platform']}.json"
        values = rounded(dataclasses.asdict(self))
        path.write_text(json.dumps(values, indent=1) + "\n")
        path.with_suffix(".md").write_text(markdown(self))
        return path

    @classmethod
    def load(cls, path: Path) -> "Report":
        """Reads a report that `save` has written."""
        values = json.loads(path.read_text())
        tables = []
        for table in values.pop("tables"):
            rows = [row | {"times": tuple(row["times"])} for row in table.pop("rows")]
            tables.append(Result(**table, rows=tuple(Row(**row) for row in rows)))
        return cls(**values, tables=tuple(tables))

    def find(self, **facts: Any) -> list[Result]:
        """Returns the tables with these facts."""
        return [t for t in self.tables if facts.items() <= t.facts.items()]


def load_report(folder: Path, benchmark: str, platform: str) -> Report | None:
    """Returns a report of the folder, or None if it does not exist."""
    path = folder / f"{benchmark}-{platform}.json"
    return Report.load(path) if path.exists() else None


def rounded(value: Any) -> Any:
    """Returns a tree with five significant digits of each float."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return (
        [rounded(item) for item in value] if isinstance(value, list | tuple) else value
    )


def result_cells(result: Result) -> tuple[list[str], list[list[str]]]:
    """Returns headings and rows of a table, as text."""
    headings = ["case", "ms", f"over {result.base}", "quartiles", "first call, s"]
    headings.append("memory, MB")
    peaks = any(row.peak_bytes is not None for row in result.rows)
    floor, ratios, rows = result.floor(), result.ratios(), []
    for row in result.rows:
        compared = ratios[row.name]
        quartiles = ""
        if compared.low is not None and compared.high is not None:
            quartiles = f"{compared.low:.2f} - {compared.high:.2f}"
        rows.append(
            [
                row.name,
                f"{1e3 * row.seconds:.4g}",
                f"{compared.median:.2f}",
                quartiles,
                f"{row.first_call:.1f}",
                megabytes(row.memory_bytes),
            ]
        )
        rows[-1] += [megabytes(row.peak_bytes)] if peaks else []
        rows[-1] += [f"{row.seconds / floor:.2f}"] if floor else []
    headings += ["peak of the device, MB"] * peaks
    headings += [f"over the floor, {1e3 * floor:.4g} ms"] if floor else []
    return headings, rows


def megabytes(count: int | None) -> str:
    """Returns a number of bytes in megabytes; an empty text for None."""
    return "" if count is None else f"{count / 1e6:.4g}"


def machine_name(report: Report) -> str:
    """Returns the name of the machine."""
    machine = report.machine
    if machine["platform"] == "cpu":
        return f"{machine['cores']} cores of {machine['cpu']}"
    return str(machine["device"])


def markdown(report: Report) -> str:
    """Returns all tables of a report in Markdown."""
    machine = report.machine
    versions = [
        f"{name} {machine[name]}"
        for name in ("commit", "date", "python", "jax", "flax", "torch")
        if machine.get(name)
    ]
    parts = [
        f"# {report.benchmark}, {machine['platform']}",
        f"`{report.command}` on {machine_name(report)}; {', '.join(versions)}.",
    ]
    for result in report.tables:
        count = max((len(row.times) for row in result.rows), default=0)
        parts += [
            f"## {result.title}",
            grid(*result_cells(result)),
            f"Rounds: {count}.",
        ]
        parts += [f"Left out {name}: {why}" for name, why in result.left_out.items()]
    return "\n\n".join(parts) + "\n"


# The sections of README.md and docs/speed.md.


def update_section(page: str, body: str) -> str:
    """Returns a page with a new body between its markers.

    Args:
      page: the text, with or without the markers.
      body: Markdown; if it is empty, the text does not change.
    """
    if not body:
        return page
    return SECTION.sub(lambda found: f"{found[1]}\n{body}\n\n{found[2]}", page)


def speed_page(folder: Path) -> str:
    """Returns the section of docs/speed.md: one table per benchmark and batch size.

    Args:
      folder: folder of the results; without any, the section is empty.
    """
    parts = [part for report in timed(folder) for part in comparison(report)]
    return "\n\n".join(parts)


def speed_summary(folder: Path) -> str:
    """Returns the README's section: one sentence per benchmark, and the figure.

    Args:
      folder: folder of the results; without any, the section is empty.
    """
    reports = timed(folder)
    sentences = " ".join(filter(None, map(sentence, reports)))
    parts = ["\n".join(wrap(sentences))] if sentences else []
    if any(report.benchmark == "training" for report in reports):
        parts.append(FIGURE)
    return "\n\n".join(parts)


def timed(folder: Path) -> list[Report]:
    """Returns the reports of a folder that the pages show, in order."""
    reports = (
        load_report(folder, name, platform) for platform in PLATFORMS for name in TITLES
    )
    return [report for report in reports if report is not None]


def sentence(report: Report) -> str:
    """Returns a benchmark's main result as text; empty without rows of PyTorch."""
    for table in report.find(depth=DEPTH, expansion=EXPANSION):
        ratios = table.ratios()
        same = ratios.get("the same in PyTorch")
        resnet = ratios.get(f"ResNet-{DEPTH} in PyTorch")
        if same is not None and resnet is not None:
            what = TITLES[report.benchmark].lower()
            article = "a " if report.benchmark == "training" else ""
            facts = f"E = {EXPANSION}, {images(table)}, {table.facts['dtype']}"
            return (
                f"On {machine_name(report)}, {article}{what} of ShiftResNet-{DEPTH} "
                f"({facts}) takes {same.median:.1f} times as long in PyTorch as in "
                f"shiftjax, and that of ResNet-{DEPTH} in PyTorch takes "
                f"{resnet.median:.1f} times as long."
            )
    return ""


def comparison(report: Report) -> list[str]:
    """Returns the headings, the tables and their origins of one benchmark."""
    parts = []
    kinds = {
        (table.facts["dtype"], table.facts["batch_size"]): None
        for table in report.find(depth=DEPTH)
    }
    for dtype, batch_size in kinds:
        found = report.find(depth=DEPTH, dtype=dtype, batch_size=batch_size)
        table, spread = pivot(found)
        what = f"{TITLES[report.benchmark]} of ShiftResNet-{DEPTH}"
        origin = (
            f"Measured by `{report.command}` on {machine_name(report)}. The quartiles "
            f"lie within {spread:.0%} of the medians."
        )
        parts += [f"### {what}, {images(found[0])}, {dtype}", table]
        parts.append("\n".join(wrap(origin)))
    return parts


def images(table: Result) -> str:
    """Returns the batch size of a table as text."""
    count = table.facts["batch_size"]
    return "1 image" if count == 1 else f"{count} images"


def pivot(tables: list[Result]) -> tuple[str, float]:
    """Puts tables of several expansions side by side.

    Returns:
      Markdown with a column per table; and the largest distance of a quartile from its
      median, as a share of it.
    """
    tables = sorted(tables, key=lambda table: table.facts["expansion"])
    names = dict.fromkeys(
        row.name for table in tables for row in table.rows if row.name != table.base
    )
    own = f"ShiftResNet-{DEPTH}"
    lines = [[name.replace("the same", own)] for name in names]
    spread = 0.0
    for table in tables:
        ratios = table.ratios()
        for name, line in zip(names, lines, strict=True):
            compared = ratios.get(name)
            line.append("" if compared is None else f"{compared.median:.1f}")
            if compared and compared.low is not None and compared.high is not None:
                distances = (
                    compared.median - compared.low,
                    compared.high - compared.median,
                )
                spread = max(spread, max(distances) / compared.median)
    headings = [f"E = {table.facts['expansion']}" for table in tables]
    return grid([f"relative to ShiftResNet-{DEPTH}", *headings], lines), spread


def wrap(text: str, width: int = 88) -> list[str]:
    """Breaks a paragraph into lines; code in backquotes is one word."""
    lines = [""]
    for word in re.findall(r"\S*`[^`]*`\S*|\S+", text):
        if len(lines[-1]) + len(word) + 1 > width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
