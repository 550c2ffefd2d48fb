"""From logits to the next token: greedy, or filtered and drawn, in float64.

Filters take the logits of one sequence, shape (vocabulary,), and set what is ruled out to -inf.
They run in the order of transformers: repetition penalty, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.random import Generator

from edgegen.errors import MismatchError, UsageError
from edgegen.rooms import nearest
from edgegen.spec import Array, Sampling

RANGES = {
    "temperature": (0.0, math.inf, "0 (greedy) or more"),
    "top_k": (0, math.inf, "0 (all tokens) or more"),
    "top_p": (1e-9, 1.0, "above 0, up to 1"),
    "min_p": (0.0, 1.0, "from 0 to 1"),
    "repetition_penalty": (1e-9, math.inf, "above 0; 1 is none"),
}


def sampling(**options: float | None) -> Sampling:
    """The options that are given (None is not); greedy, unless one of them asks for chance.

    Raises:
        UsageError: an unknown name, a value out of range, or a filter at temperature 0.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in RANGES:
            raise UsageError(f"no sampling option {name!r}", nearest(name, RANGES))
    filters = sorted(set(given) & {"top_k", "top_p", "min_p"})
    if filters and given.setdefault("temperature", 1.0) == 0:
        raise UsageError(
            f"{filters[0]} has no effect at temperature 0 (greedy)",
            f"give a temperature above 0, or leave {filters[0]} out",
        )
    found = msgspec.convert(given, Sampling, strict=False)
    check(found)
    return found


def check(sampling: Sampling) -> None:
    """Raise `UsageError`, naming the option, what it is and what it may be."""
    for name, (low, high, wanted) in RANGES.items():
        value = getattr(sampling, name)
        if not (low <= value <= high and math.isfinite(value)):
            raise UsageError(f"{name} is {value}, wanted {wanted}")


def choose(
    logits: Array, options: Sampling, seen: Array | None, dice: Sequence[Generator]
) -> Array:
    """The next token of each sequence, (batch,); `logits` is (batch, vocabulary).

    `seen`, the same shape, marks what occurred before; `dice` holds one generator a sequence.
    """
    if not np.isfinite(logits.max(axis=-1)).all():  # one NaN makes the maximum NaN
        raise MismatchError(
            "the model's logits are not finite", "check the bundle with: edgegen verify BUNDLE"
        )
    if seen is not None:
        logits = penalised(logits.astype(np.float64), seen, options.repetition_penalty)
    if options.temperature == 0:
        return np.asarray(logits.argmax(axis=-1))
    rows = (filtered(row, options) for row in logits)
    return np.array([draw(row, die) for row, die in zip(rows, dice, strict=True)])


def filtered(row: Array, options: Sampling) -> Array:
    """One sequence's logits after temperature and every filter that is on."""
    row = row.astype(np.float64) / options.temperature
    if options.top_k:
        row = top_k(row, options.top_k)
    if options.top_p < 1:
        row = top_p(row, options.top_p)
    return min_p(row, options.min_p) if options.min_p else row


def penalised(logits: Array, seen: Array, penalty: float) -> Array:
    """Positive logits of tokens seen before divided by `penalty`, negative ones multiplied.

    Source: Keskar et al. 2019, arXiv:1909.05858, section 4.1; the sign rule is transformers'.
    """
    return np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)


def top_k(row: Array, k: int) -> Array:
    """Keep the `k` largest, and whatever equals the smallest of them."""
    if k >= len(row):
        return row
    return np.where(row < np.partition(row, -k)[-k], -np.inf, row)


def top_p(row: Array, p: float) -> Array:
    """Keep the fewest most likely tokens whose probabilities sum to at least `p`.

    Source: Holtzman et al. 2020, arXiv:1904.09751, section 3.1.
    """
    kept = np.flatnonzero(row > -np.inf)
    order = kept[np.argsort(-row[kept], kind="stable")]
    before = np.cumsum(np.append(0, probabilities(row[order])[:-1]))
    out = np.full_like(row, -np.inf)
    # Rounding must not rule out the most likely token.
    chosen = order[: max(1, int(np.searchsorted(before, p - 1e-12)))]
    out[chosen] = row[chosen]
    return out


def min_p(row: Array, p: float) -> Array:
    """Keep tokens at least `p` times as likely as the most likely one.

    Source: Nguyen et al. 2024, arXiv:2407.01082, section 3.
    """
    chances = probabilities(row)
    return np.where(chances < p * chances.max(), -np.inf, row)


def probabilities(row: Array) -> Array:
    """Softmax."""
    weights = np.exp(row - row.max())
    return np.asarray(weights / weights.sum())


def draw(row: Array, die: Generator) -> int:
    """An index with the probability that its logit gives it; one random number each."""
    sums = np.cumsum(probabilities(row))
    last = np.searchsorted(sums, sums[-1])  # the last token that can happen at all
    return int(min(np.searchsorted(sums, die.random() * sums[-1], side="right"), last))
