"""Keeps results as JSON and tables, and brings the README's figures up to date."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import Table
from benchmarks.turns import Measured, Ratio, Row, ratio
from train.markdown import grid

PLATFORMS = ("cpu", "gpu", "tpu")
SECTION = re.compile(r"(<!-- speed: .*? -->\n).*?(<!-- end of speed -->)", re.DOTALL)
PICTURE = "![Training steps and the operation, in time over others](docs/speed.png)"
DEPTH = 20  # of the networks in the README's tables


@dataclasses.dataclass(frozen=True)
class Result:
    """A table of a benchmark, as it is kept.

    Attributes:
      title: what all cases have in common.
      base: name of the case that the others are compared with; where it was left out,
        the first row stands for it.
      facts: by which it is found.
      in_turns: whether the cases took turns, so that times of a round compare.
      rows: one a case.
      left_out: why, by the name of each case that has no row.
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
        """Returns each row's time over the base's, by name."""
        bases = [row for row in self.rows if row.name == self.base]
        return {
            row.name: ratio(row, (bases or self.rows)[0], in_turns=self.in_turns)
            for row in self.rows
        }

    def floor(self) -> float | None:
        """Returns the least seconds that the table's bytes and products take.

        Bytes move as fast as in the fastest copy of the table, products are computed at
        the "tflops" of its facts; None for a table without these facts, or a copy.
        """
        copies = [row for row in self.rows if "bytes" in row.facts]
        if "floor_bytes" not in self.facts or not copies:
            return None
        bandwidth = max(row.facts["bytes"] / row.seconds for row in copies)
        products = self.facts["flops"] / (1e12 * self.facts["tflops"])
        return max(self.facts["floor_bytes"] / bandwidth, products)

    def row(self, name: str) -> Row | None:
        """Returns the row of that name, if there is one."""
        return next((row for row in self.rows if row.name == name), None)


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of a benchmark.

    Attributes:
      benchmark: its name.
      command: that made it.
      machine: what the numbers depend on.
      tables: in the order in which they were measured.
    """

    benchmark: str
    command: str
    machine: Mapping[str, Any]
    tables: tuple[Result, ...]

    def save(self, folder: Path) -> Path:
        """Writes BENCHMARK-PLATFORM.json, and .md beside it.

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
        """Reads what `save` has written."""
        values = json.loads(path.read_text())
        tables = []
        for table in values.pop("tables"):
            rows = [row | {"times": tuple(row["times"])} for row in table.pop("rows")]
            tables.append(Result(**table, rows=tuple(Row(**row) for row in rows)))
        return cls(**values, tables=tuple(tables))

    def find(self, **facts: Any) -> list[Result]:
        """Returns the tables with these facts."""
        return [t for t in self.tables if facts.items() <= t.facts.items()]


def load(folder: Path, benchmark: str, platform: str) -> Report | None:
    """Returns a report of the folder, if it is there."""
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


def cells(result: Result) -> tuple[list[str], list[list[str]]]:
    """Returns headings and rows of a table, for the eye."""
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
    """Returns a number of bytes as one of megabytes; nothing for None."""
    return "" if count is None else f"{count / 1e6:.4g}"


def place(report: Report) -> str:
    """Returns the machine in words."""
    machine = report.machine
    if machine["platform"] == "cpu":
        return f"{machine['cores']} cores of {machine['cpu']}"
    return str(machine["device"])


def markdown(report: Report) -> str:
    """Returns all tables of a report."""
    machine = report.machine
    versions = [
        f"{name} {machine[name]}"
        for name in ("commit", "date", "python", "jax", "flax", "torch")
        if machine.get(name)
    ]
    parts = [
        f"# {report.benchmark}, {machine['platform']}",
        f"`{report.command}` on {place(report)}; {', '.join(versions)}.",
    ]
    for result in report.tables:
        count = max((len(row.times) for row in result.rows), default=0)
        parts += [f"## {result.title}", grid(*cells(result)), f"Rounds: {count}."]
        parts += [f"Left out {name}: {why}" for name, why in result.left_out.items()]
    return "\n\n".join(parts) + "\n"


# The README.


def update(readme: str, folder: Path) -> str:
    """Returns the README with the section between its markers made from results.

    Args:
      readme: the text.
      folder: of the results; without any the text stays as it is.
    """
    reports = [
        (report, what)
        for platform in PLATFORMS
        for name, what in (("training", "Training step"), ("inference", "Inference"))
        if (report := load(folder, name, platform)) is not None
    ]
    if not reports:
        return readme
    origins = list(zip(*(origin(report) for report, _ in reports), strict=True))
    same = [len(set(each)) == 1 for each in origins]
    shared = ", ".join(each[0] for each, one in zip(origins, same, strict=True) if one)
    intro = "The time of others over that of shiftjax"
    parts = [f"{intro}; {shared}." if shared else f"{intro}."]
    for report, what in reports:
        own = [part for part, one in zip(origin(report), same, strict=True) if not one]
        parts += comparison(report, what, own)
    if any(report.benchmark == "training" for report, _ in reports):
        parts.append(PICTURE)
    body = "\n\n".join(
        part if "|" in part or part == PICTURE else "\n".join(wrap(part))
        for part in parts
    )
    return SECTION.sub(lambda found: f"{found[1]}\n{body}\n\n{found[2]}", readme)


def origin(report: Report) -> tuple[str, str]:
    """Returns the machine and the commit of a report, in words."""
    return place(report), f"commit {report.machine.get('commit') or 'unknown'}"


def comparison(report: Report, what: str, own: Sequence[str]) -> list[str]:
    """Returns the README's captions and tables of one benchmark.

    Args:
      report: of the benchmark.
      what: it times.
      own: machine or commit, where other benchmarks have others.
    """
    parts = []
    kinds = {
        (table.facts["dtype"], table.facts["batch_size"]): None
        for table in report.find(depth=DEPTH)
    }
    for dtype, batch_size in kinds:
        found = report.find(depth=DEPTH, dtype=dtype, batch_size=batch_size)
        table, spread = pivot(found)
        images = "1 image" if batch_size == 1 else f"{batch_size} images"
        facts = [f"`{report.command}`", *own, f"quartiles within {spread:.0%}"]
        caption = f"{what} of ShiftResNet-{DEPTH}, {images}, {dtype}"
        parts += [f"{caption} ({'; '.join(facts)}):", table]
    return parts


def pivot(tables: list[Result]) -> tuple[str, float]:
    """Puts tables of several expansions side by side.

    Returns:
      Markdown, a column a table; and the largest distance of a quartile from its
      median, as a share of it.
    """
    tables = sorted(tables, key=lambda table: table.facts["expansion"])
    names = dict.fromkeys(
        row.name for table in tables for row in table.rows if row.name != table.base
    )
    rows = [[name] for name in names]
    spread = 0.0
    for table in tables:
        ratios = table.ratios()
        for row in rows:
            compared = ratios.get(row[0])
            row.append("" if compared is None else f"{compared.median:.1f}")
            if compared and compared.low is not None and compared.high is not None:
                distances = (
                    compared.median - compared.low,
                    compared.high - compared.median,
                )
                spread = max(spread, max(distances) / compared.median)
    headings = [f"E = {table.facts['expansion']}" for table in tables]
    return grid(["", *headings], rows), spread


def wrap(text: str, width: int = 88) -> list[str]:
    """Breaks a paragraph into lines, code in backquotes being one word."""
    lines = [""]
    for word in re.findall(r"\S*`[^`]*`\S*|\S+", text):
        if len(lines[-1]) + len(word) + 1 > width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
