"""A comparison as one HTML file: no script, no other file, nothing fetched; light and dark."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from edgegen import __version__, plots, records
from edgegen.bundle import worst
from edgegen.compare import Comparison, Row, families
from edgegen.metrics import FASTER
from edgegen.profile import Profile
from edgegen.tables import Table, footnotes, gate_table, number, table
from edgegen.verdict import headline

OPERATORS = 12  # of each profile, the most expensive
TITLES = {"gpt": "Text", "vae": "VAE", "gan": "GAN"}
SILENT = (
    *("clock_mhz_start", "clock_mhz_end", "free_memory_mb", "notes"),
    *("heat_c_start", "heat_c_end"),
)


def write_html(
    comparison: Comparison,
    profiles: Sequence[Profile],
    path: Path | str,
    *,
    pictures: Mapping[str, bytes] | None = None,
    texts: Mapping[str, str] | None = None,
    commands: Iterable[str] = (),
    title: str = "EdgeGen report",
) -> None:
    """Write the page: what was compared, plots of the raw samples, operators, doubts, environment.

    `pictures` are PNG files by caption, `texts` what models wrote, `commands` what was typed.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    ordered = _in_order(comparison, profiles)
    body = [
        *(_family(rows, [ordered[row.name] for row in rows]) for rows in _families(comparison)),
        _samples(pictures or {}, texts or {}),
        _gates(comparison),
        _operators(comparison, ordered),
        _drifts(comparison, ordered),
        _doubts(comparison),
        _environment(profiles),
        _commands(commands),
    ]
    page = _template("report.html").substitute(
        title=escape(title),
        subtitle=escape(_subtitle(profiles)),
        version=escape(__version__),
        css=_read("report.css"),
        body="\n".join(filter(None, body)),
    )
    with records.whole(path) as part:
        part.write_text(page, encoding="utf-8")


def _read(name: str) -> str:
    return (resources.files("edgegen") / "templates" / name).read_text(encoding="utf-8")


def _template(name: str) -> Template:
    return Template(_read(name))


def _families(comparison: Comparison) -> list[list[Row]]:
    return list(families(comparison).values())


def _in_order(comparison: Comparison, profiles: Sequence[Profile]) -> dict[str, Profile]:
    """Each row's profile, by the row's name: `compare` keeps the order within a family."""
    left: dict[str, list[Profile]] = {}
    for profile in profiles:
        left.setdefault(profile.family, []).append(profile)
    return {row.name: left[row.family].pop(0) for row in comparison.rows}


def _subtitle(profiles: Sequence[Profile]) -> str:
    where = sorted({profile.device_name for profile in profiles})
    when = sorted({profile.created[:10] for profile in profiles})
    count = f"{len(profiles)} profile{'s' if len(profiles) > 1 else ''}"
    return f"{count} on {', '.join(where)}; {' to '.join(dict.fromkeys((when[0], when[-1])))}"


def _section(heading: str, content: str, aside: str = "") -> str:
    small = f"<small>{escape(aside)}</small>" if aside else ""
    return f"<section>\n<h2>{escape(heading)}{small}</h2>\n{content}\n</section>"


def _family(rows: list[Row], profiles: list[Profile]) -> str:
    """One family: its winner in words, its table, its plots."""
    request = profiles[0].request
    aside = f"batch {request.batch}"
    if request.new_tokens:
        aside += f", {request.prompt_tokens} tokens read, {request.new_tokens} written"
    content = _lead(rows) + _html_table(table(rows), swatches=True) + _plots(rows, profiles)
    return _section(TITLES.get(rows[0].family, rows[0].family), content, aside)


def _lead(rows: list[Row]) -> str:
    """The fastest of the rows that are surely faster than the first, in one sentence."""
    first = rows[0]
    faster = [row for row in rows if row.against and row.ratios["p50"].verdict == FASTER]
    if len(rows) == 1:
        return ""
    if not faster:
        return f'<p class="lead">Nothing here is detectably faster than {escape(first.name)}.</p>'
    best = min(faster, key=lambda row: row.ratios["p50"].value)
    also = []
    for metric, what in (("size", "size"), ("peak_rss", "peak memory")):
        if metric in best.ratios:
            also.append(f"{best.ratios[metric].value:.0%} of the {what}")
    rest = f", with {' and '.join(also)}" if also else ""
    return (
        f'<p class="lead">{escape(best.name)} is <strong>{escape(headline(best))}</strong> '
        f"than {escape(first.name)}{rest}.</p>"
    )


def _html_table(content: Table, *, swatches: bool = False, words: bool = False) -> str:
    columns, rows = content
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = [_line(row, n if swatches else None) for n, row in enumerate(rows)]
    kind = ' class="words"' if words else ""
    return (
        f'<div class="scroll" tabindex="0"><table{kind}><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _line(row: Sequence[str], swatch: int | None) -> str:
    square = ""
    if swatch is not None:
        square = f'<span class="swatch" style="background:var(--c{swatch % plots.COLOURS})"></span>'
    cells = [f'<th scope="row">{square}{escape(row[0])}</th>', *map(_cell, row[1:])]
    return f"<tr>{''.join(cells)}</tr>\n"


def _cell(text: str) -> str:
    """Verdicts in colour; what stands in brackets at the end on a line of its own, small."""
    kind = ""
    if " faster" in text or text in ("met", "ok"):
        kind = ' class="good"'
    elif " slower" in text or text in ("MISSED", "too far"):
        kind = ' class="bad"'
    main, bracket, rest = text.partition(" (")
    if bracket and rest.endswith(")"):
        return f"<td{kind}>{escape(main)}<small>{escape(rest[:-1])}</small></td>"
    return f"<td{kind}>{escape(text)}</td>"


def _plots(rows: list[Row], profiles: list[Profile]) -> str:
    text = any("tpot" in row.values for row in rows)
    kinds = {"first": "time to first token", "later": "time per output token"}
    figures = [
        (plots.latency(rows, profiles, which, what), f"{what.capitalize()}: every sample, {_BOX}")
        for which, what in (kinds if text else {"first": "time of a run"}).items()
    ]
    if len(rows) > 1:
        names = {"ttft": ", first token", "tpot": ", later tokens"} if text else {"p50": ""}
        caption = (
            f"Against {rows[0].name}: the ratio and its 95 % interval. On the line: no difference."
        )
        figures.append((plots.ratios(rows, names), caption))
    figures.append((plots.bars(rows, "size", "size on disk"), "What a device must store."))
    if any("peak_rss" in row.values for row in rows):
        caption = "The most memory its process held, engine included."
        figures.append((plots.bars(rows, "peak_rss", "peak memory"), caption))
    # Of five, the ratios stand beside two: no hole in a grid of two columns.
    tall = [' class="tall"' if len(figures) == 5 and n == 2 else "" for n in range(len(figures))]
    inner = "\n".join(
        f"<figure{kind}>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
        for kind, (svg, caption) in zip(tall, figures, strict=True)
    )
    return f'<div class="plots">{inner}</div>'


_BOX = "bar from the first to the third quartile, line at the median."


def _gates(comparison: Comparison) -> str:
    if not comparison.gates:
        return ""
    return _section("Gates", _html_table(gate_table(comparison), words=True))


def _samples(pictures: Mapping[str, bytes], texts: Mapping[str, str]) -> str:
    if not pictures and not texts:
        return ""
    content = "".join(
        f"<h3>{escape(name)}</h3><blockquote>{escape(text)}</blockquote>"
        for name, text in texts.items()
    )
    images = "".join(
        f'<figure><img alt="Images made by {escape(name)}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, png in pictures.items()
    )
    return _section("What they made", content + f'<div class="pictures">{images}</div>')


def _operators(comparison: Comparison, profiles: Mapping[str, Profile]) -> str:
    parts = []
    for row in comparison.rows:
        found = profiles[row.name].operators
        total = sum(operator.total_ms for operator in found)
        if not total:
            continue
        lines = "".join(
            f'<tr><th scope="row">{escape(o.kind)}</th><td>{escape(o.device)}</td>'
            f"<td>{escape(o.precision)}</td><td>{o.calls}</td><td>{o.total_ms / total:.1%}</td>"
            f'<td style="text-align:left"><span class="bar" style="width:'
            f'{120 * o.total_ms / total:.0f}px"></span></td></tr>'
            for o in found[:OPERATORS]
        )
        most = f"{found[0].kind} takes {found[0].total_ms / total:.0%}"
        parts.append(
            f"<details><summary>{escape(row.name)} <span>{escape(most)}</span></summary>"
            '<div class="scroll" tabindex="0"><table><thead><tr><th scope="col">operator</th>'
            '<th scope="col">device</th><th scope="col">kernel</th><th scope="col">calls</th>'
            '<th scope="col">share of time</th><th scope="col"></th></tr></thead>'
            f"<tbody>{lines}</tbody></table></div></details>"
        )
    return (
        _section("Where the time goes", "".join(parts), "by the engine's own clock")
        if parts
        else ""
    )


def _drifts(comparison: Comparison, profiles: Mapping[str, Profile]) -> str:
    """One line a profile: how many outputs are within their limits, and the worst of them."""
    rows = []
    for row in comparison.rows:
        drifts = profiles[row.name].drifts
        if drifts:
            within = sum(drift.ok for drift in drifts)
            far = worst(drifts)
            error, sqnr = far.numbers()
            rows.append(
                [
                    row.name,
                    f"{within} of {len(drifts)}",
                    f"{far.graph} {far.case} {far.output}",
                    sqnr,
                    error,
                    far.rule,
                    "ok" if within == len(drifts) else "too far",
                ]
            )
    columns = ["", "within limits", "the worst", "its SQNR dB", "largest error", "its limit", ""]
    if not rows:
        return ""
    return _section("Drift from the reference", _html_table((columns, rows)), "fp32, in torch")


def _doubts(comparison: Comparison) -> str:
    notes = footnotes(comparison)
    if not notes:
        return ""
    return _section("Keep in mind", f"<ul>{''.join(f'<li>{escape(n)}</li>' for n in notes)}</ul>")


def _environment(profiles: Sequence[Profile]) -> str:
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
    rows = [[key.replace("_", " "), "; ".join(said[:6])] for key, said in facts.items() if said]
    return _section("Where it was measured", _html_table((["", ""], rows), words=True))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else number(value)
    return "" if value is None else str(value)


def _commands(commands: Iterable[str]) -> str:
    typed = "\n".join(commands)
    return _section("Made with", f"<pre>{escape(typed)}</pre>") if typed else ""
