"""Keys and values of the fused graph, and what is bound to it for a prompt and for a token."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from edgegen.errors import MismatchError, UsageError
from edgegen.spec import Array, Feed, GraphSpec

LEAST_ROOM = 128  # positions of the first buffers; they double when they are full


class Cache:
    """Keys and values of a batch, and the `count` best next tokens of each sequence.

    Every sequence begins at position 0 of its buffer; `lengths` says how far it goes. After `start`
    and `step` there are `logits` (batch, vocabulary), `best` and `tokens` (batch, count); `token`
    (batch, 1) is what the next step reads, and of one best token it is that one already.
    """

    def __init__(self, session: Any, graph: GraphSpec, batch: int, count: int = 1) -> None:
        self._session, self._graph, self._batch = session, graph, batch
        self._names = {i.name for i in session.get_inputs()}
        self.lengths = np.zeros(batch, np.int64)
        self.buffers: dict[str, Array] = {}
        self._room = 0
        self._count = np.array([count])
        self._lengths = np.zeros(batch, np.int32)
        self._longest = np.zeros((), np.int32)
        self._place = np.zeros((batch, 1), np.int64)
        self.token = np.zeros((batch, 1), np.int64)
        self.tokens = self.token if count == 1 else np.zeros((batch, count), np.int64)
        self.best = np.zeros((batch, count), np.float32)
        self.logits = np.zeros((batch, vocabulary_of(graph)), np.float32)
        self._step: Any = None

    def fill(self, pasts: Feed, length: int) -> None:
        """Start after a cache that was filled elsewhere, (kv_heads, length, head_dim) each."""
        self._make_room(length + 1)
        for name, array in pasts.items():
            self.buffers[name][0, :, :length] = array
        self.lengths[:] = length

    def forward(self, ids: Array, counts: Array | None = None, *, every: bool = False) -> Array:
        """Logits of the last new position of each sequence, or of every one: (rows, vocabulary).

        `ids` (batch, time) are padded on the right where `counts` says that fewer are new.
        """
        binding = self._bind(ids, counts, every=every)
        binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(binding)
        logits: Array = binding.get_outputs()[-1].numpy()
        return logits

    def start(self, ids: Array, counts: Array) -> None:
        """Read the prompts, padded on the right.

        Raises:
            MismatchError: logits that are not finite.
        """
        self._run(self._with_results(self._bind(ids, counts, every=False)))

    def step(self) -> None:
        """Read `token`.

        Raises:
            UsageError: the model has no more positions.
            MismatchError: logits that are not finite.
        """
        self._make_room(int(self._longest) + 1)
        if self._step is None:
            self._step = self._with_results(self._step_binding())
        self._place[:, 0] = self.lengths
        for count in (self.lengths, self._lengths, self._longest):
            count += 1
        self._run(self._step)

    def _run(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding)
        if not np.isfinite(self.logits.max(axis=-1)).all():  # one NaN makes the maximum NaN
            raise MismatchError(
                "the model's logits are not finite", "check the bundle with: edgegen verify BUNDLE"
            )

    def _make_room(self, positions: int) -> None:
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
            if is_past(spec.name):
                shape = (self._batch, int(spec.shape[1]), self._room, int(spec.shape[3]))
                self.buffers[spec.name] = np.zeros(shape, np.float32)
                if old:
                    kept = old[spec.name].shape[2]
                    self.buffers[spec.name][:, :, :kept] = old[spec.name]
        self._values = {n: ort.OrtValue.ortvalue_from_numpy(a) for n, a in self.buffers.items()}
        self._step = None

    def _bind(self, ids: Array, counts: Array | None, *, every: bool) -> Any:
        time = ids.shape[1]
        counts = np.full(self._batch, time) if counts is None else counts
        self._make_room(int(self.lengths.max()) + time)
        feed = {
            "input_ids": np.ascontiguousarray(ids, np.int64),
            "position_ids": self._positions(time),
            "rows": np.arange(time) if every else np.arange(self._batch) * time + counts - 1,
        }
        self.lengths += counts
        self._lengths[:] = self.lengths - 1
        self._longest[...] = self.lengths.max()
        return self._bound(feed)

    def _positions(self, time: int) -> Array:
        """Of the new tokens; what is padding may have any that there is."""
        limit = self._graph.limits.get("past+seq", self._room)
        found: Array = np.minimum(self.lengths[:, None] + np.arange(time), limit - 1)
        return found

    def _step_binding(self) -> Any:
        rows = np.arange(self._batch, dtype=np.int64)
        return self._bound({"input_ids": self.token, "position_ids": self._place, "rows": rows})

    def _bound(self, feed: Feed) -> Any:
        """A binding of `feed` and of what is the same for a prompt and for a token."""
        binding = self._session.io_binding()
        for name, value in self._values.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        counts = {"lengths": self._lengths, "longest": self._longest, "count": self._count}
        for name, array in {**feed, **counts}.items():
            if name in self._names:
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        return binding

    def _with_results(self, binding: Any) -> Any:
        """The best token comes out where `input_ids` goes in, if one is all that is asked for."""
        found = {"logits": self.logits, "best": self.best, "tokens": self.tokens}
        for name, array in found.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        return binding


def is_past(name: str) -> bool:
    """Whether an input of the graph is a part of its cache."""
    return name.startswith("past_key_values.")


def vocabulary_of(graph: GraphSpec) -> int:
    """How many tokens have a logit."""
    return int(next(s.shape[-1] for s in graph.outputs if s.name == "logits"))
