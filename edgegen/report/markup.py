"""Pieces of the page as HTML text: tables that sort, figures, keys of colours, sections."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from edgegen.charts.look import COLOURS, Figure
from edgegen.tables import Table

LONG = 32  # characters: a cell of more is prose, which breaks into lines
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?")
DAY = re.compile(r"\d{4}-\d\d-\d\d")
TIMES = re.compile(r"([\d.]+)x (faster|slower)")


def section(heading: str, content: str, aside: str = "") -> str:
    """A card of the page; nothing where there is nothing to say."""
    if not content:
        return ""
    small = f" <small>{escape(aside)}</small>" if aside else ""
    return f"<section>\n<h2>{escape(heading)}{small}</h2>\n{content}\n</section>"


def table(content: Table, label: str, *, numbered: bool = False, prose: bool = False) -> str:
    """A table whose columns sort by their headings; `numbered` rows bear the charts' colours.

    `prose` is of words more than of figures: it is flush left.
    """
    columns, rows = content
    head = "".join(f'<th scope="col">{_heading(column)}</th>' for column in columns)
    lines = "".join(_line(row, n if numbered else None) for n, row in enumerate(rows))
    kind = ' class="prose"' if prose else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f"<table{kind}><thead><tr>{head}</tr></thead>\n<tbody>{lines}</tbody></table></div>"
    )


def facts(found: Mapping[str, str]) -> str:
    """Names and what they stand for, in the order given."""
    rows = (
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(said)}</td></tr>\n'
        for name, said in found.items()
    )
    return f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>'


def _heading(column: str) -> str:
    return f'<button type="button">{escape(column)}</button>' if column else ""


def _line(row: Sequence[str], number: int | None) -> str:
    mark = "" if number is None else chip(number, "c", str(number + 1))
    order = "" if number is None else f' data-v="{number}"'
    cells = [f'<th scope="row"{order}>{mark}{escape(row[0])}</th>', *map(_cell, row[1:])]
    return f"<tr>{''.join(cells)}</tr>\n"


def _cell(text: str) -> str:
    """Verdicts in colour; what stands in brackets at the end on a line of its own, small."""
    times, kind = TIMES.match(text), ""
    if text in ("met", "ok", "PICK") or (times and times[2] == "faster"):
        kind = ' class="good"'
    elif text in ("MISSED", "too far") or times:
        kind = ' class="bad"'
    key = order(text)
    value = "" if key is None else f' data-v="{key:g}"'
    main, bracket, rest = text.partition(" (")
    if len(main) > LONG:
        return f'<td class="long"{value}>{escape(text)}</td>'
    if bracket and rest.endswith(")"):
        return f"<td{kind}{value}>{escape(main)}<small>{escape(rest[:-1])}</small></td>"
    return f"<td{kind}{value}>{escape(text)}</td>"


def order(text: str) -> float | None:
    """What a cell sorts by: its first number; of a comparison the ratio of times; else None."""
    times = TIMES.search(text)
    if times:
        return 1 / float(times[1]) if times[2] == "faster" else float(times[1])
    if text.startswith(("the first", "no difference")):
        return 1.0
    found = None if DAY.match(text) else NUMBER.match(text)  # a day sorts as text
    return float(found[0].replace(",", "")) if found else None


def chip(n: int, palette: str, text: str = "") -> str:
    """A square of colour, with the number that stands for a profile in the charts."""
    shade = f"background:var(--{palette}{n % COLOURS})"
    return f'<span class="chip" style="{shade}">{escape(text)}</span>'


def key(names: Iterable[str], palette: str = "c") -> str:
    """What the colours of the charts below stand for; profiles are numbered too."""
    items = "".join(
        f"<li>{chip(n, palette, str(n + 1) if palette == 'c' else '')}{escape(name)}</li>"
        for n, name in enumerate(names)
    )
    return f'<ul class="key">{items}</ul>'


def figure(found: Figure) -> str:
    """A chart: its specification inside the place where the page's script draws it."""
    spec = json.dumps(found.spec, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<figure><div class="chart"><script type="application/json">{spec}</script></div>'
        f"<figcaption>{escape(found.caption)}</figcaption></figure>"
    )


def figures(found: Iterable[Figure]) -> str:
    """Charts beside each other where there is room for two."""
    drawn = "\n".join(map(figure, found))
    return f'<div class="plots">{drawn}</div>' if drawn else ""


def coloured(verdict: str) -> str:
    """A verdict with its "1.80x faster" in green, or its "1.20x slower" in red."""
    return TIMES.sub(
        lambda found: f'<em class="{"good" if found[2] == "faster" else "bad"}">{found[0]}</em>',
        escape(verdict),
    )
