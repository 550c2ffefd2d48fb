"""EdgeGen's own engine for text: small decoders, on the CPU, in C (`_native/`).

Built when EdgeGen is installed, where there is a C compiler. The file is mapped into memory and
used as it lies there.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgegen.errors import (
    MismatchError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from edgegen.rooms import nearest
from edgegen.runtimes._native_library import (
    CACHES,
    SAID,
    SILENT,
    TELL,
    Model,
    Run,
    Text,
    built,
    library,
)
from edgegen.runtimes.loops.autoregressive import dice, pad_left
from edgegen.spec import Array, CachedForward, Feed, GraphSpec, Operator, Options, Sampling

__all__ = ["READS", "built", "devices", "open_graph", "version"]

READS = "native"
SMALL_BYTES = 4_000_000  # below this, one thread is faster than two that wait for each other
MOST_THREADS = 64  # that the engine takes
AHEAD = 64  # random numbers drawn at once


def version() -> str:
    """The version of EdgeGen, and the kernels that this CPU runs."""
    from edgegen import __version__

    return f"{__version__} {library().eg_kernels(None).decode()}"


def devices() -> list[str]:
    """The CPU."""
    return ["cpu"]


def open_graph(path: Path, graph: GraphSpec, device: str, options: Options) -> NativeSession:
    """Map the file and check every size and number in it.

    Raises:
        NotFoundError: another device than the CPU.
        FormatError: a damaged file; what is wrong with it is named.
        UsageError: more threads than this process may use.
    """
    if device.partition(":")[0] not in ("cpu", "auto"):
        raise NotFoundError(f"native has no device {device!r}, only cpu", "use --device cpu")
    unknown = set(options.provider) - {"kernels", "cache"}
    if unknown:
        raise UnsupportedError(
            f"native has no option {min(unknown)!r}", "its options are kernels=NAME and cache=int8"
        )
    return NativeSession(Model(path), graph, options)


class NativeSession:
    """A decoder, opened. Its caches are made for the first batch and kept for the next."""

    def __init__(self, model: Model, graph: GraphSpec, options: Options) -> None:
        self.graph = graph
        self._model: Model | None = model
        self._kernels = options.provider.get("kernels", "")
        if model.library.eg_kernels(self._kernels.encode()) is None:
            best = model.library.eg_kernels(None).decode()
            raise UsageError(f"this CPU has no kernels {self._kernels!r}", f"its best are {best}")
        self._cache = options.provider.get("cache", options.kv_cache or "fp32")
        if self._cache not in CACHES:
            raise UsageError(f"native: no cache {self._cache!r}", nearest(self._cache, CACHES))
        self.threads = _threads(options.threads, model.weight_bytes)
        self._run: Run | None = None

    def run(self, inputs: Feed) -> dict[str, Array]:
        """The graph's outputs; the cache goes in and comes out as any other tensor."""
        self.graph.check(inputs)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        run, past = self.ready(len(ids)), mask.shape[1] - ids.shape[1]
        pasts = [s.name for s in self.graph.inputs if s.name.startswith("past_key_values.")]
        for name in pasts if past else ():
            _, layer, side = name.split(".")
            run.put(int(layer), side, inputs[name])
        out = {"logits": run.forward(ids, inputs["position_ids"], mask != 0, every=True)}
        for name in pasts:
            _, layer, side = name.split(".")
            out[f"present.{layer}.{side}"] = run.get(int(layer), side, mask.shape[1])
        return out

    def cached(self) -> CachedForward:
        """The decoder with its cache kept here."""
        return _Cached(self)

    def decoder(self, sampling: Sampling, seed: int = 0) -> NativeDecoder:
        """A decoder that draws the next token inside the engine, the same one as any other."""
        return NativeDecoder(self, seed)

    @property
    def pace(self) -> tuple[int, int]:
        """Threads of the next token, and how often one was late so that there were fewer."""
        if self._run is None:
            return self.threads, 0
        library, handle = self._run.model.library, self._run.handle
        return library.eg_run_threads(handle), library.eg_run_late(handle)

    def remarks(self) -> tuple[str, ...]:
        """What happened that nobody asked for: threads left out while their core was busy."""
        late = self.pace[1]
        what = "a thread's core was busy with something else, so that fewer worked for a while"
        return (f"native: {late} times {what}",) if late else ()

    def ready(self, batch: int) -> Run:
        """Caches for `batch` sequences."""
        if self._model is None:
            raise UsageError("the session is closed", "open the bundle again")
        if self._run is None or self._run.batch != batch:
            self._run = None  # before the next, so that there are never two
            self._run = Run(self._model, batch, self.threads, self._kernels, self._cache)
        return self._run

    def operators(self) -> tuple[Operator, ...]:
        """None, even when asked to profile: the engine is one operator."""
        return ()

    def close(self) -> None:
        """Give back caches, threads and the mapping."""
        self._run = self._model = None


class _Cached:
    """A `CachedForward`."""

    def __init__(self, session: NativeSession) -> None:
        self._session = session

    def __call__(
        self, input_ids: Array, attention_mask: Array, position_ids: Array, *, fresh: bool
    ) -> Array:
        """Logits of the last position, (batch, vocabulary)."""
        run = self._session.ready(len(input_ids))
        return run.forward(input_ids, position_ids, attention_mask, every=False)[:, 0]


class NativeDecoder:
    """A `Decoder`: the loop and the choice of tokens are the engine's.

    The random numbers are those of the common loop, one a sequence and step, so the same seed
    gives the tokens that it gives on every engine.
    """

    def __init__(self, session: NativeSession, seed: int) -> None:
        self._session, self._seed = session, seed
        self._text = Text()
        self._said = ctypes.create_string_buffer(SAID)

    def start(self, prompts: tuple[tuple[int, ...], ...], sampling: Sampling) -> Array:
        """Prefill; the first new token of each sequence, (batch,)."""
        self.begin(prompts, sampling)
        return self.step()

    def begin(self, prompts: tuple[tuple[int, ...], ...], sampling: Sampling) -> None:
        """Take the prompts, padded on the left; the first `write` reads them."""
        self._run = run = self._session.ready(len(prompts))
        ids, mask = pad_left(prompts)
        batch, time = ids.shape
        sizes = run.model.sizes
        wide = np.ones((batch, max(sizes["positions"], time)), np.uint8)
        wide[:, :time] = mask
        positions = np.clip(mask.cumsum(axis=1) - 1, 0, None)
        self._is_drawn = sampling.temperature != 0
        self._dice = dice(prompts, self._seed) if self._is_drawn else []
        self._drawn = np.empty((0, batch))
        self._arrays = {"ids": ids.copy(), "positions": positions, "mask": wide}
        self._arrays["ended"] = np.zeros(batch, np.uint8)
        if sampling.repetition_penalty != 1:
            self._arrays["seen"] = seen = np.zeros((batch, sizes["vocabulary"]), np.uint8)
            for row, prompt in zip(seen, prompts, strict=True):
                row[list(prompt)] = 1
        self._chosen = np.empty(batch, np.int32)
        where = {name: array.ctypes.data for name, array in self._arrays.items()}
        self._text = Text(**where, stride=wide.shape[1], time=time, **_drawing(sampling))
        # What every step hands over again, looked up once.
        self._place, self._chosen_at = ctypes.byref(self._text), self._chosen.ctypes.data
        self._ends: tuple[int, ...] = ()

    def step(self) -> Array:
        """The next token of each sequence, (batch,)."""
        found = self.write(1)
        if not len(found):
            raise UsageError("native: the text was cancelled", "start it again")
        ids: Array = found[0]
        return ids

    def write(
        self,
        steps: int,
        ends: Sequence[int] = (),
        tell: Callable[[Array], bool | None] | None = None,
    ) -> Array:
        """Up to `steps` tokens of every sequence in one call of the engine, (steps done, batch).

        It ends early when every sequence has met one of `ends` (which it then repeats), when
        `tell`, called with the tokens of each step (batch,), returns True, or on `cancel`.

        Raises:
            MismatchError: the cache is full, or logits are not finite.
        """
        out = np.empty((steps, len(self._chosen)), np.int64)
        if tuple(ends) != self._ends:
            self._ends = tuple(ends)
            self._arrays["ends"] = stop = np.array(ends, np.int64)
            self._text.ends, self._text.end_count = stop.ctypes.data, len(stop)
        raised: list[BaseException] = []
        random = self._random(steps) if self._is_drawn else None
        done = self._run.model.library.eg_write(
            self._run.handle,
            self._place,
            steps,
            random.ctypes.data if random is not None else None,
            *(out.ctypes.data, self._chosen_at),
            _teller(tell, out, raised) if tell else SILENT,
            self._said,
        )
        if raised:
            raise raised[0]
        if done == -1:
            raise MismatchError(f"native: {self._said.value.decode()}", "ask for fewer new tokens")
        if done < 0:
            raise MismatchError(
                "the model's logits are not finite", "check the bundle with: edgegen verify BUNDLE"
            )
        return out[:done]

    def cancel(self) -> None:
        """Stop a `write` that another thread is in, soon: within 32 tokens of a prompt, or one."""
        self._text.cancel = 1

    def _random(self, steps: int) -> Array:
        """The next random numbers of each sequence, (steps, batch)."""
        if len(self._drawn) < steps:
            more = max(steps - len(self._drawn), AHEAD)
            fresh = np.stack([die.random(more) for die in self._dice], axis=1)
            self._drawn = np.concatenate([self._drawn, fresh])
        now: Array = self._drawn[:steps]
        self._drawn = self._drawn[steps:]
        return now


def _drawing(sampling: Sampling) -> dict[str, Any]:
    """`sampling` as fields of `Text`."""
    fields = {name: getattr(sampling, name) for name in ("temperature", "top_p", "min_p")}
    return fields | {
        "penalty": sampling.repetition_penalty,
        "top_k": min(sampling.top_k, 2**62),  # more than any vocabulary, as any such number is
    }


def _teller(tell: Callable[[Array], bool | None], out: Array, raised: list[BaseException]) -> Any:
    """`tell` for C: what it raises ends the loop and is kept."""

    def told(step: int) -> int:
        try:
            return int(bool(tell(out[step])))
        except BaseException as error:  # Ctrl-C too; raised again outside of C
            raised.append(error)
            return 1

    return TELL(told)


def _threads(asked: int, weight_bytes: int) -> int:
    """What was asked for; else one for a small model, and all cores that this process may use.

    Raises:
        UsageError: more than there are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = min(cores or 1, MOST_THREADS)
    if asked > most:
        raise UsageError(f"{asked} threads, this process may use {most}", f"use --threads {most}")
    return asked or (1 if weight_bytes < SMALL_BYTES else most)
