"""Text, one token of every sequence a step, over whichever cache is best.

An engine that keeps the key/value cache to itself offers it as `session.cached()`. Over any other
session `PastForward` hands the cache back and forth, and over a graph of fixed shapes
`WindowForward` reads the whole window anew for each token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence

import numpy as np

from edgegen.bundle import Text
from edgegen.errors import UnsupportedError, UsageError
from edgegen.runtimes.loops import _limits, _sampling
from edgegen.spec import (
    Array,
    CachedForward,
    Decoder,
    Feed,
    LoopDecoder,
    Request,
    Sampling,
    Session,
)

Prompts = tuple[tuple[int, ...], ...]


def steps(
    sessions: Mapping[str, Session],
    loop: Text,
    request: Request,
    rng: np.random.Generator,
    inputs: Feed | None = None,
) -> Generator[Array, None, list[list[int]]]:
    """Yields the new ids (batch,) of each step; returns those of each sequence, its end left out.

    It ends when every sequence has met an end token, or after `request.new_tokens`; a sequence
    that ended before the others repeats its end token.

    Raises:
        UsageError: the request is out of range, or does not fit the model or the memory.
    """
    if inputs:
        raise UsageError(
            f"a text model takes prompts, not inputs ({', '.join(inputs)})",
            "give token ids as Request(prompts=...)",
        )
    decoder, prompts = _begin(sessions["model"], loop, request, rng)
    return _tokens(decoder, _ends(loop, request), request, prompts)


def tokens(
    sessions: Mapping[str, Session], loop: Text, request: Request, rng: np.random.Generator
) -> Array:
    """All that `steps` would yield, (steps, batch): in one call of an engine that has a loop.

    Raises:
        UsageError: as `steps` does.
    """
    decoder, prompts = _begin(sessions["model"], loop, request, rng)
    ends = _ends(loop, request)
    if not isinstance(decoder, LoopDecoder):
        return np.stack(list(_tokens(decoder, ends, request, prompts)))
    decoder.begin(prompts, request.sampling)
    return decoder.write(request.new_tokens, ends, _go_on)


def _go_on(ids: Array) -> None:
    """Told of every step, so that Python sees a Ctrl-C between two of them."""


def _ends(loop: Text, request: Request) -> Sequence[int]:
    return () if request.ignore_eos else loop.eos


def _begin(
    session: Session, loop: Text, request: Request, rng: np.random.Generator
) -> tuple[Decoder, Prompts]:
    """The decoder for a request that fits, and its prompts."""
    _limits.check_batch(session, request.batch)
    _limits.check(request, loop, _limits.positions(session, loop))
    prompts = request.prompts or random_prompts(loop, request, rng)
    return _decoder(session, loop, request), prompts


def _decoder(session: Session, loop: Text, request: Request) -> Decoder:
    """The engine's own where it has one for this sampling."""
    offer = getattr(session, "decoder", None)
    own: Decoder | None = offer(request.sampling, request.seed) if offer else None
    return own or PlainDecoder(forward(session), loop.vocab_size, request.seed)


def _tokens(
    decoder: Decoder, ends: Sequence[int], request: Request, prompts: Prompts
) -> Generator[Array, None, list[list[int]]]:
    # Plain lists: for a handful of sequences numpy's calls would take longer than a small model.
    out: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    ids = decoder.start(prompts, request.sampling)
    for count in range(1, request.new_tokens + 1):
        tokens = ids.tolist()
        live = [i for i in live if tokens[i] not in ends]
        for i in live:
            out[i].append(tokens[i])
        yield ids
        if count == request.new_tokens or not live:
            break
        new = decoder.step()
        ids = new if len(live) == len(ids) else _only(live, new, ids)
    return out


def _only(live: list[int], new: Array, old: Array) -> Array:
    """`new` for the sequences that live, `old` for the others; both (batch,)."""
    out = old.copy()
    out[live] = new[live]
    return out


def random_prompts(loop: Text, request: Request, rng: np.random.Generator) -> Prompts:
    """Prompts of `request.prompt_tokens` random ids."""
    ids = rng.integers(0, loop.vocab_size, (request.batch, request.prompt_tokens))
    return tuple(tuple(row) for row in ids.tolist())


def forward(session: Session) -> CachedForward:
    """The engine's own cache where it has one that fits the graph."""
    if _limits.window(session):
        return WindowForward(session)
    cached = getattr(session, "cached", None)
    own: CachedForward = cached() if cached else PastForward(session)
    return own


def full_forward(session: Session, ids: Array, mask: Array) -> Array:
    """Logits of all positions at once, with an empty cache: (batch, time, vocabulary).

    `ids` and `mask` are (batch, time); what is padded, on the left, has mask 0.
    """
    tokens = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(1) - 1, 0),
    }
    pasts = [s for s in session.graph.inputs if s.name.startswith("past_key_values.")]
    empty = {s.name: _empty(s.shape, s.dtype, len(ids)) for s in pasts}
    return np.asarray(session.run(_cast(session, tokens) | empty)["logits"])


class PastForward:
    """A `CachedForward` over any session: the present of one call is the past of the next."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pasts = [s for s in session.graph.inputs if s.name.startswith("past_key_values.")]
        self._cache: dict[str, Array] = {}

    def __call__(
        self, input_ids: Array, attention_mask: Array, position_ids: Array, *, fresh: bool
    ) -> Array:
        """Logits of the last position, (batch, vocabulary)."""
        if fresh:
            self._cache = {s.name: _empty(s.shape, s.dtype, len(input_ids)) for s in self._pasts}
        tokens = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
        }
        out = self._session.run(_cast(self._session, tokens) | self._cache)
        self._cache = {s.name: out[f"present.{s.name.partition('.')[2]}"] for s in self._pasts}
        return np.asarray(out["logits"][:, -1])


class WindowForward:
    """A `CachedForward` over a fixed length: no cache, all ids so far, padded on the left."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._specs = {spec.name: spec for spec in session.graph.inputs}
        batch, length = self._specs["input_ids"].shape
        if self._specs["attention_mask"].shape != (batch, length):
            raise UnsupportedError(
                f"graph {session.graph.name} has a past of fixed length",
                "export it again with --static batch=1,seq=256",
            )
        self._length = int(length)
        self._fed: dict[str, Array] = {}

    def __call__(
        self, input_ids: Array, attention_mask: Array, position_ids: Array, *, fresh: bool
    ) -> Array:
        """Logits of the last position, (batch, vocabulary)."""
        new = {"input_ids": input_ids, "position_ids": position_ids}
        if not fresh:
            new = {n: np.concatenate([self._fed[n], a], axis=1) for n, a in new.items()}
        self._fed = new
        feed = new | {"attention_mask": attention_mask}
        feed = {n: np.pad(a, ((0, 0), (self._length - a.shape[1], 0))) for n, a in feed.items()}
        pasts = [s for s in self._specs.values() if s.name.startswith("past_key_values.")]
        empty = {s.name: _empty(s.shape, s.dtype, len(input_ids)) for s in pasts}
        return np.asarray(self._session.run(_cast(self._session, feed) | empty)["logits"][:, -1])


def _cast(session: Session, tokens: dict[str, Array]) -> dict[str, Array]:
    """Those of the three that the graph has, in its integer type."""
    types = {spec.name: spec.dtype for spec in session.graph.inputs}
    return {n: a.astype(types[n], copy=False) for n, a in tokens.items() if n in types}


def _empty(shape: tuple[int | str, ...], dtype: str, batch: int) -> Array:
    """A cache of no positions, (batch, kv_heads, 0, head_dim)."""
    sizes = {"batch": batch}
    return np.zeros([sizes.get(n, 0) if isinstance(n, str) else n for n in shape], dtype)


class PlainDecoder:
    """A `Decoder` over a `CachedForward`, with sampling in numpy.

    Prompts of unlike length are padded on the left and masked, as transformers does it.
    """

    def __init__(self, forward: CachedForward, vocab_size: int, seed: int) -> None:
        self._forward = forward
        self._vocab_size = vocab_size
        self._seed = seed
        self._sampling = Sampling()
        self._dice: list[np.random.Generator] = []
        self._seen: Array | None = None
        self._mask = self._ids = np.zeros((0, 0), np.int64)

    def start(self, prompts: Prompts, sampling: Sampling) -> Array:
        """Prefill; the first new token of each sequence, (batch,)."""
        ids, self._mask = pad_left(prompts)
        self._sampling = sampling
        self._dice = dice(prompts, self._seed)
        self._seen = None
        if sampling.repetition_penalty != 1:
            self._seen = np.zeros((len(prompts), self._vocab_size), bool)
            for row, prompt in zip(self._seen, prompts, strict=True):
                row[list(prompt)] = True
        return self._next(ids, np.clip(self._mask.cumsum(axis=1) - 1, 0, None), fresh=True)

    def step(self) -> Array:
        """The next token of each sequence, (batch,)."""
        self._mask = np.pad(self._mask, ((0, 0), (0, 1)), constant_values=1)
        return self._next(
            self._ids[:, None], self._mask.sum(axis=1, keepdims=True) - 1, fresh=False
        )

    def _next(self, ids: Array, positions: Array, *, fresh: bool) -> Array:
        logits = self._forward(ids, self._mask, positions, fresh=fresh)
        self._ids = _sampling.choose(logits, self._sampling, self._seen, self._dice)
        if self._seen is not None:
            self._seen[np.arange(len(self._ids)), self._ids] = True
        return self._ids


def pad_left(prompts: Prompts) -> tuple[Array, Array]:
    """Ids and attention mask, (batch, longest); what is padded has mask 0."""
    longest = max(map(len, prompts))
    ids, mask = np.zeros((2, len(prompts), longest), np.int64)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = prompt
        mask[i, longest - len(prompt) :] = 1
    return ids, mask


def dice(prompts: Prompts, seed: int) -> list[np.random.Generator]:
    """One generator a sequence, so that each is drawn as if it ran alone.

    The seed is the same for all; only the copies of a prompt differ, by their number.
    """
    copies: Counter[tuple[int, ...]] = Counter()
    out = []
    for prompt in prompts:
        out.append(np.random.default_rng([seed, copies[prompt]]))
        copies[prompt] += 1
    return out
