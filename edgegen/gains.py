"""What int8, int4 or half the channels would buy, said before it is done.

Each operator keeps the share of its roof that it reaches now, and the roof moves with the bytes
and operations that the change saves. Of an operator far from its roof only the roof's own time
shrinks: what is above has other reasons, and stays. So does all time outside the operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec

from edgegen.profile import Profile
from edgegen.roofs import Gain, Peaks, Roof
from edgegen.work import OTHER, Kind, Work, least_ms

EXPLAINED = 0.25  # of the time: where the roof is less than that, something else holds it up
INT8, INT4, HALF = "int8", "int4", "half the channels"
BITS = {INT8: 8, INT4: 4}
KEPT = "each operator keeps the share of its roof that it reaches now"


def gains(
    profile: Profile, text: bool, work: Work, phase: Roof, operators: Sequence[Roof], peaks: Peaks
) -> tuple[Gain, ...]:
    """The changes that the bundle has not had yet; `work` and `phase` are those of its main phase.

    `text` models keep their arithmetic when their weights are made int8, the others do not.
    """
    done = {INT8: (INT8,), INT4: (INT8, INT4)}.get(profile.precision, ())
    shares = _shares(profile, work, operators, peaks)
    return tuple(
        Gain(
            change,
            phase.name,
            _ratio(
                shares, phase.ms, _roofs(work, peaks), _roofs(_after(work, change, text), peaks)
            ),
            _assumption(change, text),
        )
        for change in (INT8, INT4, HALF)
        if change not in done
    )


def _shares(
    profile: Profile, work: Work, operators: Sequence[Roof], peaks: Peaks
) -> dict[str, float]:
    """The share of the time in each kind, as the engine has it; else as their roofs have it."""
    roofs = _roofs(work, peaks)
    if not operators:
        whole = sum(roofs.values()) or 1.0
        return {kind: ms / whole for kind, ms in roofs.items()}
    run_ms = median(
        first + sum(steps) for first, steps in zip(profile.first_ms, profile.steps_ms, strict=True)
    )
    # The engine is slower while it keeps its own time: the sum of that may be more than the run.
    whole = max(run_ms, sum(row.ms for row in operators))
    return {row.name: row.ms / whole for row in operators if row.name in roofs}


def _roofs(work: Work, peaks: Peaks) -> dict[str, float]:
    return {kind.kind: max(least_ms(kind, work, peaks)) for kind in work.kinds}


def _ratio(
    shares: dict[str, float], ms: float, now: dict[str, float], then: dict[str, float]
) -> float:
    """The time after over the time before."""
    inside = sum(s * _scaled(s * ms, now[kind], then[kind]) for kind, s in shares.items())
    return 1 - sum(shares.values()) + inside


def _scaled(ms: float, now_ms: float, then_ms: float) -> float:
    """The factor on an operator's time when its roof changes from one to the other."""
    if not ms or not now_ms:
        return 1.0
    if now_ms >= EXPLAINED * ms:
        return then_ms / now_ms
    return (ms - now_ms + then_ms) / ms


def _after(work: Work, change: str, text: bool) -> Work:
    """The work after a change; what is touched over and over shrinks with the weights."""
    kinds = tuple(_halved(k) if change == HALF else _rounded(k, change, text) for k in work.kinds)
    saved = sum(k.weight_bytes for k in work.kinds) - sum(k.weight_bytes for k in kinds)
    return msgspec.structs.replace(work, kinds=kinds, resident_bytes=work.resident_bytes - saved)


def _halved(kind: Kind) -> Kind:
    """Half the inputs and outputs: a quarter of a matrix; attention has half as many heads."""
    square = 4 if kind.weights and kind.kind != OTHER else 2
    return Kind(
        kind.kind,
        kind.flops / square,
        kind.int8_flops / square,
        kind.weights / square,
        kind.weight_bytes / square,
        kind.moved_bytes / 2,
    )


def _rounded(kind: Kind, change: str, text: bool) -> Kind:
    """Weights of so many bits, scales left out; int8 calculates in bytes, but not in text."""
    if kind.kind == OTHER or not kind.weights:
        return kind
    size = min(kind.weight_bytes, kind.weights * BITS[change] / 8)
    if change == INT4 or text:
        return msgspec.structs.replace(kind, weight_bytes=size)
    moved = kind.moved_bytes if kind.int8_flops else kind.moved_bytes / 4
    return msgspec.structs.replace(
        kind, weight_bytes=size, moved_bytes=moved, int8_flops=kind.flops
    )


def _assumption(change: str, text: bool) -> str:
    how = {
        HALF: "a quarter of weights and operations, half of what passes between operators",
        INT4: "weights of half a byte, arithmetic as now",
        INT8: "weights, inputs and arithmetic in 8 bits, rounding them costs nothing",
    }
    if change == INT8 and text:
        return f"weights of one byte, arithmetic as now; {KEPT}"
    return f"{how[change]}; {KEPT}"
