"""Comparisons as tables of text: the same for the terminal, Markdown and the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgegen import noise
from edgegen.choice import Best
from edgegen.compare import Comparison, Row, describe, families
from edgegen.metrics import Estimate
from edgegen.profile import SAMPLES_FOR
from edgegen.verdict import headline

Cell = Callable[[Row], str]
Table = tuple[list[str], list[list[str]]]  # columns, rows

FEW = f"* the median of fewer than {SAMPLES_FOR[50]} samples"
NO_P90 = f"p90 is left out where it has fewer than {SAMPLES_FOR[90]} samples"
FRONT = "◆"
WORDS = {"p50": "time", "ttft": "TTFT", "peak_rss": "peak RSS"}


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
        "p90 ms": _tail,
        rows[0].rate_unit: lambda row: number(row.values["rate"].value),
        "load ms": _value("load"),
        "cold ms": _value("cold"),
        "peak RSS MB": _change("peak_rss"),
        "size MB": _change("size"),
    }
    if any("energy" in row.values for row in rows):
        cells[f"J/{rows[0].rate_unit.removesuffix('s/s')}"] = _energy
    qualities = {name for row in rows for name in row.values if name.startswith("quality.")}
    cells |= {name.removeprefix("quality."): _value(name) for name in sorted(qualities)}
    if any(row.drift for row in rows):
        cells["drift"] = _drift
    if len(rows) > 1:
        cells["Pareto"] = lambda row: "" if row.beaten_by else FRONT
    return list(cells), [[cell(row) for cell in cells.values()] for row in rows]


def _value(metric: str) -> Cell:
    return lambda row: estimate(row.values.get(metric))


def _change(metric: str) -> Cell:
    """The value, and how much more or less than the first."""

    def cell(row: Row) -> str:
        text, ratio = estimate(row.values.get(metric)), row.ratios.get(metric)
        return f"{text} ({ratio.value - 1:+.0%})" if ratio else text

    return cell


def _tail(row: Row) -> str:
    """p90, and what it is surely not above: 12.3 ≤13.1; a dash of too few samples."""
    found = row.values["p90"]
    if not found.valid:
        return "-"
    return number(found.value) + (f" ≤{number(found.at_most)}" if found.at_most else "")


def _energy(row: Row) -> str:
    """Never without how it was had: 1.20 measured, 0.80 (-33%) modelled."""
    kinds = [kind for kind in ("measured", "modelled") if kind in row.energy_source]
    return " ".join([_change("energy")(row), *(kinds or [row.energy_source])]).strip()


def _drift(row: Row) -> str:
    """The output furthest from torch: its SQNR, else its largest error; said when it is too far."""
    if row.drift is None:
        return "-"
    error, sqnr = row.drift.numbers()
    text = f"{sqnr} dB" if row.drift.sqnr_db is not None else error
    return text if row.drift.ok else f"{text} too far"


def _words(metric: str) -> Cell:
    return lambda row: headline(row, metric) if row.against else "the first"


def best_table(best: Best) -> Table:
    """What the budget picks, why, and why none of the others."""
    rows = [[best.row, "PICK", best.why]] if best.row else []
    rows += [[one.row, "", one.why] for one in best.excluded]
    return ["", best.budget, "why"], rows


def pick(best: Best) -> str:
    """The answer to a budget in one line."""
    if not best.row:
        return f"nothing fits {best.budget}"
    return f"pick {best.bundle} ({best.precision}) with {best.engine} on {best.device}: {best.why}"


def gate_table(comparison: Comparison) -> Table:
    """Every gate and how each row did."""
    rows = [
        [result.gate, result.row, describe(result), "met" if result.met else "MISSED"]
        for result in comparison.gates
    ]
    return ["gate", "", "found", ""], rows


def footnotes(comparison: Comparison) -> list[str]:
    """What has to stand under the tables: noise floor, stars, notes, each flag with whose it is."""
    rows = comparison.rows
    starred = any(
        not row.values[m].valid for row in rows for m in ("p50", "ttft") if m in row.values
    )
    raised: dict[str, list[str]] = {}
    for row in rows:
        for flag in row.flags:
            raised.setdefault(flag, []).append(row.name)
    count = len(rows)
    flags = [
        f"{', '.join(names) if len(names) < max(count, 2) else f'all {count}'}: {flag}"
        for flag, names in raised.items()
    ]
    return [
        *map(noise.describe, comparison.noise),
        *([FEW] if starred else []),
        *([NO_P90] if any(not row.values["p90"].valid for row in rows) else []),
        *(_front(family, over) for family, over in comparison.fronts.items() if over),
        *comparison.notes,
        *flags,
    ]


def _front(family: str, over: Sequence[str]) -> str:
    named = ", ".join(WORDS.get(m, m.removeprefix("quality.")) for m in over)
    return f"{family}: {FRONT} on the Pareto front of {named}: none is as good at all of them"


def markdown(comparison: Comparison) -> str:
    """GitHub-flavoured Markdown: a table for each family, the gates, the footnotes."""
    parts = []
    for family, rows in families(comparison).items():
        parts += [f"### {family}", ""]
        if comparison.verdicts.get(family):
            parts += [f"**{_escape(comparison.verdicts[family])}**", ""]
        parts += [*_lines(table(rows)), ""]
    if comparison.best:
        parts += ["### best", "", f"**{_escape(pick(comparison.best))}**", ""]
        parts += [*_lines(best_table(comparison.best)), ""]
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
