"""ONNX Runtime over EdgeGen's own graph for text (`exporters/fused.py`), on the CPU.

Keys and values lie in two buffers a layer that the graph reads and writes in place. For a token
everything is bound once: the token that came out is the token that goes in, and two numbers change
(`_fused_cache.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgegen.errors import FormatError, MismatchError, NotFoundError, UnsupportedError, UsageError
from edgegen.runtimes._fused_cache import Cache, is_past, vocabulary_of
from edgegen.runtimes.loops._sampling import draw, filtered
from edgegen.runtimes.loops.autoregressive import dice, pad_left
from edgegen.spec import Array, CachedForward, Feed, GraphSpec, Operator, Options, Sampling

READS = "fused"

ort.disable_telemetry_events()
ort.set_default_logger_severity(3)


def version() -> str:
    """The version of ONNX Runtime."""
    return str(ort.__version__)


def devices() -> list[str]:
    """The CPU."""
    return ["cpu"]


def open_graph(path: Path, graph: GraphSpec, device: str, options: Options) -> FusedSession:
    """Open `path` on the CPU.

    Raises:
        NotFoundError: another device than the CPU.
        UnsupportedError: options for a provider.
        FormatError: the file cannot be read, or is of an older EdgeGen.
    """
    if device.partition(":")[0] not in ("cpu", "auto"):
        raise NotFoundError(
            f"fused has no device {device!r}, only cpu", "use --runtime onnxruntime there"
        )
    if options.provider:
        raise UnsupportedError(
            f"fused has no option {min(options.provider)!r}", "leave it out, it has none"
        )
    config = ort.SessionOptions()
    config.intra_op_num_threads = options.threads
    try:
        session = ort.InferenceSession(str(path), config, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
        raise FormatError(
            f"{path}: onnxruntime {version()} cannot open it: {str(error).strip().splitlines()[0]}",
            "run: edgegen verify BUNDLE, then export again",
        ) from error
    if "count" not in {i.name for i in session.get_inputs()}:
        raise FormatError(
            f"{path}: was drawn by an older EdgeGen, its graph does not give the best tokens",
            "export it again with: edgegen export SOURCE --to fused",
        )
    return FusedSession(session, graph)


class FusedSession:
    """A `Session` over the fused graph, with the tensors of the plain one."""

    def __init__(self, session: Any, graph: GraphSpec) -> None:
        self.graph = graph
        self._session = session

    def run(self, inputs: Feed) -> dict[str, Array]:
        """The graph's outputs; the cache goes in and comes out as any other tensor.

        Sequence by sequence: where some are padded, what is padding has no place in the cache.
        """
        self.graph.check(inputs)
        _check_places(inputs["position_ids"], inputs["attention_mask"])
        rows = [self._row(inputs, n) for n in range(len(inputs["input_ids"]))]
        return {
            spec.name: np.concatenate([r[spec.name] for r in rows]) for spec in self.graph.outputs
        }

    def _row(self, inputs: Feed, n: int) -> dict[str, Array]:
        """One sequence. Padding sees nothing but itself: it is a sequence of its own."""
        ids, mask = inputs["input_ids"][n], inputs["attention_mask"][n] != 0
        past = len(mask) - len(ids)
        old, new = np.flatnonzero(mask[:past]), np.flatnonzero(mask[past:])
        pasts = {s.name: inputs[s.name][n] for s in self.graph.inputs if is_past(s.name)}
        out = {
            name.replace("past_key_values", "present"): _longer(a, len(ids))
            for name, a in pasts.items()
        }
        out["logits"] = np.empty((1, len(ids), vocabulary_of(self.graph)), np.float32)
        runs = [(np.array([i]), np.array([], np.int64)) for i in np.flatnonzero(~mask[past:])]
        for mine, before in [*runs, *([(new, old)] if len(new) else [])]:
            cache = self.cache(1)
            cache.fill({name: array[:, before] for name, array in pasts.items()}, len(before))
            out["logits"][0, mine] = cache.forward(ids[mine][None], every=True)
            for name in pasts:
                present = name.replace("past_key_values", "present")
                made = cache.buffers[name][0, :, len(before) : len(before) + len(mine)]
                out[present][0][:, past + mine] = made
        return out

    def cache(self, batch: int, count: int = 1) -> Cache:
        """Empty keys and values for `batch` sequences, and room for the `count` best tokens."""
        if self._session is None:
            raise UsageError("the session is closed", "open the bundle again")
        return Cache(self._session, self.graph, batch, count)

    def cached(self) -> CachedForward:
        """The decoder with its cache kept here."""
        return _Cached(self)

    def decoder(self, sampling: Sampling, seed: int = 0) -> FusedDecoder | None:
        """One for greedy text and top-k; None where the choice needs every logit."""
        all_of_them = sampling.temperature and not 0 < sampling.top_k < vocabulary_of(self.graph)
        if all_of_them or sampling.repetition_penalty != 1:
            return None
        return FusedDecoder(self, sampling, seed)

    def operators(self) -> tuple[Operator, ...]:
        """None: `--runtime onnxruntime` times the operators of the plain graph."""
        return ()

    def close(self) -> None:
        """Drop the session."""
        self._session = None


def _longer(past: Array, more: int) -> Array:
    """(kv_heads, past, head_dim) as (1, kv_heads, past + more, head_dim)."""
    return np.pad(past, ((0, 0), (0, more), (0, 0)))[None]


class _Cached:
    """A `CachedForward`; the padding on the left moves to the right."""

    def __init__(self, session: FusedSession) -> None:
        self._session = session
        self._cache: Cache | None = None

    def __call__(
        self, input_ids: Array, attention_mask: Array, position_ids: Array, *, fresh: bool
    ) -> Array:
        """Logits of the last position, (batch, vocabulary)."""
        if fresh or self._cache is None:
            _check_places(position_ids, attention_mask)
            self._cache = self._session.cache(len(input_ids))
            return self._cache.forward(*_to_the_right(input_ids, attention_mask))
        return self._cache.forward(input_ids)


def _check_places(positions: Array, mask: Array) -> None:
    """Raise `MismatchError` for tokens elsewhere than after those that the mask lets through: the
    graph counts them itself."""
    wanted = np.maximum((mask != 0).cumsum(axis=1) - 1, 0)[:, mask.shape[1] - positions.shape[1] :]
    if not np.array_equal(wanted, positions):
        raise MismatchError(
            "fused: position_ids do not count the tokens of attention_mask one by one from 0",
            "give position_ids = max(cumsum(attention_mask) - 1, 0), or use --runtime onnxruntime",
        )


def _to_the_right(ids: Array, mask: Array) -> tuple[Array, Array]:
    """Ids with their padding at the end, and how many of each sequence are real."""
    counts = (mask != 0).sum(axis=1)
    moved = np.zeros_like(ids)
    for row, (mine, count) in enumerate(zip(ids, counts, strict=True)):
        moved[row, :count] = mine[len(mine) - count :]
    return moved, counts


class FusedDecoder:
    """A `Decoder` of which the graph does the long part: it finds the best of all tokens.

    The most likely one goes straight into the next step. For top-k only the k best leave the
    graph, and are filtered and drawn as everywhere, with the same random numbers.
    """

    def __init__(self, session: FusedSession, sampling: Sampling, seed: int) -> None:
        self._session, self._sampling, self._seed = session, sampling, seed
        # One more than the k best: whether it equals the last of them.
        self._count = 1 + sampling.top_k if sampling.temperature else 1

    def start(self, prompts: tuple[tuple[int, ...], ...], sampling: Sampling) -> Array:
        """Prefill; the first new token of each sequence, (batch,)."""
        self._dice = dice(prompts, self._seed) if self._count > 1 else []
        self._cache = self._session.cache(len(prompts), self._count)
        self._cache.start(*_to_the_right(*pad_left(prompts)))
        return self._next()

    def step(self) -> Array:
        """The next token of each sequence, (batch,)."""
        self._cache.step()
        return self._next()

    def _next(self) -> Array:
        token = self._cache.token[:, 0]
        if self._count > 1:
            token[:] = [self._draw(row, die) for row, die in enumerate(self._dice)]
        return token.copy()

    def _draw(self, row: int, die: np.random.Generator) -> int:
        best, tokens = self._cache.best[row], self._cache.tokens[row]
        if best[-1] == best[-2]:  # whatever equals the k-th is kept too, and may be more than one
            return draw(filtered(self._cache.logits[row], self._sampling), die)
        order = np.argsort(tokens[:-1])  # as they stand in the vocabulary
        chosen = draw(filtered(best[:-1][order], self._sampling), die)
        return int(tokens[order[chosen]])
