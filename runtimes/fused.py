"""ONNX Runtime over EdgeGen's own graph for text (`exporters/fused.py`), on the CPU.

Keys and values lie in two buffers a layer that the graph reads and writes in place. For a token
everything is bound once: the token that came out is the token that goes in, and two numbers change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgegen.errors import FormatError, MismatchError, NotFoundError, UnsupportedError, UsageError
from edgegen.spec import Array, CachedForward, Feed, GraphSpec, Operator, Options, Sampling

READS = "fused"
LEAST_ROOM = 128  # positions of the first buffers; they double when they are full

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
        FormatError: the file cannot be read.
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
        pasts = {s.name: inputs[s.name][n] for s in self.graph.inputs if _is_past(s.name)}
        out = {
            name.replace("past_key_values", "present"): _longer(a, len(ids))
            for name, a in pasts.items()
        }
        out["logits"] = np.empty((1, len(ids), self._vocabulary), np.float32)
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

    @property
    def _vocabulary(self) -> int:
        return int(next(s.shape[-1] for s in self.graph.outputs if s.name == "logits"))

    def cache(self, batch: int) -> Cache:
        """Empty keys and values for `batch` sequences."""
        if self._session is None:
            raise UsageError("the session is closed", "open the bundle again")
        return Cache(self._session, self.graph, batch)

    def cached(self) -> CachedForward:
        """The decoder with its cache kept here."""
        return _Cached(self)

    def decoder(self, sampling: Sampling, seed: int = 0) -> GreedyDecoder | None:
        """A decoder that takes the most likely token in the graph; None for any other way."""
        return GreedyDecoder(self) if sampling == Sampling() else None

    def operators(self) -> tuple[Operator, ...]:
        """None: `--runtime onnxruntime` times the operators of the plain graph."""
        return ()

    def close(self) -> None:
        """Drop the session."""
        self._session = None


def _is_past(name: str) -> bool:
    return name.startswith("past_key_values.")


def _longer(past: Array, more: int) -> Array:
    """(kv_heads, past, head_dim) as (1, kv_heads, past + more, head_dim)."""
    return np.pad(past, ((0, 0), (0, more), (0, 0)))[None]


class Cache:
    """Keys and values of a batch, and what is bound to the graph.

    Every sequence begins at position 0 of its buffer; `lengths` says how far it goes.
    """

    def __init__(self, session: Any, graph: GraphSpec, batch: int) -> None:
        self._session, self._graph, self._batch = session, graph, batch
        self._names = {i.name for i in session.get_inputs()}
        self.lengths = np.zeros(batch, np.int64)
        self.buffers: dict[str, Array] = {}
        self._room = 0
        self._token = np.zeros((batch, 1), np.int64)
        self._place = np.zeros((batch, 1), np.int64)
        self._lengths = np.zeros(batch, np.int32)
        self._longest = np.zeros((), np.int32)
        self._bound: dict[str, Any] = {}

    def fill(self, pasts: Feed, length: int) -> None:
        """Start after a cache that was filled elsewhere, (kv_heads, length, head_dim) each."""
        self.make_room(length + 1)
        for name, array in pasts.items():
            self.buffers[name][0, :, :length] = array
        self.lengths[:] = length

    def make_room(self, positions: int) -> None:
        """Buffers of at least so many positions; what is in them stays."""
        limit = self._graph.limits.get("past+seq", positions)
        if positions > limit:
            raise UsageError(
                f"{positions} positions, the model has {limit}", "ask for fewer tokens"
            )
        if positions <= self._room:
            return
        room = max(LEAST_ROOM, 1 << (positions - 1).bit_length())
        self._room, old = min(room, max(limit, positions)), self.buffers
        self.buffers = {}
        for spec in self._graph.inputs:
            if _is_past(spec.name):
                shape = (self._batch, int(spec.shape[1]), self._room, int(spec.shape[3]))
                self.buffers[spec.name] = np.zeros(shape, np.float32)
                if old:
                    kept = old[spec.name].shape[2]
                    self.buffers[spec.name][:, :, :kept] = old[spec.name]
        self._values = {n: ort.OrtValue.ortvalue_from_numpy(a) for n, a in self.buffers.items()}
        self._bound.clear()

    def forward(self, ids: Array, counts: Array | None = None, *, every: bool = False) -> Array:
        """Logits of the last new position of each sequence, or of every one: (rows, vocabulary).

        `ids` (batch, time) are padded on the right where `counts` says that fewer are new.
        """
        binding = self._bind(ids, counts, every=every)
        binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(binding)
        logits: Array = binding.get_outputs()[-1].numpy()
        return logits

    def _bind(self, ids: Array, counts: Array | None, *, every: bool) -> Any:
        time = ids.shape[1]
        counts = np.full(self._batch, time) if counts is None else counts
        self.make_room(int(self.lengths.max()) + time)
        feed = {
            "input_ids": np.ascontiguousarray(ids, np.int64),
            "position_ids": self._positions(time),
            "rows": np.arange(time) if every else np.arange(self._batch) * time + counts - 1,
        }
        self._advance(counts)
        binding = self._caches()
        for name, array in feed.items():
            if name in self._names:
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        return binding

    def _positions(self, time: int) -> Array:
        """Of the new tokens; what is padding may have any that there is."""
        limit = self._graph.limits.get("past+seq", self._room)
        found: Array = np.minimum(self.lengths[:, None] + np.arange(time), limit - 1)
        return found

    def _advance(self, counts: Array | int) -> None:
        self.lengths += counts
        self._lengths[:] = self.lengths - 1
        self._longest[...] = self.lengths.max()

    def _caches(self) -> Any:
        """A binding of everything that is the same for a prompt and for a token."""
        binding = self._session.io_binding()
        for name, value in self._values.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        for name, array in (("lengths", self._lengths), ("longest", self._longest)):
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        return binding

    def start(self, ids: Array, counts: Array) -> Array:
        """Read the prompts; the most likely next token of each, (batch,).

        Raises:
            MismatchError: logits that are not finite.
        """
        logits = self.forward(ids, counts)
        if not np.isfinite(logits).all():
            raise MismatchError(
                "the model's logits are not finite", "check the bundle with: edgegen verify BUNDLE"
            )
        self._token[:, 0] = logits.argmax(-1)
        return self._token[:, 0].copy()

    def step(self) -> Array:
        """Read the token of before; the most likely next one of each, (batch,)."""
        self.make_room(int(self.lengths.max()) + 1)
        if "step" not in self._bound:
            self._bound["step"] = self._step_binding()
        self._place[:, 0] = self.lengths
        self._advance(1)
        self._session.run_with_iobinding(self._bound["step"])
        return self._token[:, 0].copy()

    def _step_binding(self) -> Any:
        """Bound once: what comes out as `next` lies where `input_ids` goes in."""
        binding = self._caches()
        rows = np.arange(self._batch, dtype=np.int64)
        feed = {"input_ids": self._token, "position_ids": self._place, "rows": rows}
        for name, array in feed.items():
            if name in self._names:
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        following = ort.OrtValue.ortvalue_from_numpy(self._token.reshape(-1))
        binding.bind_ortvalue_output("next", following)
        return binding


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


class GreedyDecoder:
    """A `Decoder`: the most likely token is chosen in the graph."""

    def __init__(self, session: FusedSession) -> None:
        self._session = session

    def start(self, prompts: tuple[tuple[int, ...], ...], sampling: Sampling) -> Array:
        """Prefill; the first new token of each sequence, (batch,)."""
        counts = np.array([len(prompt) for prompt in prompts])
        ids = np.zeros((len(prompts), counts.max()), np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        self._cache = self._session.cache(len(prompts))
        return self._cache.start(ids, counts)

    def step(self) -> Array:
        """The next token of each sequence, (batch,)."""
        return self._cache.step()
