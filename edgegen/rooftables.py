"""Rooflines and peaks as tables of text: the same for the terminal and the report."""

from __future__ import annotations

from collections.abc import Sequence

from edgegen.gains import KEPT
from edgegen.roofs import Gain, Peaks, Roof, Roofline
from edgegen.tables import Table, number

COLUMNS = ["", "ms", "MFLOP", "MB", "ms at the roof", "of the roof", "bound by"]


def roofs(found: Roofline) -> Table:
    """A row for each phase, then for each kind of operator as the engine timed it in a run."""
    rows = [_row(row, row.name) for row in found.phases]
    return COLUMNS, rows + [_row(row, f"  {row.name}") for row in found.operators]


def _row(row: Roof, name: str) -> list[str]:
    flops, megabytes = number(row.flops / 1e6), number(row.bytes / 1e6)
    return [
        *(name, number(row.ms), flops, megabytes, number(row.roof_ms)),
        *(f"{row.of_roof:.0%}", row.bound),
    ]


def peaks(found: Peaks) -> Table:
    """What was measured, by what, and for memory how much was read."""
    rows = [[p.precision, f"{number(p.gflops)} GFLOP/s", p.by] for p in found.peaks]
    rows += [
        [b.level, f"{number(b.gb_s)} GB/s", f"{b.by} of {b.kib} KiB"] for b in found.bandwidths
    ]
    return ["", "at most", "measured by"], rows


def threads(found: Peaks) -> str:
    """1 thread, 2 threads."""
    return f"{found.threads} thread{'s' if found.threads > 1 else ''}"


def _predicted(gains: Sequence[Gain]) -> list[str]:
    """All in one line; what they have in common once."""
    each = [f"{g.change} {g.ratio:.2f} ({g.assumption.removesuffix(f'; {KEPT}')})" for g in gains]
    return [f"predicted share of the time of {gains[0].phase}: {', '.join(each)}; {KEPT}"]


def footnotes(found: Roofline) -> list[str]:
    """What each change would buy and by which assumption; the roof itself; notes."""
    at = next(b for b in found.peaks.bandwidths if b.level == found.level)
    reached = ", ".join(f"{p.precision} {number(p.gflops)} GFLOP/s" for p in found.peaks.peaks)
    return [
        *(_predicted(found.gains) if found.gains else []),
        f"roof, measured {found.peaks.created[:10]} with {threads(found.peaks)}: {reached}; "
        f"{at.level} {number(at.gb_s)} GB/s (edgegen devices --measure)",
        *found.peaks.notes,
        *found.notes,
    ]
