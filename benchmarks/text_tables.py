"""Tables of decoding text: medians, ratios of rounds, and the part of the bandwidth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from peers import BITS
from text_ready import Ready

from edgegen import bootstrap


def weight_mb(source: Path, precision: str, bits: dict[str, tuple[float, float]]) -> float:
    """The least that one token must read: every matrix once, at the peer's own precision."""
    from safetensors import safe_open

    inner, outer = bits.get(precision, BITS[precision])
    read = 0.0
    with safe_open(source / "model.safetensors", "numpy") as file:
        for name in file.keys():  # noqa: SIM118
            shape = file.get_slice(name).get_shape()
            outside = "embed_tokens" in name or "wte" in name or "lm_head" in name
            if len(shape) == 2 and "wpe" not in name:
                read += math.prod(shape) * (outer if outside else inner)
    return read / 8e6


def table(
    found: dict[str, list[dict[str, Any]]],
    ready: Sequence[Ready],
    prompt: int,
    limits_ms: dict[str, float],
) -> Iterator[str]:
    """One line a peer: medians, and ratios to the first with their 95 % intervals.

    `limits_ms` is how long each takes to read its weights once.
    """
    yield (
        "| engine | TTFT ms | TPOT ms | TPOT of it / first | TTFT of it / first | of the "
        "bandwidth | load ms | peak RSS MB | against torch fp32 |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    first = found[next(iter(found))]
    for one in ready:
        if one.peer.name not in found:
            continue
        answers = found[one.peer.name]
        ttft, tpot = (
            [by_round(a, prompt, what) for a in answers] for what in ("ttft_ms", "tpot_ms")
        )
        ratios = [ratio(first, answers, prompt, what) for what in ("tpot_ms", "ttft_ms")]
        load, rss = (median(a[name] for a in answers) for name in ("load_ms", "peak_rss_mb"))
        share = f"{limits_ms[one.peer.name] / median(tpot):.0%}"
        yield (
            f"| {one.peer.name} | {median(ttft):.2f} | {median(tpot):.3f} | {ratios[0]} | "
            f"{ratios[1]} | {share} | {load:.0f} | {rss:.0f} | {one.agreement} |"
        )


def by_round(answer: dict[str, Any], prompt: int, what: str) -> float:
    """The median of one process."""
    return median(answer["times"][str(prompt)][what])


def ratio(first: Sequence[Any], other: Sequence[Any], prompt: int, what: str) -> str:
    """The median ratio, round by round, and its interval."""
    if first is other:
        return "the first"
    pairs = [
        (by_round(a, prompt, what), by_round(b, prompt, what))
        for a, b in zip(first, other, strict=True)
    ]
    if min(min(pair) for pair in pairs) <= 0:
        return "below the clock"
    middle, reach = bootstrap.location(np.log([b / a for a, b in pairs]))
    if reach is None:
        return f"{math.exp(middle):.2f} (too few rounds)"
    return (
        f"{math.exp(middle):.2f} ({math.exp(middle - reach):.2f} to {math.exp(middle + reach):.2f})"
    )
