"""Comparisons as tables of text: the same for the terminal, Markdown and the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgegen.compare import Comparison, Row, describe, families, headline
from edgegen.metrics import Estimate

Cell = Callable[[Row], str]
Table = tuple[list[str], list[list[str]]]  # columns, rows

FEW = "* of fewer samples than this percentile needs"


def number(value: float) -> str:
    """Three digits that count: 0.0120, 1.20, 12.3, 123, 12,345."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def estimate(found: Estimate | None) -> str:
    """12.3 ±0.2: half the 95 % interval, or all of it where it is wide: 12.3 (7.1 to 21.2).

    A star where it is no valid percentile.
    """
    if found is None:
        return "-"
    text = number(found.value) + ("" if found.valid else "*")
    if found.low is None or found.high is None:
        return text
    if found.high > 1.5 * found.low:
        return f"{text} ({number(found.low)} to {number(found.high)})"
    half = float(f"{(found.high - found.low) / 2:.1g}")  # one digit, and never as 1e+01
    return f"{text} ±{half:g}"


def table(rows: Sequence[Row]) -> Table:
    """The rows of one family; columns that nobody has a value for are left out."""
    text = any("tpot" in row.values for row in rows)
    latency = {"TTFT ms": "ttft", "TPOT ms": "tpot"} if text else {"run ms": "p50"}
    cells: dict[str, Cell] = {"": lambda row: row.name}
    cells |= {title: _value(metric) for title, metric in latency.items()}
    if any(row.against for row in rows):
        cells |= {
            f"{title.removesuffix(' ms')} vs first": _words(metric)
            for title, metric in latency.items()
        }
    cells |= {
        "p90 ms": lambda row: estimate(row.values["p90"]).partition(" ")[0],
        rows[0].rate_unit: lambda row: number(row.values["rate"].value),
        "load ms": _value("load"),
        "cold ms": _value("cold"),
        "peak RSS MB": _change("peak_rss"),
        "size MB": _change("size"),
    }
    if any("energy" in row.values for row in rows):
        cells["energy J"] = _change("energy")
    qualities = {name for row in rows for name in row.values if name.startswith("quality.")}
    cells |= {name.removeprefix("quality."): _value(name) for name in sorted(qualities)}
    return list(cells), [[cell(row) for cell in cells.values()] for row in rows]


def _value(metric: str) -> Cell:
    return lambda row: estimate(row.values.get(metric))


def _change(metric: str) -> Cell:
    """The value, and how much more or less than the first."""

    def cell(row: Row) -> str:
        text, ratio = estimate(row.values.get(metric)), row.ratios.get(metric)
        return f"{text} ({ratio.value - 1:+.0%})" if ratio else text

    return cell


def _words(metric: str) -> Cell:
    return lambda row: headline(row, metric) if row.against else "the first"


def gate_table(comparison: Comparison) -> Table:
    """Every gate and how each row did."""
    rows = [
        [result.gate, result.row, describe(result), "met" if result.met else "MISSED"]
        for result in comparison.gates
    ]
    return ["gate", "", "found", ""], rows


def footnotes(comparison: Comparison) -> list[str]:
    """What has to stand under the tables: stars, notes, and each flag with whose it is."""
    shown = ("p50", "p90", "ttft")
    starred = any(
        not row.values[m].valid for row in comparison.rows for m in shown if m in row.values
    )
    raised: dict[str, list[str]] = {}
    for row in comparison.rows:
        for flag in row.flags:
            raised.setdefault(flag, []).append(row.name)
    count = len(comparison.rows)
    flags = [
        f"{', '.join(names) if len(names) < max(count, 2) else f'all {count}'}: {flag}"
        for flag, names in raised.items()
    ]
    return [*([FEW] if starred else []), *comparison.notes, *flags]


def markdown(comparison: Comparison) -> str:
    """GitHub-flavoured Markdown: a table for each family, the gates, the footnotes."""
    parts = []
    for family, rows in families(comparison).items():
        parts += [f"### {family}", "", *_lines(table(rows)), ""]
    if comparison.gates:
        parts += ["### gates", "", *_lines(gate_table(comparison)), ""]
    notes = footnotes(comparison)
    return "\n".join([*parts, *(f"- {_escape(note)}" for note in notes)]).strip() + "\n"


def _lines(content: Table) -> list[str]:
    columns, rows = content
    rule = ["---" if n == 0 else "---:" for n in range(len(columns))]
    return [f"| {' | '.join(map(_escape, row))} |" for row in (columns, rule, *rows)]


def _escape(text: str) -> str:
    """A cell or line that cannot break the table or become markup."""
    for mark in "\\|<>*`":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")
