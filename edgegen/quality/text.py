"""How well a language model predicts text it has not seen, and how close it is to another one.

The text is cut into windows of one length that start `stride` tokens apart. Each is read with an
empty cache and only its last `stride` predictions count, so that every token that counts is
counted once and has at least `length - stride` tokens before it.

Windows are what standard errors are computed over: tokens of one window depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from edgegen.errors import MismatchError, UsageError
from edgegen.quality import Figure, finite, mean
from edgegen.spec import Array, Report, silent

LENGTH = 512  # tokens a window reads, where the model has as many positions
NUMBER = 64  # windows, where nobody says how many
MOST = 1 << 24  # logits held at once, 64 MB of float32

# Token ids (batch, time) -> logits (batch, time, vocabulary).
LogitsOf = Callable[[Array], Array]


class Windows(NamedTuple):
    """`length` + 1 tokens from each of `starts`; the last `stride` of them are predicted."""

    starts: Array
    length: int
    stride: int

    def __str__(self) -> str:
        return (
            f"{len(self.starts)} windows of {self.length} tokens, "
            f"the last {self.stride} of each predicted"
        )


class Corpus(NamedTuple):
    """A row of token ids, (tokens,); the UTF-8 bytes each adds to the text; which are no text.

    Marks, as between two texts, count as tokens but not for the bits of a byte.
    """

    ids: Array
    bytes: Array
    marks: Array


class _Scores(NamedTuple):
    """Of each window (windows,): sums over its predictions, and how many there were."""

    nats: Array
    text_nats: Array  # without the marks that are no text
    bytes: Array
    kl: Array
    same: Array
    reference_nats: Array


def windows(tokens: int, length: int, num: int | None = None, *, fixed: bool = False) -> Windows:
    """`num` windows spread evenly over `tokens` tokens; without it 64, or as many as there are.

    `length` shrinks to the text where that is shorter, unless it is `fixed`.

    Raises:
        UsageError: too little text, or fewer windows in it than asked for.
    """
    need = length + 1 if fixed else 3
    if tokens < need:
        raise UsageError(
            f"{tokens} tokens of held-out text, wanted {need} or more", "give more text"
        )
    length = min(length, tokens - 1)
    stride = max(1, length // 2)
    there = (tokens - 1 - length) // stride + 1
    if num is not None and not 1 <= num <= there:
        raise UsageError(
            f"num is {num}, the held-out text has {there} windows of {length} tokens",
            f"ask for 1 to {there}, or give more text",
        )
    count = min(NUMBER, there) if num is None else num
    picked = np.linspace(0, there - 1, count).astype(np.int64)
    return Windows(picked * stride, length, stride)


def perplexity(logits_of: LogitsOf, tokens: Array, window: Windows) -> Figure:
    """Perplexity of `tokens`, (tokens,): a uniform model has that of its vocabulary's size.

    Raises:
        MismatchError: logits that are not finite, or of another shape.
    """
    corpus = Corpus(tokens, np.zeros_like(tokens), np.zeros(len(tokens), bool))
    return figures(logits_of, corpus, window)["perplexity"]


def figures(
    logits_of: LogitsOf,
    corpus: Corpus,
    window: Windows,
    reference: LogitsOf | None = None,
    report: Report = silent,
) -> dict[str, Figure]:
    """Perplexity and bits per byte; against a `reference` also KL, top-1 agreement and the ratio.

    KL is that of the reference's next-token distribution from the model's, in nats a token.
    The error of `perplexity_ratio` is of the pairs, so it is much smaller than that of either.

    Raises:
        MismatchError: logits that are not finite, or of another shape than wanted.
    """
    rows = [*_score(logits_of, corpus, window, reference, report)]
    scores = _Scores(*(np.concatenate(column) for column in zip(*rows, strict=True)))
    per_token = scores.nats / window.stride
    found = {"perplexity": _exp(mean(per_token, "windows", "lower"), "")}
    if scores.bytes.sum():
        found["bits_per_byte"] = _bits_per_byte(scores)
    if reference:
        kl = mean(scores.kl / window.stride, "windows", "lower", "nats/token")
        found["kl_nats"] = kl
        found["top1_agreement"] = mean(scores.same / window.stride, "windows", "higher")
        pairs = per_token - scores.reference_nats / window.stride
        found["perplexity_ratio"] = _exp(mean(pairs, "windows", "lower"), "x")
    return found


def _exp(nats: Figure, unit: str) -> Figure:
    """The exponential of a mean; its error by the delta method."""
    value = math.exp(min(nats.value, 700.0))  # a float ends at e^709
    error = None if nats.error is None else value * nats.error
    return Figure(value, error, nats.count, nats.of, nats.better, unit)


def _bits_per_byte(scores: _Scores) -> Figure:
    """A ratio of two sums over windows. Source: Cochran 1977, Sampling Techniques, 6.4."""
    bits, count = scores.text_nats / math.log(2), len(scores.bytes)
    value = float(bits.sum() / scores.bytes.sum())
    error = None
    if count > 1:
        off = bits - value * scores.bytes
        error = math.sqrt(count / (count - 1) * float((off**2).sum())) / float(scores.bytes.sum())
    return Figure(value, error, count, "windows", "lower", "bits/byte")


def _score(
    logits_of: LogitsOf,
    corpus: Corpus,
    window: Windows,
    reference: LogitsOf | None,
    report: Report,
) -> Iterator[_Scores]:
    """Windows a few at a time: what one read needs depends on the vocabulary, seen in the first."""
    done, batch = 0, 1
    while done < len(window.starts):
        starts = window.starts[done : done + batch]
        at = starts[:, None] + np.arange(window.length + 1)
        ids, last = corpus.ids[at], at[:, -window.stride :]
        found = _last(logits_of, ids, window, done)
        other = _last(reference, ids, window, done) if reference else None
        yield _sums(found, other, Corpus(*(part[last] for part in corpus)))
        done += len(starts)
        batch = max(1, MOST // (window.length * found.shape[-1]))
        report("read held-out text", done, len(window.starts))


def _last(logits_of: LogitsOf, ids: Array, window: Windows, done: int) -> Array:
    """Log probabilities of the last `stride` next tokens, (batch, stride, vocabulary)."""
    logits = logits_of(ids[:, :-1])
    if logits.ndim != 3 or logits.shape[:2] != (len(ids), window.length):
        raise MismatchError(
            f"logits of shape {list(logits.shape)}, wanted {[*ids[:, :-1].shape, 'vocabulary']}",
            "return logits of every position",
        )
    tail = logits[:, -window.stride :].astype(np.float64)
    finite(tail, f"logits of window {done} and after")
    tail -= tail.max(-1, keepdims=True)
    tail -= np.log(np.exp(tail).sum(-1, keepdims=True))
    return np.asarray(tail)


def _sums(found: Array, other: Array | None, targets: Corpus) -> _Scores:
    """The sums of a few windows: log probabilities (batch, stride, vocabulary), and what came."""
    nats = -np.take_along_axis(found, targets.ids[..., None], -1)[..., 0]
    nothing = np.zeros(len(found))
    kl, same, reference_nats = nothing, nothing, nothing
    if other is not None:
        if other.shape != found.shape:
            raise MismatchError(
                f"{found.shape[-1]} tokens in the vocabulary, the reference has {other.shape[-1]}",
                "compare models of one tokenizer",
            )
        kl = (np.exp(other) * (other - found)).sum((1, 2))
        same = (other.argmax(-1) == found.argmax(-1)).sum(1)
        reference_nats = -np.take_along_axis(other, targets.ids[..., None], -1).sum((1, 2))
    text = np.where(targets.marks, 0, nats).sum(1)
    return _Scores(nats.sum(1), text, targets.bytes.sum(1), kl, same, reference_nats)
