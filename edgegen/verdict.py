"""What a comparison found, in words: one row's difference, and one sentence for a family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgegen.metrics import FASTER, MOST_MORE, NEITHER, SLOWER, TOO_FEW, Ratio

if TYPE_CHECKING:
    from edgegen.compare import Row


def headline(row: Row, metric: str = "p50") -> str:
    """How a row differs, in words: "1.80x faster (1.70 to 1.90)"; empty for the first."""
    ratio = row.ratios.get(metric)
    if ratio is None or ratio.low is None or ratio.high is None:
        return ratio.verdict if ratio else ""
    if ratio.verdict == FASTER:
        return f"{1 / ratio.value:.2f}x faster ({1 / ratio.high:.2f} to {1 / ratio.low:.2f})"
    if ratio.verdict == SLOWER:
        return f"{ratio.value:.2f}x slower ({ratio.low:.2f} to {ratio.high:.2f})"
    return f"{NEITHER} ({ratio.low:.2f} to {ratio.high:.2f}; {advice(ratio)})"


def advice(ratio: Ratio) -> str:
    """How much more measuring would show a difference as large as the one it looks like."""
    if ratio.more is None:
        return f"more than {MOST_MORE:,} more {ratio.of} would have to decide"
    ending = ratio.of.removesuffix("s") if ratio.more == 1 else ratio.of
    return f"about {ratio.more:,} more {ending} would decide"


def verdict(rows: Sequence[Row]) -> str:
    """What came out for one family, in one sentence; empty for a single row."""
    if len(rows) < 2:
        return ""
    first, others = rows[0], rows[1:]
    faster = [row for row in others if row.ratios["p50"].verdict == FASTER]
    if faster:
        best = min(faster, key=lambda row: row.ratios["p50"].value)
        return f"{best.name} is {headline(best)} than {first.name}{_also(best)}."
    if len(others) > 1:
        return f"Nothing here is detectably faster than {first.name}."
    only = others[0]
    said = only.ratios["p50"].verdict
    if said == SLOWER:
        return f"{only.name} is {headline(only)} than {first.name}{_also(only)}."
    text = headline(only) if said == NEITHER else f"{TOO_FEW} to tell them apart"
    return f"{only.name} against {first.name}: {text}{_also(only)}."


def _also(row: Row) -> str:
    """, with 26% of the size and 60% of the peak memory: what is not the same, to a hundredth."""
    named = (("size", "size"), ("peak_rss", "peak memory"), ("energy", "energy"))
    parts = [
        f"{ratio.value:.0%} of the {what}"
        for metric, what in named
        if (ratio := row.ratios.get(metric)) and abs(ratio.value - 1) >= 0.01
    ]
    return f", with {', '.join(parts[:-1])}{' and ' * (len(parts) > 1)}{parts[-1]}" if parts else ""
