"""What stands on the page, part by part; each gives back HTML, or "" where it has nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from edgegen import compare, rooftables, tables
from edgegen.bundle import worst
from edgegen.charts import latency, pareto
from edgegen.charts import operators as operator_charts
from edgegen.charts import roofline as roofline_charts
from edgegen.charts.look import Figure
from edgegen.compare import Comparison, Row
from edgegen.profile import Profile
from edgegen.report import markup
from edgegen.roofs import Roofline

OPERATORS = 12  # of each profile, the most expensive
TITLES = {"gpt": "Text", "vae": "VAE", "gan": "GAN"}
ASK = "Ask for one with: edgegen profile BUNDLE --roofline"
SILENT = (
    *("clock_mhz_start", "clock_mhz_end", "free_memory_mb", "notes"),
    *("heat_c_start", "heat_c_end"),
)


def heading(comparison: Comparison, title: str) -> str:
    """The verdict in one sentence, or in one for each family."""
    said = {family: text for family, text in comparison.verdicts.items() if text}
    if len(said) == 1 and len(comparison.verdicts) == 1:
        return "".join(f"<h1>{markup.coloured(text)}</h1>" for text in said.values())
    lines = (f"<b>{escape(_title(family))}</b> {markup.coloured(said[family])}" for family in said)
    verdicts = "".join(f'<p class="verdict">{line}</p>' for line in lines)
    return f"<h1>{escape(title)}</h1>{verdicts}"


def _title(family: str) -> str:
    return TITLES.get(family, family)


def families(comparison: Comparison, profiles: Mapping[str, Profile]) -> list[str]:
    """Each family: its table, and the charts of its samples."""
    return [
        _family(rows, [profiles[row.name] for row in rows], comparison.fronts[family])
        for family, rows in compare.families(comparison).items()
    ]


def _family(rows: list[Row], profiles: list[Profile], over: Sequence[str]) -> str:
    request = profiles[0].request
    aside = f"batch {request.batch}"
    if request.new_tokens:
        aside += f", {request.prompt_tokens} tokens read, {request.new_tokens} written"
    title = _title(rows[0].family)
    columns, lines = tables.table(rows)
    content = (
        markup.table((["profile", *columns[1:]], lines), f"{title}: figures", numbered=True)
        + (markup.key(row.name for row in rows) if len(rows) > 1 else "")
        + markup.figures(_charts(rows, profiles, over))
    )
    return markup.section(title, content, aside)


def _charts(rows: list[Row], profiles: list[Profile], over: Sequence[str]) -> list[Figure]:
    text = any("tpot" in row.values for row in rows)
    kinds = {"first": "time to first token", "later": "time per output token"}
    shown = kinds if text else {"first": "time of a run"}
    found = [latency.strips(rows, profiles, which, what) for which, what in shown.items()]
    found += [latency.shares(rows, profiles, which, what) for which, what in shown.items()]
    if all(len(step) > 1 for profile in profiles for step in profile.steps_ms):
        found.append(latency.positions(rows, profiles))
    if len(rows) > 1:
        names = {"ttft": " TTFT", "tpot": " TPOT"} if text else {"p50": ""}
        found.append(latency.ratios(rows, names))
    return found + pareto.figures(rows, over)


def gates(comparison: Comparison) -> str:
    if not comparison.gates:
        return ""
    columns = ["gate", "profile", "found", "state"]
    content = markup.table((columns, tables.gate_table(comparison)[1]), "Gates", prose=True)
    return markup.section("Gates", content)


def best(comparison: Comparison) -> str:
    """Which one the budget picks, and why none of the others."""
    if not comparison.best:
        return ""
    said = f'<p class="lead">{escape(tables.pick(comparison.best))}</p>'
    shown = ["profile", "pick", "why"], tables.best_table(comparison.best)[1]
    content = markup.table(shown, "Which to take", prose=True)
    return markup.section("Which to take", said + content, comparison.best.budget)


def operators(comparison: Comparison, profiles: Mapping[str, Profile]) -> str:
    """The shares by kind as a chart, and the most expensive of each profile as tables."""
    parts = []
    for family, rows in compare.families(comparison).items():
        mine = {row.name: profiles[row.name] for row in rows}
        timed = {name: one for name, one in mine.items() if operator_charts.by_kind(one)}
        if not timed:
            continue
        if len(comparison.verdicts) > 1:
            parts.append(f"<h3>{escape(_title(family))}</h3>")
        parts.append(markup.key(operator_charts.kinds(timed), "k"))
        parts.append(markup.figure(operator_charts.shares(timed)))
        parts += [_costliest(name, one) for name, one in timed.items()]
        parts += [
            f'<p class="absent">{escape(name)}: its engine did not say.</p>'
            for name in mine
            if name not in timed
        ]
    return markup.section("Where the time goes", "".join(parts))


def rooflines(comparison: Comparison, profiles: Mapping[str, Profile]) -> str:
    """Why each is as slow as it is, and what would help; a word where nobody asked for it."""
    parts = []
    for rows in compare.families(comparison).values():
        found = {row.name: one for row in rows if (one := profiles[row.name].roofline)}
        if not found:
            continue
        if len(rows) > 1:
            parts.append(markup.key(row.name for row in rows))
        parts += [markup.figure(chart) for chart in roofline_charts.figures(rows, found)]
        parts += [_why(name, one) for name, one in found.items()]
    absent = [name for name, one in profiles.items() if not one.roofline]
    if absent:
        whose = "none of these profiles" if not parts else f"not {', '.join(absent)}"
        parts.append(f'<p class="absent">Has a roofline: {escape(whose)}. {ASK}</p>')
    return markup.section("Why it is slow", "".join(parts), "time against what the device can do")


def _why(name: str, found: Roofline) -> str:
    columns, lines = rooftables.roofs(found)
    content = markup.table((["part", *columns[1:]], lines), f"{name}: roofline")
    notes = "".join(f"<li>{escape(note)}</li>" for note in rooftables.footnotes(found))
    return (
        f"<p><b>{escape(name)}</b> {escape(found.sentence)}.</p>"
        f"<details><summary>Its parts, and what changes would buy</summary>{content}"
        f"<ul>{notes}</ul></details>"
    )


def _costliest(name: str, profile: Profile) -> str:
    total = sum(operator.total_ms for operator in profile.operators)
    rows = [
        [o.kind, o.device, o.precision, str(o.calls), f"{o.total_ms / total:.1%}", o.name]
        for o in sorted(profile.operators, key=lambda o: -o.total_ms)[:OPERATORS]
    ]
    columns = ["operator", "device", "kernel", "calls", "share of time", "costliest node"]
    inner = markup.table((columns, rows), f"{name}: operators")
    most = f"<span>{escape(operator_charts.most(profile))}</span>"
    return f"<details><summary>{escape(name)} {most}</summary>{inner}</details>"


def drifts(comparison: Comparison, profiles: Mapping[str, Profile]) -> str:
    """One line a profile: how many outputs are within their limits, and the worst of them."""
    rows = []
    for row in comparison.rows:
        found = profiles[row.name].drifts
        if not found:
            continue
        within, far = sum(drift.ok for drift in found), worst(found)
        error, sqnr = far.numbers()
        state = "ok" if within == len(found) else "too far"
        place = f"{far.graph} {far.case} {far.output}"
        count = f"{within} of {len(found)}"
        rows.append([row.name, count, place, sqnr, error, far.rule, state])
    columns = ["profile", "within limits", "the worst", "its SQNR dB", "largest error"]
    if not rows:
        return ""
    content = markup.table(([*columns, "its limit", "state"], rows), "Drift from the reference")
    return markup.section("Drift from the reference", content, "in fp32")


def doubts(comparison: Comparison) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in tables.footnotes(comparison))
    return markup.section("Keep in mind", f"<ul>{notes}</ul>" if notes else "")


def environment(profiles: Sequence[Profile]) -> str:
    """Each fact once; where profiles differ, all that they say."""
    facts: dict[str, list[str]] = {}
    for profile in profiles:
        own = {
            profile.engine: profile.engine_version,
            "threads asked for": profile.threads or "all",
        }
        for key, value in (profile.environment | own).items():
            said = _plain(value)
            if key not in SILENT and said and said not in facts.setdefault(key, []):
                facts[key].append(said)
    told = {key.replace("_", " "): "; ".join(said[:6]) for key, said in facts.items() if said}
    return markup.section("Where it was measured", markup.facts(told))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else tables.number(value)
    return "" if value is None else str(value)


def commands(typed: Iterable[str]) -> str:
    lines = "\n".join(typed)
    return markup.section("Made with", f'<pre tabindex="0">{escape(lines)}</pre>' if lines else "")
