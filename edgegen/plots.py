"""The report's plots, as SVG text to stand inside a page: its colours and font are the page's.

Matplotlib knows no CSS, so colours are drawn as marks and then replaced by CSS variables; that is
what lets one picture be right on a light and on a dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import numpy as np

from edgegen.compare import Row
from edgegen.metrics import FASTER, SLOWER, steps_of
from edgegen.profile import Profile
from edgegen.rooms import missing
from edgegen.tables import number

COLOURS = 6
INK, SOFT, LINE, CARD, GOOD, BAD = (f"#0100{n:02x}" for n in range(6))
MARKS = {INK: "ink", SOFT: "soft", LINE: "line", CARD: "card", GOOD: "good", BAD: "bad"}
MARKS |= {f"#0200{n:02x}": f"c{n}" for n in range(COLOURS)}
WIDTH = 5.0  # inches, of 72 CSS pixels
ROW = 0.56
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edgegen",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "xtick.color": LINE,
    "xtick.labelcolor": SOFT,
    "grid.color": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": False,
}


def colour(n: int) -> str:
    """The mark of the n-th row's colour."""
    return f"#0200{n % COLOURS:02x}"


def latency(rows: Sequence[Row], profiles: Sequence[Profile], which: str, what: str) -> str:
    """Every sample of each row as a dot, its quartiles as a box, its median in figures."""
    samples = [np.concatenate([np.asarray(s) for s in steps_of(p, which)]) for p in profiles]
    with _figure(len(rows)) as (figure, axes):
        _scale(axes, np.concatenate(samples))
        for n, (row, values) in enumerate(zip(rows, samples, strict=True)):
            _strip(axes, n, values)
            _name(axes, n, row.name, f"{number(float(np.median(values)))} ms")
        axes.set_xlabel(f"{what}, ms")
        medians = "; ".join(
            f"{row.name} {number(float(np.median(values)))} ms"
            for row, values in zip(rows, samples, strict=True)
        )
        return _svg(figure, f"lat-{which}-{rows[0].family}", f"{what}, medians: {medians}")


def _strip(axes: Any, n: int, values: Any) -> None:
    low, middle, high = np.percentile(values, [25, 50, 75])
    shown = values if len(values) <= 400 else np.random.default_rng(0).choice(values, 400, False)
    jitter = np.random.default_rng(n).uniform(-0.13, 0.13, len(shown))
    axes.plot(shown, n + jitter, "o", ms=3.2, mew=0, color=colour(n), alpha=0.45, rasterized=False)
    axes.plot([low, high], [n, n], lw=7, color=colour(n), alpha=0.55, solid_capstyle="butt")
    axes.plot([middle, middle], [n - 0.2, n + 0.2], lw=2.2, color=INK)


def ratios(rows: Sequence[Row], metrics: dict[str, str]) -> str:
    """Each row's ratio to the first with its 95 % interval; green is faster, red slower."""
    lines = [(row, m, title) for row in rows for m, title in metrics.items() if m in row.ratios]
    found = [(row, title, row.ratios[m]) for row, m, title in lines]
    ends = [x for _, _, r in found for x in (r.value, r.low, r.high, 1.0) if x is not None]
    with _figure(len(found)) as (figure, axes):
        _scale(axes, np.asarray(ends), always_log=True)
        axes.axvline(1, color=SOFT, lw=1.2)
        for n, (row, title, ratio) in enumerate(found):
            shade = {FASTER: GOOD, SLOWER: BAD}.get(ratio.verdict, SOFT)
            if ratio.low is not None and ratio.high is not None:
                axes.plot([ratio.low, ratio.high], [n, n], lw=3, color=shade, alpha=0.6)
            axes.plot([ratio.value], [n], "o", ms=7, color=shade)
            _name(axes, n, f"{row.name}{title}", f"x{ratio.value:.2f}")
        axes.set_xlabel("time, as a multiple of the first's: left is faster")
        said = "; ".join(f"{row.name}{title} {r.value:.2f} {r.verdict}" for row, title, r in found)
        return _svg(figure, f"ratio-{rows[0].family}", f"Time over the first's: {said}")


def bars(rows: Sequence[Row], metric: str, what: str) -> str:
    """One bar a row."""
    values = [row.values[metric].value if metric in row.values else 0.0 for row in rows]
    with _figure(len(rows)) as (figure, axes):
        for n, (row, value) in enumerate(zip(rows, values, strict=True)):
            axes.barh(n, value, height=0.3, color=colour(n))
            _name(axes, n, row.name, f"{number(value)} MB")
        axes.set_xlim(0, max(values) * 1.02 or 1)
        axes.set_xlabel(f"{what}, MB")
        said = "; ".join(
            f"{row.name} {number(value)}" for row, value in zip(rows, values, strict=True)
        )
        return _svg(figure, f"bar-{metric}-{rows[0].family}", f"{what} in MB: {said}")


@contextmanager
def _figure(rows: int) -> Iterator[tuple[Any, Any]]:
    """A figure with `rows` lines, the first at the top."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing(error, "report") from error
    with matplotlib.rc_context(STYLE):
        height = 0.62 + ROW * rows
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_axes((0.02, 0.5 / height, 0.96, 1 - 0.52 / height))
        axes.set_ylim(rows - 0.6, -0.78)
        axes.set_yticks([])
        yield figure, axes


def _scale(axes: Any, values: Any, always_log: bool = False) -> None:
    """Logarithmic where the values span more than a factor of five, with plain figures."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = float(values.min()), float(values.max())
    if not always_log and high / low < 5:
        margin = (high - low) * 0.06 or high * 0.05
        axes.set_xlim(max(0.0, low - margin), high + margin)
        return
    axes.set_xscale("log")
    axes.set_xlim(low / 1.15, high * 1.15)
    wide = high / low > 100
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=12))
    if not always_log or high / low > 5:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    else:
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _name(axes: Any, n: int, name: str, figures: str) -> None:
    """The row's name above its line at the left, its figure at the right."""
    place = axes.get_yaxis_transform()
    axes.text(0, n - 0.3, name.replace("$", r"\$"), transform=place, va="bottom", size=9.5)
    axes.text(
        1, n - 0.3, figures, transform=place, va="bottom", ha="right", size=9.5, weight="bold"
    )


def _svg(figure: Any, prefix: str, alt: str) -> str:
    """The figure as an inline <svg>, its ids made its own, with `alt` for who cannot see it."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| version="[^"]*"', "", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", text)
    for mark, name in MARKS.items():
        text = text.replace(mark, f"var(--{name})")
    own = re.sub(r"\W+", "-", prefix)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{own}-", text)
    return re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        lambda found: f'<svg {found[1]} role="img" aria-label="{escape(alt)}">',
        text,
        count=1,
    )
