"""The noise floor: how far apart the same bundle, measured twice in the same way, comes out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from edgegen import bootstrap
from edgegen.metrics import NEITHER, between, steps_of
from edgegen.profile import Profile

FEWEST_DF = 4  # of fewer degrees of freedom a floor is a guess


class Noise(Struct, frozen=True, forbid_unknown_fields=True):
    """In 95 of 100 A/A comparisons two profiles of `rounds` rounds are at most `share` apart.

    `share` is of the median (0.012: 1.2 %), `pairs` the A/A pairs it was learnt from, `source` what
    these were. `alarm` names two profiles of one bundle that do differ: then something else than
    the bundle does.
    """

    family: str
    share: float
    pairs: int
    rounds: int
    source: str
    alarm: str = ""


def floor(profiles: Sequence[Profile], names: Sequence[str]) -> Noise | None:
    """The noise floor of profiles of one family that took turns; None of those that did not.

    Measured where one bundle was profiled twice, else from each profile's own rounds, the n-th
    against the next: two fresh processes of one bundle as well.
    """
    return _measured(profiles, names) or _split(profiles)


def _measured(profiles: Sequence[Profile], names: Sequence[str]) -> Noise | None:
    for n, one in enumerate(profiles):
        for m in range(n + 1, len(profiles)):
            if _same(one, profiles[m]) and bootstrap.paired(one, profiles[m]):
                return _twice(one, profiles[m], f"{names[n]} and {names[m]}")
    return None


def _same(one: Profile, other: Profile) -> bool:
    def what(profile: Profile) -> tuple[object, ...]:
        opened = profile.engine, profile.engine_version, profile.threads, profile.warmup
        return profile.bundle_sha256, *opened, profile.board, profile.device, profile.device_name

    return what(one) == what(other)


def _twice(one: Profile, other: Profile, names: str) -> Noise:
    found = between(one, other)
    assert found.low and found.high  # of five rounds and more there is an interval
    share = max(found.high, 1 / found.low) - 1
    alarm = f"{names}, the same bundle" if found.verdict != NEITHER else ""
    source = f"measured: {names} are the same bundle"
    return Noise(one.family, share, one.rounds, one.rounds, source, alarm)


def _split(profiles: Sequence[Profile]) -> Noise | None:
    """Neighbouring rounds share a round, so n - 1 differences are worth fewer degrees of freedom.

    Source: von Neumann, Kent, Bellinson and Hart 1941, Annals of Mathematical Statistics 12 (the
    mean square successive difference, whose variance gives these degrees of freedom).
    """
    turns = [p for p in profiles if p.rounds >= bootstrap.FEWEST]
    rounds = min((p.rounds for p in turns), default=0)
    df = int(sum(2 * (p.rounds - 1) ** 2 / (3 * p.rounds - 4) for p in turns))
    if df < FEWEST_DF:
        return None
    logs = [bootstrap.from_round_to_round(steps_of(p, "main"), p.rounds, 50) for p in turns]
    # Each profile's own spread, for a slow model may be a quiet one.
    mean = math.sqrt(sum(bootstrap.spread(own) ** 2 for own in logs) / len(logs))
    t = bootstrap.student_t((1 + bootstrap.LEVEL) / 2, df)
    source = "from each profile's own rounds, one against the next"
    share = math.exp(t * mean / math.sqrt(rounds)) - 1
    return Noise(turns[0].family, share, sum(map(len, logs)), rounds, source)


def describe(noise: Noise) -> str:
    """One line for the terminal and the report."""
    text = (
        f"{noise.family}: noise floor ±{noise.share:.1%} of the median at {noise.rounds} rounds "
        f"({noise.source}; {noise.pairs} A/A pairs)"
    )
    return f"{text}; {noise.alarm}, DIFFER: the machine is not steady" if noise.alarm else text
