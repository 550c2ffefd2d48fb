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
from edgegen.runtimes._memory import afford
from edgegen.runtimes.loops import _sampling
from edgegen.spec import Array, CachedForward, Decoder, Feed, Request, Sampling, Session

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
    session = sessions["model"]
    _check_batch(session, request.batch)
    check(request, loop, positions(session, loop))
    prompts = request.prompts or random_prompts(loop, request, rng)
    decoder = _decoder(session, loop, request)
    return _tokens(decoder, () if request.ignore_eos else loop.eos, request, prompts)


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


def check(request: Request, loop: Text, positions: int) -> None:
    """Raise `UsageError` unless the request is sound and fits `positions` and the memory."""
    _sampling.check(request.sampling)
    longest = max(map(len, request.prompts), default=request.prompt_tokens)
    if request.prompts and len(request.prompts) != request.batch:
        raise UsageError(f"{len(request.prompts)} prompts for a batch of {request.batch}")
    if longest < 1 or not all(request.prompts):
        raise UsageError("an empty prompt", "give at least one token")
    ids = [i for prompt in request.prompts for i in prompt]
    if ids and not 0 <= min(ids) <= max(ids) < loop.vocab_size:
        raise UsageError(
            f"token ids go from 0 to {loop.vocab_size - 1}, found {min(ids)} to {max(ids)}"
        )
    check_room(loop, positions, request.batch, longest, request.new_tokens)


def check_room(loop: Text, positions: int, batch: int, prompt_tokens: int, new_tokens: int) -> None:
    """Raise `UsageError` for more tokens than positions, or than the free memory holds."""
    if new_tokens < 1:
        raise UsageError(f"new_tokens is {new_tokens}, wanted 1 or more")
    _check_positions(prompt_tokens, new_tokens, positions)
    # The cache twice, as past and as present, and the logits of the whole prompt; 4 bytes each.
    cache = 4 * loop.layers * loop.kv_heads * loop.head_dim * (prompt_tokens + new_tokens)
    need_bytes = 4 * batch * (cache + prompt_tokens * loop.vocab_size)
    afford(f"batch {batch}", need_bytes, "ask for a smaller batch or a shorter prompt")


def _check_batch(session: Session, batch: int) -> None:
    fixed = next(s.shape[0] for s in session.graph.inputs if s.name == "input_ids")
    if isinstance(fixed, int) and fixed != batch:
        raise UsageError(f"batch is {batch}, the graph was exported for batch {fixed}")


def _check_positions(prompt_tokens: int, new_tokens: int, positions: int) -> None:
    # The last new token is never read back, so it takes no position.
    if prompt_tokens > positions:
        raise UsageError(
            f"the prompt has {prompt_tokens} tokens, the model has {positions} positions",
            f"shorten the prompt by {prompt_tokens - positions} tokens or more",
        )
    if prompt_tokens + new_tokens - 1 > positions:
        raise UsageError(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones do not fit the model's "
            f"{positions} positions",
            f"ask for {positions - prompt_tokens + 1} new tokens or fewer (--max-new-tokens)",
        )


def random_prompts(loop: Text, request: Request, rng: np.random.Generator) -> Prompts:
    """Prompts of `request.prompt_tokens` random ids."""
    ids = rng.integers(0, loop.vocab_size, (request.batch, request.prompt_tokens))
    return tuple(tuple(row) for row in ids.tolist())


def window(session: Session) -> int | None:
    """The sequence length that the graph was fixed to; None when it is free."""
    length = next(s.shape[1] for s in session.graph.inputs if s.name == "input_ids")
    return length if isinstance(length, int) else None


def positions(session: Session, loop: Text) -> int:
    """How many tokens, prompt and text together, the graph can look at."""
    return window(session) or loop.max_positions


def forward(session: Session) -> CachedForward:
    """The engine's own cache where it has one that fits the graph."""
    if window(session):
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
