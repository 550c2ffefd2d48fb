"""What a compression step did, as it stands in `history.json` and in a bundle's manifest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec
from msgspec import Struct

from edgegen.metrics import Ratio
from edgegen.quality import Figure

# What became of a step at the gate.
Outcome = Literal["passed", "refused", "kept anyway", "not asked", "not measured"]


class Measured(Struct, frozen=True, forbid_unknown_fields=True):
    """One model on the target. `p50_ms` is of later tokens for text and of whole runs else.

    `quality` holds the figures by name.
    """

    p50_ms: float
    size_mb: float
    peak_rss_mb: float | None = None
    quality: dict[str, Figure] = {}


class Verdict(Struct, frozen=True, forbid_unknown_fields=True):
    """What the gate says of a step: against the last measured step before it, and for quality
    against `original`. Ratios, below 1 where it is less, are by metric: p50, ttft, size, peak_rss.
    """

    outcome: Outcome
    reason: str
    target: str = ""
    before: Measured | None = None
    after: Measured | None = None
    original: dict[str, Figure] = {}
    ratios: dict[str, Ratio] = {}


class Entry(Struct, frozen=True, omit_defaults=True):
    """One step. `notes` are what the method has to say of what it did.

    `seconds` are those of the step without the gate; since it was taken up again, where `resumed`.
    """

    kind: str
    options: dict[str, Any]
    verdict: Verdict
    seconds: float
    parameters: int
    seed: int = 0
    data: str = ""
    resumed: bool = False
    notes: dict[str, Any] = {}


def steps_of(history: Iterable[dict[str, Any]]) -> list[Entry]:
    """The compression steps in a history; training and where it came from are left out."""
    return [msgspec.convert(entry, Entry) for entry in history if "verdict" in entry]


COLUMNS = ("step", "p50 ms", "times", "size MB", "peak MB", "quality", "gate", "why")


def rows(entries: Iterable[Entry]) -> list[tuple[str, ...]]:
    """Each step as the cells of `COLUMNS`; two numbers are before and after."""
    return [_row(entry) for entry in entries]


def _row(entry: Entry) -> tuple[str, ...]:
    verdict = entry.verdict
    options = " ".join(f"{name}={value}" for name, value in entry.options.items())
    what = f"{entry.kind} {options}".strip()
    was, now = verdict.before, verdict.after
    if was is None or now is None:
        return what, "-", "-", "-", "-", "-", verdict.outcome, verdict.reason
    return (
        what,
        f"{was.p50_ms:.3g} -> {now.p50_ms:.3g}",
        times(verdict.ratios.get("p50")),
        f"{was.size_mb:.2f} -> {now.size_mb:.2f}",
        f"{_mb(was.peak_rss_mb)} -> {_mb(now.peak_rss_mb)}",
        _quality(verdict.original, now.quality),
        verdict.outcome,
        verdict.reason,
    )


def times(ratio: Ratio | None) -> str:
    """How a latency changed: "1.80x faster (1.70 to 1.90)"."""
    if ratio is None:
        return "-"
    if ratio.low is None or ratio.high is None:
        return f"{_factor(ratio.value)}, not sure: {ratio.verdict}"
    low, high = sorted(
        (ratio.low, ratio.high) if ratio.value > 1 else (1 / ratio.low, 1 / ratio.high)
    )
    sure = "" if ratio.verdict in ("faster", "slower") else ", not sure"
    return f"{_factor(ratio.value)} ({low:.2f} to {high:.2f}){sure}"


def _factor(ratio: float) -> str:
    return f"{1 / ratio:.2f}x faster" if ratio <= 1 else f"{ratio:.2f}x slower"


def _mb(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"


def _quality(original: dict[str, Figure], now: dict[str, Figure]) -> str:
    """Every figure, and the original model's where that says anything."""
    told = []
    for name, figure in now.items():
        was = original.get(name)
        before = f"{was.value:.4g} -> " if was and was.value != figure.value else ""
        told.append(f"{name} {before}{shown(figure)}")
    return "; ".join(told) or "not measured"


def shown(figure: Figure) -> str:
    """12.3 ± 0.2 (64 windows)."""
    error = "" if figure.error is None else f" ± {figure.error:.2g}"
    unit = f" {figure.unit}" if figure.unit else ""
    return f"{figure.value:.4g}{error}{unit} ({figure.count} {figure.of})"
