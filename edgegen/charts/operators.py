"""Which operators the time of each profile goes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair

from edgegen.charts import look
from edgegen.charts.look import COLOURS, LABEL_AT, ROW, Figure
from edgegen.profile import Profile

REST = "the rest"


def by_kind(profile: Profile) -> dict[str, float]:
    """The share of the operators' time that each kind takes, the largest first."""
    total = sum(operator.total_ms for operator in profile.operators)
    found: dict[str, float] = {}
    for operator in profile.operators:
        found[operator.kind] = found.get(operator.kind, 0.0) + operator.total_ms
    ranked = sorted(found.items(), key=lambda item: -item[1])
    return {kind: ms / total for kind, ms in ranked} if total else {}


def kinds(profiles: Mapping[str, Profile]) -> list[str]:
    """The kinds that have a colour: the largest over all profiles, and the rest."""
    most: dict[str, float] = {}
    for profile in profiles.values():
        for kind, share in by_kind(profile).items():
            most[kind] = max(most.get(kind, 0.0), share)
    ranked = sorted(most, key=lambda kind: -most[kind])
    return ranked if len(ranked) <= COLOURS else [*ranked[: COLOURS - 1], REST]


def shares(profiles: Mapping[str, Profile]) -> Figure:
    """A line for each profile, parted by kind of operator; those without operators are left out."""
    timed = {name: found for name, found in profiles.items() if by_kind(found)}
    shown = kinds(timed)
    parts = [part for y, name in enumerate(timed) for part in _parts(y, name, timed[name], shown)]
    names = [{"label": y + LABEL_AT, "named": name} for y, name in enumerate(timed)]
    shades = altair.Scale(domain=shown, range=[f"var(--k{n})" for n in range(len(shown))])
    axis = altair.Axis(title="share of the operators' time", format="%", tickCount=5)
    bars = altair.Chart(look.data(parts)).mark_rect()
    chart = altair.layer(
        bars.encode(
            x=altair.X("from:Q", scale=altair.Scale(domain=[0, 1], nice=False), axis=axis),
            x2="to:Q",
            y=look.lines(len(timed)),
            y2="bottom:Q",
            color=altair.Color("kind:N", scale=shades, legend=None),
            tooltip=["profile:N", "kind:N", altair.Tooltip("share:Q", format=".1%")],
        ),
        *look.names(altair.Chart(look.data(names)), "named", "width"),
    )
    said = "; ".join(f"{name}: {most(found)}" for name, found in timed.items())
    return look.figure(
        chart,
        height=ROW * len(timed),
        alt=f"Share of time by kind of operator. The most: {said}",
        caption="By kind of operator, one profiled run of each, by the engine's own clock. "
        "Engines fuse and name operators each in their own way.",
    )


def _parts(y: int, name: str, found: Profile, shown: Sequence[str]) -> list[dict[str, Any]]:
    own = by_kind(found)
    sums = {kind: own.get(kind, 0.0) for kind in shown if kind != REST}
    if REST in shown:
        sums[REST] = 1 - sum(sums.values())
    parts, start = [], 0.0
    for kind, share in sums.items():
        if share > 0:
            ends = {"from": round(start, 4), "to": round(start + share, 4)}
            ends |= {"y": y - 0.16, "bottom": y + 0.16}
            parts.append({"profile": name, "kind": kind, "share": round(share, 4)} | ends)
            start += share
    return parts


def most(found: Profile) -> str:
    """Conv takes 62%."""
    kind, share = next(iter(by_kind(found).items()))
    return f"{kind} takes {share:.0%}"
