"""What flows between the stages: frozen data, numpy only, safe to import on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgegen.errors import MismatchError

Array = NDArray[Any]
Feed = Mapping[str, Array]
# (what is going on, steps done, steps in all): how library functions report progress.
Report = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """A `Report` that says nothing."""


class TensorSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """One named input or output of a graph.

    A dimension is a number when it is fixed and a name when it is free:
    `TensorSpec("x", "float32", ("batch", 3, 32, 32))`. `low` and `high`, where given, bound the
    values that make sense (token ids, masks); without them test data is a standard normal.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    low: float | None = None
    high: float | None = None

    def check(self, array: Array) -> None:
        """Raise `MismatchError` unless it fits, with the tensor, what was wanted and what came."""
        fits = len(array.shape) == len(self.shape) and all(
            isinstance(want, str) or want == have
            for want, have in zip(self.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != np.dtype(self.dtype):
            wanted = ", ".join(map(str, self.shape))
            found = ", ".join(map(str, array.shape))
            raise MismatchError(
                f"{self.name}: wanted {self.dtype}[{wanted}], found {array.dtype}[{found}]",
                f"cast or reshape {self.name} to {self.dtype}[{wanted}]",
            )


class GraphSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """One exported graph: the unit an engine opens and runs.

    `limits` holds the largest size of a free dimension, where it has one: `{"seq": 512}`.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    limits: dict[str, int] = {}

    def check(self, feed: Feed) -> None:
        """Raise `MismatchError` unless `feed` has every input, each of its type and shape.

        A free dimension must have one size wherever it stands, within its limit, and one called
        "past+seq" the sum of both.
        """
        wanted = {spec.name for spec in self.inputs}
        if set(feed) != wanted:
            lost, extra = sorted(wanted - set(feed)), sorted(set(feed) - wanted)
            raise MismatchError(
                f"graph {self.name}: missing inputs {lost}, unknown inputs {extra}",
                f"it takes: {', '.join(spec.name for spec in self.inputs)}",
            )
        sizes: dict[str, tuple[int, str]] = {}
        for spec in self.inputs:
            spec.check(feed[spec.name])
            for name, size in zip(spec.shape, feed[spec.name].shape, strict=True):
                if isinstance(name, str):
                    self._check_size(sizes, name, size, spec.name)
        for name, (size, where) in sizes.items():
            parts = [sizes[part][0] for part in name.split("+") if part in sizes]
            if len(parts) == name.count("+") + 1 > 1 and sum(parts) != size:
                raise MismatchError(
                    f"{where}: {name} is {size}, wanted {' + '.join(map(str, parts))}",
                    f"give {where} the length {sum(parts)} there",
                )

    def _check_size(
        self, sizes: dict[str, tuple[int, str]], name: str, size: int, tensor: str
    ) -> None:
        first, where = sizes.setdefault(name, (size, tensor))
        if first != size:
            raise MismatchError(
                f"{name} is {first} in {where} but {size} in {tensor}",
                f"give {name} one size in all inputs",
            )
        if size > self.limits.get(name, size):
            limit = self.limits[name]
            raise MismatchError(
                f"{tensor}: {name} is {size}, the limit is {limit}", f"use at most {limit}"
            )


class Scheme(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the weight of one layer is rounded, and with `input_bits` its input, too.

    `group_size` input channels share a scale; 0 gives each output channel one, -1 the tensor one.
    Weights are signed where `symmetric`, else unsigned with a zero point. With `codebook` each
    group picks from 2^bits free values instead of evenly spaced ones. Inputs are unsigned 8 bit,
    one scale and zero point a tensor.
    """

    bits: int = 8
    group_size: int = 0
    symmetric: bool = True
    codebook: bool = False
    input_bits: int = 0


class ModelSpec(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which family a model is of, the configuration its `Config` reads, and what was done to it.

    `shapes` are those of parameters that pruning made smaller than the configuration says, by
    name; `layers` the quantized layers and `adapters` the ranks of low-rank adapters that are not
    merged, by the name of the module they belong to.
    """

    family: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]] = {}
    layers: dict[str, Scheme] = {}
    adapters: dict[str, int] = {}


class Sampling(Struct, frozen=True, forbid_unknown_fields=True):
    """How the next token is drawn from the logits; the default is greedy.

    `temperature` 0 takes the most likely token. `top_k` 0, `top_p` 1 and `min_p` 0 keep all
    tokens; `repetition_penalty` above 1 makes tokens that occurred before less likely.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


class Request(Struct, frozen=True, forbid_unknown_fields=True):
    """The workload. Two profiles are comparable only where their requests are equal.

    Text uses `prompt_tokens`, `new_tokens` and `sampling`; with an empty `prompts` the prompt is
    drawn at random, anew each time. `sizes` fixes free dimensions other than the batch.
    """

    batch: int = 1
    seed: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    sampling: Sampling = Sampling()
    prompts: tuple[tuple[int, ...], ...] = ()
    ignore_eos: bool = False
    sizes: dict[str, int] = {}


class Operator(Struct, frozen=True, forbid_unknown_fields=True):
    """One operator as the engine itself timed it, summed over the calls of one profiled run."""

    name: str
    kind: str
    device: str
    calls: int
    total_ms: float
    precision: str = ""


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """How an engine opens a graph.

    `threads` 0 leaves the choice to the engine. `precision` is what must run, never less;
    `kv_cache` that of the key/value cache, where it is another one. `provider` is passed through
    to the engine as it is. `adapter` is the one in use from the start, "none" the model without
    one; empty leaves it to the bundle.
    """

    threads: int = 0
    precision: str = "fp32"
    allow_fallback: bool = False
    profile: bool = False
    provider: dict[str, str] = {}
    adapter: str = ""
    kv_cache: str = ""


class Session(Protocol):
    """One graph, opened by one engine on one device. Numpy at the boundary."""

    graph: GraphSpec

    def run(self, inputs: Feed) -> dict[str, Array]:
        """The graph's outputs by name; raises `MismatchError` for inputs that do not fit."""

    def operators(self) -> tuple[Operator, ...]:
        """What ran, where and for how long, since opening; empty unless `Options.profile`."""

    def close(self) -> None:
        """Give the engine's memory back."""


class CachedForward(Protocol):
    """A decoder graph with its key/value cache kept by the engine between calls."""

    def __call__(
        self, input_ids: Array, attention_mask: Array, position_ids: Array, *, fresh: bool
    ) -> Array:
        """Logits of the last position, (batch, vocabulary); `fresh` starts with an empty cache.

        `input_ids` and `position_ids` are (batch, new); `attention_mask` is (batch, past + new).
        """


class Decoder(Protocol):
    """Text generation from outside, so that an engine may keep cache and sampling to itself."""

    def start(self, prompts: tuple[tuple[int, ...], ...], sampling: Sampling) -> Array:
        """Prefill; the first new token of each sequence, shape (batch,)."""

    def step(self) -> Array:
        """The next token of each sequence, shape (batch,)."""


@runtime_checkable
class LoopDecoder(Decoder, Protocol):
    """A decoder whose engine has the whole loop, so that no Python runs between two tokens."""

    def begin(self, prompts: tuple[tuple[int, ...], ...], sampling: Sampling) -> None:
        """Take the prompts; the first `write` reads them."""

    def write(
        self,
        steps: int,
        ends: Sequence[int] = (),
        tell: Callable[[Array], bool | None] | None = None,
    ) -> Array:
        """Up to `steps` tokens of each sequence, (steps done, batch); fewer where all of them have
        met one of `ends`. `tell` is called with the tokens of each step, and may end it by True."""
